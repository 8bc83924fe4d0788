"""LLM.int8 and NF4 through bitsandbytes, which quantizes while it loads.

* llm-int8: Dettmers et al. 2022, arXiv 2208.07339. Int8 weights with one scale a row; inputs quantized per token
  as they come, except for outlier features (a magnitude of 6 and more), which are multiplied in 16 bit. Their
  weights are the int8 ones, back in 16 bit: bitsandbytes stores no others (the paper keeps those columns whole).
* nf4: Dettmers et al. 2023, arXiv 2305.14314. Every weight the nearest of 16 quantiles of a normal distribution
  times the largest magnitude of its block of 64; inputs and products in the model's own dtype. Without double
  quantization, which would save 0.37 bits a weight by rounding the block scales too.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from holdfast.architectures import part_linears
from holdfast.checkpoints import from_pretrained
from holdfast.errors import HoldfastError
from holdfast.silence import quiet
from holdfast.skeletons import skeleton

QUANTIZED = {"llm-int8": "Int8Params", "nf4": "Params4bit"}


def load_quantized(folder: Path, recipe: Mapping[str, Any]) -> PreTrainedModel:
    """The model of a dense checkpoint with the linears of some parts quantized; everything else stays dense.

    Args:
        folder: a dense checkpoint.
        recipe: ``quantize`` (llm-int8 or nf4) and ``parts``.

    Raises:
        HoldfastError: as ``checkpoints.load_model``; bitsandbytes is not installed or has no kernels for this
            machine; a weight is NaN or infinite; the linears quantized are not those asked for.
    """
    method = recipe["quantize"]
    try:
        with quiet():
            import bitsandbytes  # noqa: F401
    except ImportError as error:
        remedy = "pip install bitsandbytes"
        raise HoldfastError("bitsandbytes is not installed", f"quantize: {method}", remedy) from error
    empty = skeleton(folder)
    wanted = part_linears(empty, recipe.get("parts") or ["language"])
    others = [n for n, m in empty.named_modules() if isinstance(m, nn.Linear) and n not in wanted]
    config: BitsAndBytesConfig
    if method == "llm-int8":
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=others)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=False,
            bnb_4bit_compute_dtype=getattr(empty.config, "dtype", None) or torch.float32,
            llm_int8_skip_modules=others,
        )
    model = from_pretrained(folder, dtype="auto", quantization_config=config)
    kind = QUANTIZED[method]
    found = {n for n, m in model.named_modules() if type(getattr(m, "weight", None)).__name__ == kind}
    if wrong := sorted(found ^ wanted.keys()):
        # bitsandbytes takes the names of what to skip for prefixes and suffixes of others.
        what = f"bitsandbytes cannot tell {wrong[0]} from the modules to skip"
        raise HoldfastError(what, str(folder), "quantize other parts, or use rtn")
    return model
