"""Quantization through llm-compressor, stored in the compressed-tensors format.

Every method acts on the linears of the parts asked for; embeddings, norms, head and all other linears stay.

* rtn: round-to-nearest, symmetric integers, min-max scales of a group of inputs or of a row; weights only.
* gptq: Frantar et al. 2022, arXiv 2210.17323, on the same grid; columns in the order of falling Hessian
  diagonals, scales from the weights before ("static" order, the library's default), dampening 1 %, block 128.
* awq: Lin et al. 2023, arXiv 2306.00978; integers with zero points, as the authors' code, AutoAWQ and the
  library's W4A16_ASYM preset have it (vLLM serves that on CPU and GPU); rtn and gptq have none. The library
  searches scales only, not the authors' clipping of weights, and leaves o_proj unscaled where key-value heads
  are fewer than heads.
* smoothquant: Xiao et al. 2022, arXiv 2211.10438, smoothing strength 0.5 (section 4); then weights rounded to
  int8, one scale a row, and activations to int8, one scale a token, found as they come (W8A8).
* fp8: E4M3 weights, one scale a row, activations one scale a token as they come (FP8_DYNAMIC); or, static, one
  scale a matrix for either, that of the activations from calibration (FP8).

Calibration: the sequences run one at a time at their own lengths, neither padded, cut nor joined. Block by
block: each runs twice, first to collect its statistics, then, changed, for the next one's inputs. So GPTQ sees
the inputs that already quantized blocks give; AWQ, SmoothQuant and static fp8 see those of blocks smoothed at
most and not yet quantized, which is to say of the dense model, as in the first two's authors' code.
"""

import logging
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from holdfast.architectures import language_model, module_name, part_linears
from holdfast.checkpoints import SHARD_SIZE, refuse_not_finite
from holdfast.compression.calibration import Sample, token_ids, with_images
from holdfast.compression.image_calibration import calibration_inputs
from holdfast.config.compressions import calibrated
from holdfast.errors import HoldfastError
from holdfast.files import read_json, write_json
from holdfast.silence import quiet

SMOOTHING_STRENGTH = 0.5
# Of its calibrated methods: AWQ and SmoothQuant have no table of a tower's norms and linears, GPTQ no weight observers
# outside of the blocks that it goes through.
REACHING_VISION = ("fp8",)


def quantize(model: PreTrainedModel, recipe: Mapping[str, Any], sequences: Sequence[Sample]) -> None:
    """Quantize linears in place; the weights stay dense until :func:`save` packs them.

    Args:
        recipe: ``quantize`` (rtn, gptq, awq, smoothquant, fp8), ``bits`` (2 to 8) and ``group_size`` (inputs that
            share a scale, or "channel") where the method has them, ``activations`` of fp8, ``parts``.
        sequences: unused by rtn and by fp8 with dynamic activations.

    Raises:
        HoldfastError: a group size that does not divide a module's width, a calibrated method on parts that its
            sequences or its mappings do not reach, a model whose blocks the method's mappings do not
            fit, a Hessian that cannot be inverted, llm-compressor not installed.
    """
    method, parts = recipe["quantize"], recipe.get("parts") or ["language"]
    if calibrated(recipe) and set(parts) != {"language"}:
        _check_reach(method, parts, sequences)
    linears = part_linears(model, parts)
    if isinstance(recipe.get("group_size"), int):
        check_group_size(linears, recipe["group_size"])
    # Read when llm-compressor is imported. Disabling its log altogether makes its metrics raise.
    os.environ.setdefault("LLM_COMPRESSOR_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        from llmcompressor import oneshot
    except ImportError as error:
        remedy = "pip install llmcompressor"
        raise HoldfastError("llm-compressor is not installed", f"quantize: {method}", remedy) from error
    options: dict[str, Any] = {}
    if calibrated(recipe):
        options["dataset"] = DataLoader(calibration_inputs(model, sequences, parts), batch_size=None)  # type: ignore[arg-type]
        # Of no use for tokens; left to itself the library loads the model's own, which a text-only installation
        # cannot do for a vision-language model.
        options["processor"] = object()
    tracing = logging.getLogger("torch.fx._symbolic_trace")
    level = tracing.level
    tracing.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            oneshot(
                model=model,
                recipe=_modifiers(model, recipe, linears, sequences),
                # Code that the model came with has run already when it was loaded.
                trust_remote_code_model=hasattr(model.config, "auto_map"),
                **options,
            )
    finally:
        tracing.setLevel(level)


def save(model: PreTrainedModel, out: Path) -> None:
    """Write the packed weights, shards of at most 500 MB, and the quantization config.

    Raises:
        HoldfastError: a weight or scale holds NaN or infinity; nothing is written then.
    """
    refuse_not_finite(dict(model.named_parameters()), out)
    dense = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and not _has_scheme(m)]
    with quiet():
        model.save_pretrained(out, save_compressed=True, max_shard_size=SHARD_SIZE)
    # llm-compressor's session, which names the recipe to the line above, would hold the model for ever.
    from llmcompressor.core import reset_session

    reset_session()
    # Vision-language models are stored under older names than they have in memory, the list of what is dense
    # too. vLLM looks modules up by the former, transformers by the latter.
    config = read_json(out / "config.json")
    ignored = config["quantization_config"]["ignore"]
    if missing := [name for name in dense if name not in ignored]:
        config["quantization_config"]["ignore"] = ignored + missing
        write_json(out / "config.json", config)


