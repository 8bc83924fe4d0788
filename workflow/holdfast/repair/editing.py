"""From two checkpoints to an edited one: directions, the search for the edit, and its random control."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from holdfast.config.by_hand import validated
from holdfast.files import read_json
from holdfast.model_folders import read_config
from holdfast.refusal.activations import cache_activations
from holdfast.refusal.aird import VARIANTS
from holdfast.refusal.direction import find_direction
from holdfast.refusal.edit import edit_checkpoint
from holdfast.sources import source_folder

PRUNED = 0.99  # a density below it is a pruned model's


def activations(model: Path, out: Path, prompts: Mapping[str, Path]) -> None:
    recipe = validated("activations", {})
    cache_activations(model, out, prompts["harmful_train"], prompts["harmless_train"], recipe)


def direction(model: Path, activations: Path, out: Path, prompts: Mapping[str, Path]) -> None:
    """The dense model's direction, among all layers, under the bounds of Arditi et al. 2024.

    At every position after the instruction where there is a GPU, at the last one on a CPU, where each position takes
    a minute even on a model of 135 million weights. Where no candidate passes, the best of the failing ones is taken.
    """
    positions = "all" if torch.cuda.is_available() else [-1]
    _find(model, out, activations, prompts, {"positions": positions})


def own_direction(
    model: Path, activations: Path, out: Path, prompts: Mapping[str, Path], found: Mapping[str, Any]
) -> None:
    """The compressed model's difference of means at the dense direction's own layer and position, and its score."""
    source = {"positions": [found["position"]], "layers": [found["layer"]]}
    _find(model, out, activations, prompts, source)


def _find(
    model: Path, out: Path, activations: Path, prompts: Mapping[str, Path], recipe: Mapping[str, Any]
) -> None:
    full = validated("direction", {"filter_train": False, **recipe})
    find_direction(
        model, out, activations, prompts["harmful_validation"], prompts["harmless_validation"], full
    )


def edit_recipe(checkpoint: Path, source: str) -> dict[str, Any]:
    """Everything searched: variants, layers, strengths; a pruned model keeps its zeros."""
    names = [name for name in VARIANTS if name != "restore" or not made_by_awq(source)]
    return validated(
        "edit",
        {
            "edit": "aird",
            **{"variant": "search", "layer": "search", "alpha": "search"},
            "search": {"variants": names},
            "keep_sparsity": pruned(checkpoint),
        },
    )


def control_recipe(seed: int) -> dict[str, Any]:
    return validated("edit", {"edit": "aird", "direction": "random", "matched_to": "repaired", "seed": seed})


def edit(
    checkpoint: Path,
    out: Path,
    *,
    dense: Path,
    direction: Path,
    own: Path,
    prompts: Mapping[str, Path],
    recipe: Mapping[str, Any],
    matched_to: Path | None = None,
) -> None:
    """The stage ``edit`` on validation prompts."""
    edit_checkpoint(
        checkpoint,
        out,
        dense=dense,
        direction_dir=direction,
        own_direction_dir=own,
        harmful=prompts["harmful_validation"],
        harmless=prompts["harmless_validation"],
        harmful_train=prompts["harmful_train"],
        harmless_train=prompts["harmless_train"],
        recipe=recipe,
        matched_to=matched_to,
    )


def pruned(checkpoint: Path) -> bool:
    """Whether the linears of a dense checkpoint hold zeros; a quantized one's are weights rounded down."""
    density = read_json(checkpoint / "provenance.json")["density"]
    return density is not None and density < PRUNED


def made_by_awq(source: str) -> bool:
    """As far as a checkpoint's own files tell: the dense weights do not fit into its rescaled matrices."""
    folder = source_folder(source)
    method = (read_config(folder).get("quantization_config") or {}).get("quant_method")
    notes = folder / "recipe.yaml"  # llm-compressor's
    told = notes.is_file() and "AWQ" in notes.read_text(encoding="utf-8", errors="replace")
    return method == "awq" or told or made_by(folder).get("quantize") == "awq"


def made_by(folder: Path) -> dict[str, Any]:
    """The recipe of ``holdfast compress`` that made a checkpoint; empty where another made it."""
    record = read_json(folder / "provenance.json") if (folder / "provenance.json").is_file() else {}
    recipe = record.get("recipe") if isinstance(record, dict) else None
    return recipe if isinstance(recipe, dict) else {}
