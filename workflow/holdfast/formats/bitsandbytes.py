"""bitsandbytes: LLM.int8 (Dettmers et al. 2022, arXiv 2208.07339) and NF4 / FP4 (2023, arXiv 2305.14314).

LLM.int8 stores int8 values and SCB, each row's largest magnitude: weight = values * SCB / 127 (eq. 4). The 4-bit
formats store two values a byte, a scale (absmax) for every 64 weights, itself quantized to 8 bits under double
quantization, and a packed description of all that (quant_state).
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from holdfast.formats.base import Format, Parts
from holdfast.silence import quiet
from holdfast.skeletons import skeleton


class BitsAndBytes(Format):
    """Weights quantized while loading; LLM.int8 quantizes activations too, so neither loads as dense linears."""

    def part_of(self, entry: str) -> tuple[str, str]:
        # The quantization state hangs below the weight: MODULE.weight.absmax
        module, below, rest = entry.partition(".weight.")
        return (module, f"weight.{rest}") if below else super().part_of(entry)

    def is_quantized(self, parts: Iterable[str]) -> bool:
        return any(part == "SCB" or part.startswith("weight.") for part in parts)

    def dequantized(self, module: str, parts: Parts) -> torch.Tensor:
        if "SCB" in parts:
            return dequantize_int8(parts["weight"], parts["SCB"])
        with quiet():
            from bitsandbytes.functional import dequantize_4bit

            return dequantize_4bit(parts["weight"], _state(parts)).float()

    def requantized(self, module: str, weight: torch.Tensor, parts: Parts) -> Parts:
        if "SCB" in parts:
            with quiet():
                from bitsandbytes.functional import int8_vectorwise_quant

                # Half precision, as bitsandbytes itself quantizes weights.
                values, scales, _ = int8_vectorwise_quant(weight.to(torch.float16))
            # weight_format says that the rows lie in order, which these do.
            return parts | {"weight": values, "SCB": scales.to(parts["SCB"].dtype)}
        with quiet():
            from bitsandbytes.functional import quantize_4bit

            old = _state(parts)
            values, state = quantize_4bit(
                weight.to(old.dtype).contiguous(),
                blocksize=old.blocksize,
                quant_type=old.quant_type,
                compress_statistics=old.nested,
                quant_storage=parts["weight"].dtype,
            )
            packed = {f"weight.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}
        return {name: {"weight": values, **packed}[name].contiguous() for name in parts}

    def without(
        self, config: Mapping[str, Any], modules: Iterable[str], quantized: Iterable[str]
    ) -> dict[str, Any]:
        skipped = config.get("llm_int8_skip_modules")
        if skipped is None:
            # No list means transformers' own choice (the head); a list replaces that choice, so spell it out.
            from transformers.quantizers.base import get_keys_to_not_convert

            skipped = get_keys_to_not_convert(skeleton(self.folder))
        new = [*skipped, *(module for module in modules if module not in skipped)]
        return {**config, "llm_int8_skip_modules": new}


def quantization_state(weight: torch.Tensor) -> list[torch.Tensor]:
    """The scales that a loaded weight carries as attributes, where neither parameters nor buffers tell of them."""
    state = getattr(weight, "quant_state", None)
    found = [getattr(weight, "SCB", None), getattr(state, "absmax", None), getattr(state, "offset", None)]
    found.append(getattr(getattr(state, "state2", None), "absmax", None))
    return [tensor for tensor in found if isinstance(tensor, torch.Tensor)]


def dequantize_int8(values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """int8 (d_out, d_in) and row scales (d_out) to float32 (d_out, d_in)."""
    return values.float() * (scales.float()[:, None] / 127)


def _state(parts: Parts) -> Any:
    from bitsandbytes.functional import QuantState

    about = {part: tensor for part, tensor in parts.items() if part != "weight"}
    return QuantState.from_dict(about, device=torch.device("cpu"))
