"""GPTQ (Frantar et al. 2022, arXiv 2210.17323) in the auto-gptq format, through optimum and gptqmodel.

AutoGPTQ, which gave the format its name, was archived in April 2025 and does not import with today's
transformers. gptqmodel took over: it began as a fork of AutoGPTQ, reads and writes the same files, and is what
transformers and optimum call since they dropped AutoGPTQ. It pins its own numpy, so it lives in an environment of
its own (envs/gptqmodel.txt) with which ``holdfast compress`` runs for this format. What it writes loads without it
(see ``formats.auto_gptq``), and so does what AutoGPTQ wrote.
"""

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from holdfast.architectures import decoder_layers, decoder_linears, module_name
from holdfast.checkpoints import SHARD_SIZE, load_model, refuse_not_finite
from holdfast.compression.calibration import Sample, token_ids, with_images
from holdfast.compression.llm_compressor import check_group_size
from holdfast.errors import HoldfastError
from holdfast.files import read_json, write_json
from holdfast.silence import quiet

DAMPENING = 0.01  # of the mean of the Hessian's diagonal, as in the paper's code
WORD = 32  # bits; the format packs whole words along either side of a matrix


def quantize_and_save(
    model_dir: Path, out: Path, recipe: Mapping[str, Any], sequences: Sequence[Sample]
) -> None:
    """Quantize the decoder's linears of a dense checkpoint and write weights and configs into ``out``.

    Symmetric integers, columns in their own order (desc_act false), layer by layer, each linear with the inputs
    that those before it, already quantized, give. Embeddings, norms and head stay as they are.

    Args:
        out: an existing folder; gets shards of at most 500 MB, their index, config.json, generation_config.json.
        recipe: ``bits`` (2, 3, 4, 8), ``group_size`` (inputs that share a scale, or "channel" for a row), ``parts``.
        sequences: what the Hessians are measured on, text alone.

    Raises:
        HoldfastError: gptqmodel is not installed here; other parts than the language model; a matrix whose width
            the group size does not divide, or whose sides are no multiples of 32; a weight or scale that is NaN
            or infinite (scales are half precision).
    """
    where = "compression recipe, format: auto-gptq"
    if find_spec("gptqmodel") is None or find_spec("optimum") is None:
        remedy = "run this stage with the environment of envs/gptqmodel.txt"
        raise HoldfastError("gptqmodel is not installed", where, remedy)
    if set(recipe.get("parts") or ["language"]) != {"language"}:
        raise HoldfastError("only the language model can be quantized", where, "leave parts out")
    if with_images(sequences):
        what = "optimum calibrates on text alone, and calibration records have images"
        raise HoldfastError(what, where, "use format: compressed-tensors, or calibrate on text")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    model = load_model(model_dir)
    linears = decoder_linears(model)
    group_size = -1 if recipe["group_size"] == "channel" else recipe["group_size"]
    if group_size > 0:
        check_group_size(linears, group_size)
    _check_sides(linears)
    quantizer = _quantizer(model, recipe["bits"], group_size, sequences)
    with quiet():
        model = quantizer.quantize_model(model)
    scales = {name: buffer for name, buffer in model.named_buffers() if name.endswith(".scales")}
    refuse_not_finite({**dict(model.named_parameters()), **scales}, out)
    with quiet():
        quantizer.save(model, str(out), max_shard_size=SHARD_SIZE)
    _write_config(out, quantizer)


def _quantizer(model: PreTrainedModel, bits: int, group_size: int, sequences: Sequence[Sample]) -> Any:
    with quiet():
        from optimum.gptq import GPTQQuantizer

        layer = module_name(model, decoder_layers(model)[0])
        return GPTQQuantizer(
            bits=bits,
            group_size=group_size,
            # Token ids in place of texts are taken as they are.
            dataset=[
                {"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()}
                for ids in map(token_ids, sequences)
            ],
            damp_percent=DAMPENING,
            desc_act=False,
            # gptqmodel's own addition to the method; off, this is the paper's.
            act_group_aware=False,
            sym=True,
            block_name_to_quantize=layer.rpartition(".")[0],
        )


def _write_config(out: Path, quantizer: Any) -> None:
    """Say what was saved. optimum's config names version 2 of the format, as it is in memory, though it has just
    converted the zeros to version 1; a loader that believes it is off by one everywhere. It also holds every
    calibration token.
    """
    config = read_json(out / "config.json")
    about = {
        k: v for k, v in quantizer.to_dict().items() if k not in ("dataset", "modules_in_block_to_quantize")
    }
    about |= {
        "quant_method": "gptq",
        "format": "gptq",
        "checkpoint_format": "gptq",
        "pack_dtype": "int32",
        "block_name_to_quantize": quantizer.block_name_to_quantize,
    }
    write_json(out / "config.json", config | {"quantization_config": about})
    # The same once more, for loaders older than config.json's own key.
    (out / "quantize_config.json").unlink(missing_ok=True)


def _check_sides(linears: Mapping[str, nn.Linear]) -> None:
    for name, linear in linears.items():
        if linear.in_features % WORD or linear.out_features % WORD:
            what = f"{name} is {linear.out_features} x {linear.in_features}, not multiples of {WORD}"
            raise HoldfastError(what, "compression recipe, format", "use format: compressed-tensors")
