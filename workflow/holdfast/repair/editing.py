"""From two checkpoints to an edited one: directions, the search for the edit, and its random control."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from holdfast.config.by_hand import validated
from holdfast.files import read_json
from holdfast.methods.aird import VARIANTS
from holdfast.methods.edit import edit_checkpoint
from holdfast.refusal.activations import cache_activations
from holdfast.refusal.direction import find_direction

PRUNED = 0.99  # a density below it is a pruned model's


def activations(model: Path, out: Path, prompts: Mapping[str, Path]) -> None:
    recipe = validated("activations", {})
    cache_activations(model, out, prompts["harmful_train"], prompts["harmless_train"], recipe)


def positions() -> str | list[int]:
    """Where the direction is looked for: at every position after the instruction where there is a GPU.

    At the last one on a CPU, where each position takes a minute even on a model of 135 million weights.
    """
    return "all" if torch.cuda.is_available() else [-1]


def direction(model: Path, activations: Path, out: Path, prompts: Mapping[str, Path]) -> None:
    """The dense model's direction, among all layers, under the bounds of Arditi et al. 2024.

    Where no candidate passes them, the best of the failing ones.
    """
    _find(model, out, activations, prompts, {"positions": positions()})


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


def edit_recipe(checkpoint: Path, awq: bool) -> dict[str, Any]:
    """Everything searched: variants, layers, strengths; a pruned model keeps its zeros.

    ``awq``: AWQ made the checkpoint, so that ``restore`` is left out.
    """
    names = [name for name in VARIANTS if name != "restore" or not awq]
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