def check_group_size(linears: dict[str, nn.Linear], group_size: int) -> None:
    """Raises HoldfastError naming the first module whose input width the group size does not divide."""
    for name, linear in linears.items():
        if linear.in_features % group_size:
            widths = {m.in_features for m in linears.values()}
            fitting = [g for g in (16, 32, 64, 128, 256) if all(width % g == 0 for width in widths)]
            raise HoldfastError(
                f"group size {group_size} does not divide the width {linear.in_features} of {name}",
                "compression recipe, group_size",
                f"use {' or '.join(map(str, fitting))}" if fitting else "use channel",
            )


def _has_scheme(module: nn.Module) -> bool:
    return getattr(module, "quantization_scheme", None) is not None


def _modifiers(
    model: PreTrainedModel,
    recipe: Mapping[str, Any],
    linears: dict[str, nn.Linear],
    sequences: Sequence[Sample],
) -> list[Any]:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme, preset_name_to_scheme

    from holdfast.compression.modifiers import (
        AWQModifier,
        GPTQModifier,
        QuantizationModifier,
        SmoothQuantModifier,
    )

    method = recipe["quantize"]
    if method == "smoothquant":
        scheme = preset_name_to_scheme("W8A8", ["Linear"])
    elif method == "fp8":
        static = recipe.get("activations") == "static"
        scheme = preset_name_to_scheme("FP8" if static else "FP8_DYNAMIC", ["Linear"])
    else:
        grouping: dict[str, Any] = {"strategy": "channel"}
        if recipe["group_size"] != "channel":
            grouping = {"strategy": "group", "group_size": recipe["group_size"]}
        weights = QuantizationArgs(num_bits=recipe["bits"], type="int", symmetric=method != "awq", **grouping)
        scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    # All else by name, so that heads, vision towers and projectors stay dense whatever they are called.
    ignore = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n not in linears]
    settings: dict[str, Any] = {"config_groups": {"group_0": scheme}, "ignore": ignore}
    if method == "gptq":
        return [GPTQModifier(**settings)]
    if method not in ("awq", "smoothquant"):
        return [QuantizationModifier(**settings)]
    smoothing: Any
    if method == "awq":
        from llmcompressor.modifiers.transform.awq import AWQMapping
        from llmcompressor.modifiers.transform.awq.dynamic_mappings import get_layer_mappings_from_model

        prefix = _language_prefix(model)
        smoothing = AWQModifier(
            mappings=[
                AWQMapping(
                    _within(m.smooth_layer, prefix),
                    [_within(b, prefix) for b in m.balance_layers],
                    m.activation_hook_target,
                )
                for m in get_layer_mappings_from_model(model)
            ]
        )
    else:
        from llmcompressor.modifiers.transform.smoothquant.dynamic_mappings import (
            get_layer_mappings_from_model as smoothquant_mappings,
        )

        prefix = _language_prefix(model)
        smoothing = SmoothQuantModifier(
            smoothing_strength=SMOOTHING_STRENGTH,
            mappings=[
                ([_within(b, prefix) for b in balanced], _within(smooth, prefix))
                for balanced, smooth in smoothquant_mappings(model)
            ],
        )
    smoothing._probe = token_ids(sequences[0])
    return [smoothing, QuantizationModifier(**settings)]


def _language_prefix(model: PreTrainedModel) -> str:
    return module_name(model, language_model(model))


def _within(pattern: str, prefix: str) -> str:
    """The library's pattern for names below ``prefix`` only: a vision tower has a q_proj of its own, which would
    otherwise be scaled together with the first block of the language model."""
    return f"re:(?={re.escape(prefix)}\\.){pattern.removeprefix('re:')}"


def _check_reach(method: str, parts: Sequence[str], sequences: Sequence[Sample]) -> None:
    beside = " and ".join(sorted(set(parts) - {"language"}))
    where = "compression recipe, parts"
    if method not in REACHING_VISION:
        what = f"llm-compressor's {method} does not reach the {beside}"
        raise HoldfastError(what, where, "use [language], or wanda, sparsegpt, rtn or fp8")
    if with_images(sequences) < len(sequences):
        what = f"{method} on the {beside} is calibrated on images, and not every calibration record has one"
        raise HoldfastError(what, where, "calibrate on records with images, or use [language]")
