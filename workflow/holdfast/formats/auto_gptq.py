"""auto-gptq: what AutoGPTQ wrote, and gptqmodel and optimum write today (quant_method "gptq").

weight[o, i] = scales[g, o] * (q[i, o] - zeros[g, o]) with g = g_idx[i] (Frantar et al. 2022, arXiv 2210.17323;
the layout is AutoGPTQ's). ``qweight`` (d_in * bits / 32, d_out) holds q packed down its columns, ``qzeros``
(groups, d_out * bits / 32) the zeros packed along its rows, both as one stream of bits from each word's lowest;
``scales`` (groups, d_out) is half precision; ``g_idx`` (d_in) names each input's group, in any order where
activations decided it (desc_act). Version 1 of the format stores every zero less one.

Loading such a checkpoint needs no gptqmodel: see ``checkpoints.load_model``.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from holdfast.formats.base import Format, Parts
from holdfast.formats.packing import packed, unpacked

OUTPUTS_AT_ONCE = 256  # bounds what is unpacked beside the weight itself
ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}  # one in every field of a word


class AutoGptq(Format):
    """2, 3, 4 and 8 bits, symmetric or not, versions 1 ("gptq") and 2 ("gptq_v2"), packed in int32."""

    loads_dense = True

    def is_quantized(self, parts: Iterable[str]) -> bool:
        return "qweight" in parts

    def dequantized(self, module: str, parts: Parts) -> torch.Tensor:
        bits = self._bits(module)
        scales = parts["scales"]
        groups, width = self._groups(module, parts)
        zeros = unpacked(self._shifted(parts["qzeros"], bits, 1), bits, (len(scales), scales.shape[1]), 1)
        weight = torch.empty(scales.shape[1], width, dtype=scales.dtype)
        for start in range(0, len(weight), OUTPUTS_AT_ONCE):
            some = slice(start, start + OUTPUTS_AT_ONCE)
            words = parts["qweight"][:, some]
            values = unpacked(words, bits, (width, words.shape[1]), 0).T.float()
            offsets, steps = (per_group[:, some].T.float()[:, groups] for per_group in (zeros, scales))
            weight[some] = ((values - offsets) * steps).to(weight.dtype)
        return weight

    def requantized(self, module: str, weight: torch.Tensor, parts: Parts) -> Parts:
        bits = self._bits(module)
        highest_code = 2**bits - 1
        groups, _ = self._groups(module, parts)
        columns = weight.float().T  # (d_in, d_out), as stored
        stored = parts["scales"]
        index = groups[:, None].expand_as(columns)
        # Zero is always among the values that share a scale, so that it stays exact.
        highest = torch.zeros(stored.shape).scatter_reduce(0, index, columns, "amax")
        lowest = torch.zeros(stored.shape).scatter_reduce(0, index, columns, "amin")
        symmetric = self.config.get("sym", True)
        if symmetric:
            highest = torch.maximum(highest, -lowest)
            lowest = -highest
        elif self._is_version_1():
            # A zero of 0, stored less one, spills into its neighbours in every reader but gptqmodel.
            lowest = torch.minimum(lowest, -highest / (2 * highest_code - 1))
        tiny = torch.finfo(stored.dtype).tiny
        scales = ((highest - lowest) / highest_code).clamp_min(tiny).to(stored.dtype)
        if symmetric:
            zeros = torch.full(stored.shape, (highest_code + 1) // 2)
        else:
            zeros = (-lowest / scales.float()).round().clamp(int(self._is_version_1()), highest_code).long()
        values = (columns / scales.float()[groups]).round() + zeros[groups]
        return parts | {
            "qweight": packed(values.clamp(0, highest_code), bits, 0),
            "qzeros": self._shifted(packed(zeros, bits, 1), bits, -1),
            "scales": scales,
        }

    def without(
        self, config: Mapping[str, Any], modules: Iterable[str], quantized: Iterable[str]
    ) -> dict[str, Any]:
        """Names what stays quantized for optimum, transformers' loader, and vLLM
        (``modules_in_block_to_quantize``, full names in one list), and what does not for gptqmodel's own loader
        and SGLang (``dynamic``): none of them reads the other's key.
        """
        leaving = list(modules)
        staying = [module for module in quantized if module not in leaving]
        patterns: dict[str, Any] = {f"-:^{module.replace('.', '[.]')}$": {} for module in leaving}
        dynamic = {**patterns, **(config.get("dynamic") or {})}
        return {**config, "modules_in_block_to_quantize": [staying], "dynamic": dynamic}

    def _bits(self, module: str) -> int:
        bits = self.config.get("bits")
        if bits not in (2, 3, 4, 8):
            raise self.unsupported(f"auto-gptq weights of {bits} bits", module)
        if self.config.get("pack_dtype", "int32") != "int32":
            raise self.unsupported(f"auto-gptq weights packed in {self.config['pack_dtype']}", module)
        if self._version() not in ("gptq", "gptq_v2"):
            raise self.unsupported(f"auto-gptq weights in the layout {self._version()}", module)
        if any(about for about in (self.config.get("dynamic") or {}).values()):
            raise self.unsupported("auto-gptq weights with settings of their own a module", module)
        return int(bits)

    def _version(self) -> str:
        return self.config.get("checkpoint_format") or self.config.get("format") or "gptq"

    def _is_version_1(self) -> bool:
        return self._version() == "gptq"

    def _groups(self, module: str, parts: Parts) -> tuple[torch.Tensor, int]:
        """The group of every input, int64 (d_in), and d_in."""
        width = parts["qweight"].shape[0] * 32 // self._bits(module)
        if "g_idx" in parts:
            return parts["g_idx"].long(), width
        return torch.arange(width) // -(-width // len(parts["scales"])), width

    def _shifted(self, zeros: torch.Tensor, bits: int, by: int) -> torch.Tensor:
        """Packed zeros from how they are stored to what they mean (by = 1) or back (by = -1).

        One is added to whole words, carries included, as gptqmodel does: its files may hold a zero of 0, less one
        with a borrow, which this undoes. Three-bit fields straddle words and wrap, there and here.
        """
        if not self._is_version_1():
            return zeros
        if bits in ONES:
            return zeros + by * ONES[bits]
        fields = zeros.shape[1] * 32 // bits
        return packed((unpacked(zeros, bits, (len(zeros), fields), 1) + by) % 2**bits, bits, 1)
