"""The stage ``direction``: difference of means, the check of the refusal score, the sweep, and what is kept of it.

Arditi et al. 2024 (arXiv 2406.11717), sections 2.3 and 2.4 and appendix C.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean as mean
from typing import Any, Literal

import pandas as pd
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from holdfast.architectures import decoder_layers
from holdfast.errors import HoldfastError
from holdfast.files import atomic_file, atomic_folder, read_json, write_json
from holdfast.prompts.images import read_instructions
from holdfast.prompts.templates import answer_opening
from holdfast.provenance import Recorder
from holdfast.records import Record, require
from holdfast.refusal.activations import load_activations, read_tensors, refuse_other_model
from holdfast.refusal.candidate_scores import Candidate, Sweep
from holdfast.refusal.score_check import check_scores, pick_score
from holdfast.refusal.scores import RefusalScore
from holdfast.refusal.selection import choose
from holdfast.refusal.sweep import run_sweep
from holdfast.skeletons import skeleton

__all__ = [
    "Direction",
    "candidate_list",
    "choose",
    "find_direction",
    "load_direction",
    "none_if_nan",
    "save_direction",
    "train_rows",
]

KINDS = {"harmful": 1, "harmless": -1}  # the sign of a score that says refused, answered
FEWEST = 8  # train prompts of a kind that a filter must leave


@dataclass(frozen=True)
class Direction:
    """A refusal direction and where it was found.

    ``unit`` r̂ and ``difference`` (mean harmful − mean harmless), float32 [d_model]; ``harmless`` mean
    harmless block inputs at the source position, [layer, d_model]; ``usable`` False when every candidate was
    filtered out and this is the best of the failing ones.
    """

    unit: Tensor
    difference: Tensor
    harmless: Tensor
    layer: int
    position: int
    usable: bool
    about: dict[str, Any]


def train_rows(
    folder: Path, score: RefusalScore, model: PreTrainedModel, model_dir: Path
) -> dict[str, list[int] | None]:
    """Which train prompts a filter keeps, by number: harmful ones that score as refused and harmless ones that do not
    (Arditi et al. 2024, appendix A); None for all of a kind where fewer than FEWEST would be left.
    """
    rows: dict[str, list[int] | None] = {}
    for kind, sign in KINDS.items():
        keep = score(model, read_instructions(folder / f"{kind}.jsonl", model_dir)) * sign > 0
        rows[kind] = keep.nonzero()[:, 0].tolist() if FEWEST <= keep.sum() < len(keep) else None
    return rows


def find_direction(
    model_dir: Path,
    out: Path,
    activations_dir: Path,
    harmful: Path,
    harmless: Path,
    recipe: Mapping[str, Any],
) -> Direction:
    """The direction stage: check the score, sweep, choose, write ``direction.safetensors`` and ``selection.csv``.

    ``recipe``: positions and layers (``all`` or lists), ablation (``plain`` or ``affine``), score (``auto``,
    ``first-token``, ``phrases``), max_kl, min_induce, filter_train, full_table (score every candidate in full).
    Raises HoldfastError when the activations are of another checkpoint.
    """
    from holdfast.checkpoints import load_model, load_tokenizer
    from holdfast.model_folders import settings

    recorder = Recorder("direction", dict(recipe))
    texts = {
        "harmful": read_instructions(harmful, model_dir),
        "harmless": read_instructions(harmless, model_dir),
    }
    model, tokenizer, chosen_settings = load_model(model_dir), load_tokenizer(model_dir), settings(model_dir)
    refuse_other_model(activations_dir, model_dir, recorder.checksum(model_dir))
    activations, where = load_activations(activations_dir)
    n_layers = where["layers"]
    scores, values, about = check_scores(
        model, tokenizer, chosen_settings, texts["harmful"], texts["harmless"]
    )
    kind = pick_score(recipe["score"], about)
    score = scores[kind]
    check = about["score_check"][kind]
    rows = (
        train_rows(activations_dir, score, model, model_dir)
        if recipe["filter_train"]
        else dict.fromkeys(KINDS)
    )
    used = {k: x if (kept := rows[k]) is None else x[kept] for k, x in activations.items()}
    # In float64: a float32 mean of a hundred large activations loses the small difference sought.
    means = {k: x.double().mean(0) for k, x in used.items()}

    positions = candidate_list(recipe["positions"], where["positions"], "direction.positions")
    opening = answer_opening(tokenizer, chosen_settings)
    layers = candidate_list(recipe["layers"], list(range(n_layers)), "direction.layers")
    differences = means["harmful"] - means["harmless"]
    affine = recipe["ablation"] == "affine"
    candidates = [
        Candidate(p, layer, differences[p, layer].float(), means["harmless"][p].float() if affine else None)
        for p in positions
        for layer in layers
    ]
    count = len(texts["harmful"])
    sweep = Sweep(model, score, candidates, texts["harmful"], texts["harmless"])
    bounds = recipe["max_kl"], recipe["min_induce"]
    table, number, usable = run_sweep(sweep, n_layers, *bounds, full=recipe["full_table"])
    picked = table.loc[number]
    table.loc[number, "chosen"] = True
    position, layer = int(picked["position"]), int(picked["layer"])
    raw = differences[position, layer]
    reason = "" if usable else "every candidate was filtered out; this one is the best of the failing"
    if check["checked"] and not check["valid"]:
        usable, reason = False, f"the score it was chosen by is none: {check['reason']}"
    about |= {
        "position": position,
        "layer": layer,
        "token": where["tokens"][position],
        "usable": usable,
        "bounds": dict(zip(("max_kl", "min_induce"), bounds, strict=True)),
        "passes_published_bounds": bool(usable and picked["kl"] <= 0.1 and picked["induce"] >= 0),
        "reason": reason,
        "score": kind,
        "score_valid": check["valid"],
        "score_checked": check["checked"],
        "score_reason": check["reason"],
        "ablation": recipe["ablation"],
        "thinking": chosen_settings["thinking"],
        "answer_position": "after an empty thought" if opening else "after the prompt",
        "answer_opening": opening,
        "norm": raw.norm().item(),
        "baseline": {"harmful": mean(values[kind][:count]), "harmless": mean(values[kind][count:])},
        "chosen": {k: none_if_nan(picked[k]) for k in ("bypass", "induce", "kl")},
        "train_prompts": {k: len(x) for k, x in used.items()},
        "train_rows": rows,
        "candidates": len(table),
    }
    found = Direction(
        (raw / raw.norm()).float(),
        raw.float(),
        means["harmless"][position].float(),
        layer,
        position,
        usable,
        about,
    )
    save_direction(found, table, out, recorder, [model_dir, activations_dir, harmful, harmless])
    return found


def none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def candidate_list(chosen: str | Sequence[int], known: list[int], key: str) -> list[int]:
    """``all`` or a list checked against what the model has."""
    if chosen == "all":
        return known
    if unknown := [c for c in chosen if c not in known]:
        raise HoldfastError(
            f"{unknown} not among {known[0]} … {known[-1]} of this model", key, "use existing ones"
        )
    return [int(c) for c in chosen]


def save_direction(
    found: Direction, table: pd.DataFrame, out: Path, recorder: Recorder, inputs: list[Path]
) -> None:
    with atomic_folder(out) as folder:
        write_direction(found, folder)
        with atomic_file(folder / "selection.csv") as temporary:
            table.to_csv(temporary, index=False)
        recorder.write(folder / "provenance.json", inputs)


def write_direction(found: Direction, folder: Path) -> None:
    """``direction.safetensors`` and ``direction.json`` in a folder, made where it is not there."""
    folder.mkdir(exist_ok=True)
    tensors = {
        "direction": found.unit,
        "mean_difference": found.difference,
        "harmless_mean": found.harmless,
    }
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "direction.safetensors")
    write_json(folder / "direction.json", found.about)


class _About(Record):
    """What every ``direction.json`` holds; the score's keys are absent where no stage that needs one reads it."""

    layer: int = Field(ge=0)
    position: int = Field(lt=0)
    usable: bool
    score: Literal["first-token", "phrases"] | None = None
    opening_tokens: list[list[int]] | None = None
    ablation: Literal["plain", "affine"] | None = None
    train_rows: dict[Literal["harmful", "harmless"], list[int] | None] | None = None


