"""The stage ``direction``: difference of means, the check of the refusal score, the sweep, and what is kept of it.

Arditi et al. 2024 (arXiv 2406.11717), sections 2.3 and 2.4 and appendix C.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from holdfast.errors import HoldfastError
from holdfast.evaluation.generation import complete
from holdfast.evaluation.judges import substring_judge
from holdfast.files import atomic_file, atomic_folder, read_json, write_json
from holdfast.prompts.sources import read_records
from holdfast.prompts.templates import answer_opening
from holdfast.provenance import Recorder
from holdfast.refusal.activations import load_activations
from holdfast.refusal.candidate_scores import Candidate, Sweep
from holdfast.refusal.scores import RefusalScore, learn_openings
from holdfast.refusal.sweep import run_sweep
from holdfast.statistics import auroc

ANSWER_TOKENS = 16  # of the answers the score is checked against


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


def check_scores(
    model: PreTrainedModel,
    tokenizer: Any,
    settings: Mapping[str, Any],
    harmful: list[str],
    harmless: list[str],
) -> tuple[dict[str, RefusalScore], dict[str, Any]]:
    """Both refusal scores, built from the model's own refusals, and their AUROC against generated refusals.

    AUROC over harmful and harmless prompts together, and over harmful ones alone where some are refused and
    some not (the harder question); None where only one kind of answer was given.
    """
    texts = harmful + harmless
    judge = substring_judge("arditi-12")
    done = complete(
        model,
        tokenizer,
        texts,
        settings,
        max_new_tokens=ANSWER_TOKENS,
        suffix=answer_opening(tokenizer, settings),
        progress="refusals to check the score against",
    )
    refused = [judge.refused(c.text, c.finish_reason) for c in done]
    openings = learn_openings([c.tokens for c, r in zip(done, refused, strict=True) if r], tokenizer)
    scores = {kind: RefusalScore(tokenizer, settings, openings, kind) for kind in ("first-token", "phrases")}
    count = len(harmful)
    values = {kind: score(model, texts).tolist() for kind, score in scores.items()}
    about = {
        "auroc": {kind: auroc_or_none(v, refused) for kind, v in values.items()},
        "auroc_harmful_only": {kind: auroc_or_none(v[:count], refused[:count]) for kind, v in values.items()},
        "refused": {"harmful": sum(refused[:count]), "harmless": sum(refused[count:])},
        "n": {"harmful": count, "harmless": len(harmless)},
        "openings": [tokenizer.decode(o) for o in openings],
        "opening_tokens": openings,
    }
    return scores, about


def auroc_or_none(scores: Sequence[float], refused: Sequence[bool]) -> float | None:
    return auroc(scores, refused) if len(set(refused)) == 2 else None


def pick_score(kind: str, about: Mapping[str, Any]) -> str:
    """``auto``: phrases, unless the first token alone tells refused harmful prompts from answered ones better.

    Over harmful and harmless prompts together a score can look good by telling the two kinds of prompt apart.
    """
    if kind != "auto":
        return kind
    first, phrases = (about["auroc_harmful_only"][k] for k in ("first-token", "phrases"))
    return "first-token" if first is not None and phrases is not None and first > phrases else "phrases"


def train_means(
    activations: Mapping[str, Tensor],
    folder: Path,
    score: RefusalScore,
    model: PreTrainedModel,
    filtered: bool,
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Float64 means [position, layer, d_model] of both kinds, and how many train prompts they are over.

    ``filtered``: only harmful prompts that score as refused and harmless ones that do not (Arditi et al. 2024,
    appendix A); all of a kind where fewer than eight would be left.
    """
    means, used = {}, {}
    for kind, sign in (("harmful", 1), ("harmless", -1)):
        values = activations[kind]
        if filtered:
            keep = score(model, [r["text"] for r in read_records(folder / f"{kind}.jsonl")]) * sign > 0
            values = values[keep] if keep.sum() >= 8 else values
        means[kind], used[kind] = values.double().mean(0), len(values)
    return means, used


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
    """
    from holdfast.checkpoints import load_model, load_tokenizer
    from holdfast.model_folders import settings

    recorder = Recorder("direction", dict(recipe))
    model, tokenizer, chosen_settings = load_model(model_dir), load_tokenizer(model_dir), settings(model_dir)
    texts = {
        "harmful": [r["text"] for r in read_records(harmful)],
        "harmless": [r["text"] for r in read_records(harmless)],
    }
    activations, where = load_activations(activations_dir)
    n_layers = where["layers"]
    scores, about = check_scores(model, tokenizer, chosen_settings, texts["harmful"], texts["harmless"])
    kind = pick_score(recipe["score"], about)
    score = scores[kind]
    means, used = train_means(activations, activations_dir, score, model, recipe["filter_train"])

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
    base_harmful, base_harmless = score(model, texts["harmful"]), score(model, texts["harmless"])
    sweep = Sweep(model, score, candidates, texts["harmful"], texts["harmless"])
    bounds = recipe["max_kl"], recipe["min_induce"]
    table, number, usable = run_sweep(sweep, n_layers, *bounds, full=recipe["full_table"])
    picked = table.loc[number]
    table.loc[number, "chosen"] = True
    position, layer = int(picked["position"]), int(picked["layer"])
    raw = differences[position, layer]
    about |= {
        "position": position,
        "layer": layer,
        "token": where["tokens"][position],
        "usable": usable,
        "bounds": dict(zip(("max_kl", "min_induce"), bounds, strict=True)),
        "passes_published_bounds": bool(usable and picked["kl"] <= 0.1 and picked["induce"] >= 0),
        "reason": "" if usable else "every candidate was filtered out; this one is the best of the failing",
        "score": kind,
        "ablation": recipe["ablation"],
        "thinking": chosen_settings["thinking"],
        "answer_position": "after an empty thought" if opening else "after the prompt",
        "answer_opening": opening,
        "norm": raw.norm().item(),
        "baseline": {"harmful": base_harmful.mean().item(), "harmless": base_harmless.mean().item()},
        "chosen": {k: none_if_nan(picked[k]) for k in ("bypass", "induce", "kl")},
        "train_prompts": used,
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
        tensors = {
            "direction": found.unit,
            "mean_difference": found.difference,
            "harmless_mean": found.harmless,
        }
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "direction.safetensors")
        with atomic_file(folder / "selection.csv") as temporary:
            table.to_csv(temporary, index=False)
        write_json(folder / "direction.json", found.about)
        recorder.write(folder / "provenance.json", inputs)


def load_direction(folder: Path) -> Direction:
    about = read_json(folder / "direction.json")
    tensors = load_file(folder / "direction.safetensors")
    return Direction(
        tensors["direction"],
        tensors["mean_difference"],
        tensors["harmless_mean"],
        about["layer"],
        about["position"],
        about["usable"],
        about,
    )


def load_score(about: Mapping[str, Any], tokenizer: Any, settings: Mapping[str, Any]) -> RefusalScore:
    """The score a direction was chosen by, for later stages to search with."""
    return RefusalScore(tokenizer, settings, about["opening_tokens"], about["score"])
