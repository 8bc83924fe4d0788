"""compressed-tensors: what llm-compressor writes. Packing and arithmetic are the library's own.

Integers of 1 to 8 bits packed into int32 words (W4A16…), int8 and FP8 values (W8A8, FP8), each with scales a
tensor, a row, a group of inputs or a block, symmetric or with zero points.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from holdfast.formats.base import Format, Parts


class CompressedTensors(Format):
    """Weights of the modules the config's groups target; AWQ and SmoothQuant checkpoints are of this format too.

    A module left out of quantization also loses the quantization of its activations: one entry of ``ignore``
    means both, and W8A8 kernels have no use for a dense weight.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.loads_dense = not any(
            group.get("input_activations") for group in self.config.get("config_groups", {}).values()
        )

    def is_quantized(self, parts: Iterable[str]) -> bool:
        return bool({"weight_packed", "weight_scale"} & set(parts))

    def dequantized(self, module: str, parts: Parts) -> torch.Tensor:
        scheme, compressor = self._scheme(module)
        if "weight_g_idx" in parts:
            raise self.unsupported("its weights are stored in the order of activations", module)
        return compressor.decompress(parts, scheme)["weight"]

    def requantized(self, module: str, weight: torch.Tensor, parts: Parts) -> Parts:
        scheme, compressor = self._scheme(module)
        args = scheme.weights
        lowest, highest = self._ranges(module, weight.float(), args)
        from compressed_tensors.quantization.utils import calculate_qparams

        scales, zeros = calculate_qparams(lowest, highest, args)
        # The stored scale is the one the values have to fit.
        stored = parts["weight_scale"]
        scales = scales.reshape(stored.shape).to(stored.dtype)
        kept = {name: tensor for name, tensor in parts.items() if not name.startswith("weight")}
        state = {"weight": weight.float(), "weight_scale": scales.float()}
        if not args.symmetric:
            state["weight_zero_point"] = zeros.reshape(stored.shape)
        new = compressor.compress(state, scheme) | kept
        new["weight_scale"] = scales
        return {name: new.get(name, old).to(old.dtype).contiguous() for name, old in parts.items()}

    def without(
        self, config: Mapping[str, Any], modules: Iterable[str], quantized: Iterable[str]
    ) -> dict[str, Any]:
        ignored = list(config.get("ignore") or [])
        return {**config, "ignore": [*ignored, *(module for module in modules if module not in ignored)]}

    def _scheme(self, module: str) -> tuple[Any, Any]:
        """The module's quantization scheme and the library's compressor for it."""
        from compressed_tensors.compressors.base import BaseCompressor
        from compressed_tensors.quantization import QuantizationConfig
        from compressed_tensors.utils.match import is_match

        config = QuantizationConfig.model_validate(self.config)
        linear = nn.Linear(1, 1, device="meta")  # schemes are chosen by the module's name and class
        for scheme in config.config_groups.values():
            if is_match(module, linear, scheme.targets):
                return scheme, BaseCompressor.get_value_from_registry(scheme.format or config.format)
        raise self.unsupported(
            "its quantization config has no scheme for one of the quantized modules", module
        )

    def _ranges(self, module: str, weight: torch.Tensor, args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Lowest and highest weight among those that share a scale, one dimension for each of the scales'."""
        if args.strategy == "tensor":
            blocks = weight.reshape(1, -1)
        elif args.strategy == "channel":
            blocks = weight
        elif args.strategy == "group":
            blocks = weight.unflatten(1, (-1, args.group_size))
        elif args.strategy == "block" and not any(
            n % b for n, b in zip(weight.shape, args.block_structure, strict=True)
        ):
            rows, columns = args.block_structure
            blocks = weight.unflatten(1, (-1, columns)).unflatten(0, (-1, rows)).transpose(1, 2).flatten(2)
        else:
            raise self.unsupported(f"weights with scales by {args.strategy} are not quantized again", module)
        return blocks.amin(-1), blocks.amax(-1)


def decompress(model: PreTrainedModel) -> None:
    """Unpack the weights of a loaded model whose activations are quantized too; those stay so.

    Module by module in place of the library's hook, which does so at the first forward pass and leaves every
    module behind an offloading cache that copies on assignment: an edit in memory would silently not take.
    """
    from compressed_tensors.compressors.base import decompress_module
    from compressed_tensors.quantization.utils import is_module_quantized

    for module in model.modules():
        if is_module_quantized(module):
            decompress_module(module)
            module.requires_grad_(False)
    loaded: Any = model
    loaded.hf_quantizer.compressor.remove_decompression_hook(model)
