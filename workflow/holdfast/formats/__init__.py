"""How checkpoints store weights: one module a format, dense being the trivial one.

==================  ====================================  ==========================================
quant_method        written by                            here
==================  ====================================  ==========================================
(none)              transformers                          dense
compressed-tensors  llm-compressor                        ``compressed_tensors``: any of its schemes
gptq                AutoGPTQ, gptqmodel, optimum          ``auto_gptq``: 2, 3, 4 and 8 bits
awq                 AutoAWQ                               ``awq``: version gemm, 4 bits
bitsandbytes        transformers                          ``bitsandbytes``: LLM.int8, NF4 and FP4
==================  ====================================  ==========================================
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from holdfast.errors import HoldfastError
from holdfast.formats.auto_gptq import AutoGptq
from holdfast.formats.awq import Awq
from holdfast.formats.base import Format
from holdfast.formats.bitsandbytes import BitsAndBytes
from holdfast.formats.compressed_tensors import CompressedTensors
from holdfast.model_folders import headers, read_config
from holdfast.skeletons import stored_modules

FORMATS: dict[str, type[Format]] = {
    "compressed-tensors": CompressedTensors,
    "gptq": AutoGptq,
    "awq": Awq,
    "bitsandbytes": BitsAndBytes,
}

__all__ = ["Format", "bits_per_weight", "format_of"]


def format_of(folder: Path, about: Mapping[str, Any] | None = None) -> Format:
    """The weight format of a checkpoint, by its config.

    Args:
        about: config.json where it is not the folder's own.

    Raises:
        HoldfastError: a quantization method that is not in the table above.
    """
    config = (about or read_config(folder)).get("quantization_config") or {}
    if not config:
        return Format(folder, config)
    method = config.get("quant_method")
    if method not in FORMATS:
        remedy = f"use a checkpoint in one of the formats {', '.join(FORMATS)}, or a dense one"
        raise HoldfastError(f"weights quantized by {method} cannot be read", str(folder), remedy)
    return FORMATS[method](folder, config)


def bits_per_weight(folder: Path, sizes: Mapping[str, int]) -> dict[str, float]:
    """Bits on disk per weight of linears; from the shards' headers alone.

    Scales, zero points and quantization state count, biases do not.

    Args:
        sizes: how many weights each linear has, by its full name in the model.

    Raises:
        HoldfastError: as :func:`format_of` and ``model_folders.headers``; a linear has no stored weight.
    """
    stored = headers(folder)
    modules = format_of(folder).modules(stored)
    names = stored_modules(folder, modules)
    bits = {}
    for name, weights in sizes.items():
        if name not in names:
            raise HoldfastError(f"no stored weight for {name}", str(folder), "fetch the checkpoint again")
        size = sum(stored[entry].bytes for entry in modules[names[name]].values())
        bits[name] = 8 * size / weights
    return bits
