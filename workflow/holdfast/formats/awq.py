"""AutoAWQ's own format (quant_method "awq", version gemm), as many published checkpoints have it.

weight[o, i] = scales[g, o] * (q[i, o] - zeros[g, o]), g = i // group_size (Lin et al. 2023, arXiv 2306.00978; the
layout is AutoAWQ's). ``qweight`` (d_in, d_out / 8) and ``qzeros`` (groups, d_out / 8) hold eight 4-bit values of a row
a word, in the order 0, 2, 4, 6, 1, 3, 5, 7; ``scales`` (groups, d_out) is half precision. Holdfast itself writes AWQ
checkpoints as compressed-tensors.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from holdfast.formats.base import Format, Parts
from holdfast.formats.packing import packed, unpacked

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
INVERSE = (0, 4, 1, 5, 2, 6, 3, 7)
BITS = 4
HIGHEST = 2**BITS - 1


class Awq(Format):
    """4 bits with zero points; weights only, so it loads dense."""

    loads_dense = True

    def is_quantized(self, parts: Iterable[str]) -> bool:
        return "qweight" in parts

    def dequantized(self, module: str, parts: Parts) -> torch.Tensor:
        self._check(module)
        scales = parts["scales"]
        repeats = len(parts["qweight"]) // len(scales)
        difference = _fields(parts["qweight"]) - _fields(parts["qzeros"]).repeat_interleave(repeats, 0)
        weight = difference * scales.float().repeat_interleave(repeats, 0)
        return weight.T.to(scales.dtype).contiguous()

    def requantized(self, module: str, weight: torch.Tensor, parts: Parts) -> Parts:
        self._check(module)
        stored = parts["scales"]
        columns = weight.float().T
        groups = columns.unflatten(0, (len(stored), -1))
        lowest, highest = groups.amin(1).clamp(max=0), groups.amax(1).clamp(min=0)
        scales = ((highest - lowest) / HIGHEST).clamp_min(torch.finfo(stored.dtype).tiny).to(stored.dtype)
        zeros = (-lowest / scales.float()).round().clamp(0, HIGHEST)
        values = (groups / scales.float()[:, None]).round() + zeros[:, None]
        return {
            "qweight": _words(values.clamp(0, HIGHEST).flatten(0, 1)),
            "qzeros": _words(zeros),
            "scales": scales,
        }

    def without(
        self, config: Mapping[str, Any], modules: Iterable[str], quantized: Iterable[str]
    ) -> dict[str, Any]:
        left = list(config.get("modules_to_not_convert") or [])
        return {**config, "modules_to_not_convert": [*left, *(m for m in modules if m not in left)]}

    def _check(self, module: str) -> None:
        version = str(self.config.get("version") or self.config.get("format") or "gemm").lower()
        bits = self.config.get("bits", self.config.get("w_bit"))
        if version != "gemm" or bits != BITS or not self.config.get("zero_point", True):
            raise self.unsupported(f"awq weights other than gemm, {BITS} bits, with zero points", module)


def _fields(words: torch.Tensor) -> torch.Tensor:
    shape = (len(words), words.shape[1] * 8)
    return unpacked(words, BITS, shape, 1).float().unflatten(1, (-1, 8))[..., list(INVERSE)].flatten(1)


def _words(fields: torch.Tensor) -> torch.Tensor:
    return packed(fields.unflatten(1, (-1, 8))[..., list(ORDER)].flatten(1), BITS, 1)