def load_direction(folder: Path) -> Direction:
    """What the direction stage wrote; HoldfastError when a file is missing, damaged, or of another shape."""
    remedy = "run holdfast direction again"
    about = read_json(folder / "direction.json")
    require(_About, about, str(folder / "direction.json"), remedy)
    file = folder / "direction.safetensors"
    tensors = read_tensors(file, ("direction", "mean_difference", "harmless_mean"), remedy)
    unit, difference, harmless = tensors.values()
    if not (unit.dim() == 1 and difference.shape == unit.shape == harmless.shape[1:]):
        raise HoldfastError("its tensors do not have the shapes of a direction", str(file), remedy)
    return Direction(unit, difference, harmless, about["layer"], about["position"], about["usable"], about)


def refuse_misfit(found: Direction, folder: Path, layers: int, width: int) -> None:
    """Raises HoldfastError when the direction read from ``folder`` is not of a model of these layers and width."""
    if found.harmless.shape != (layers, width) or found.layer >= layers:
        theirs = f"layer {found.layer} of {len(found.harmless)}, {len(found.unit)} wide"
        what = f"a direction of {theirs}, does not fit a model of {layers} layers, {width} wide"
        raise HoldfastError(what, str(folder), "give a direction of the same model or of its dense original")


def load_fitting(folder: Path, model_dir: Path) -> Direction:
    """:func:`load_direction`, and HoldfastError when it does not fit the checkpoint ``model_dir``."""
    found = load_direction(folder)
    model = skeleton(model_dir)
    embedding: Any = model.get_input_embeddings()
    refuse_misfit(found, folder, len(decoder_layers(model)), embedding.embedding_dim)
    return found


def refuse_other_places(found: Direction, folder: Path, cached: Mapping[str, Tensor], where: Path) -> None:
    """Raises HoldfastError when the direction's place is not among those that activations were cached at."""
    _, positions, layers, width = cached["harmful"].shape
    refuse_misfit(found, folder, layers, width)
    if found.position < -positions:
        what = f"holds {positions} positions, and {folder} is of position {found.position}"
        raise HoldfastError(what, str(where), "cache them with the same chat template")
    rows = found.about.get("train_rows") or {}
    if any(kept and max(kept) >= len(cached[kind]) for kind, kept in rows.items()):
        raise HoldfastError(f"its train_rows are not of {where}", str(folder), "run holdfast direction again")
