"""The refusal direction: difference of means, a sweep over positions and layers, and the choice.

Arditi et al. 2024 (arXiv 2406.11717), sections 2.3 and 2.4 and appendix C.
"""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from holdfast.errors import HoldfastError
from holdfast.evaluation.generation import complete
from holdfast.evaluation.judges import substring_judge
from holdfast.files import atomic_file, atomic_folder, read_json, write_json
from holdfast.prompts.sources import read_records
from holdfast.provenance import Recorder
from holdfast.refusal.activations import load_activations
from holdfast.refusal.interventions import ablated, added
from holdfast.refusal.scores import RefusalScore, kl_divergence, learn_openings
from holdfast.statistics import auroc

DEEPEST = 0.8  # candidates in the last 20 % of the layers are discarded
ANSWER_TOKENS = 16  # of the answers the score is checked against
COLUMNS = ["position", "layer", "bypass", "induce", "kl", "dropped", "chosen"]


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


def why_dropped(row: Mapping[str, Any], n_layers: int, max_kl: float, min_induce: float) -> str:
    """The first filter a candidate fails, cheapest first; empty when it passes. NaN scores fail."""
    if row["layer"] >= int(n_layers * DEEPEST):
        return "last 20 % of the layers"
    if not row["kl"] <= max_kl:
        return f"kl > {max_kl}"
    if not row["induce"] >= min_induce:
        return f"induce < {min_induce}"
    return "bypass is NaN" if math.isnan(row["bypass"]) else ""


def choose(scores: pd.DataFrame, n_layers: int, max_kl: float = 0.1, min_induce: float = 0.0) -> pd.Series:
    """The candidate with the lowest bypass score among those that pass the filters.

    Args:
        scores: columns position, layer, bypass, induce, kl, one row a candidate.

    Raises HoldfastError when every candidate is filtered out.
    """
    dropped = scores.apply(lambda row: why_dropped(row, n_layers, max_kl, min_induce), axis=1)
    passing = scores[dropped == ""]
    if passing.empty:
        raise HoldfastError(
            "no candidate passes the filters", "direction", "no single direction mediates refusal here"
        )
    return passing.loc[passing["bypass"].idxmin()]


def best_failing(scores: pd.DataFrame) -> pd.Series:
    """Of candidates that all failed, the one with the lowest KL that induces refusal at all, else the lowest KL."""
    measured = scores.dropna(subset=["kl"])
    inducing = measured[measured["induce"] > 0]
    pool = inducing if len(inducing) else measured
    return pool.loc[pool["kl"].idxmin()]


def sweep(
    candidates: pd.DataFrame,
    n_layers: int,
    evaluate: Mapping[str, Callable[[int, int], float]],
    max_kl: float,
    min_induce: float,
) -> pd.DataFrame:
    """Score candidates lazily, cheapest filter first; what a filter dropped is not scored further.

    The choice equals the exhaustive sweep's: a dropped candidate can never be chosen. ``evaluate`` maps kl,
    induce and bypass to functions of (position, layer).
    """
    rows = []
    for candidate in tqdm(
        candidates.to_dict("records"), desc="direction sweep", unit="candidate", mininterval=2
    ):
        row = {**candidate, "bypass": float("nan"), "induce": float("nan"), "kl": float("nan")}
        if candidate["layer"] < int(n_layers * DEEPEST):
            for score, passes in (
                ("kl", lambda v: v <= max_kl),
                ("induce", lambda v: v >= min_induce),
                ("bypass", lambda v: True),
            ):
                row[score] = evaluate[score](int(row["position"]), int(row["layer"]))
                if not passes(row[score]):
                    break
        rows.append({**row, "dropped": why_dropped(row, n_layers, max_kl, min_induce), "chosen": False})
    return pd.DataFrame(rows, columns=COLUMNS)


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
    ``first-token``, ``phrases``), max_kl, min_induce, filter_train.
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
    layers = candidate_list(recipe["layers"], list(range(n_layers)), "direction.layers")
    base_harmful, base_harmless = score(model, texts["harmful"]), score(model, texts["harmless"])
    base_first = score.first_answer_token(model, texts["harmless"])

    def difference(position: int, layer: int) -> Tensor:
        return (means["harmful"] - means["harmless"])[position, layer]

    def ablation(position: int, layer: int) -> contextlib.AbstractContextManager[None]:
        r = difference(position, layer)
        mean = means["harmless"][position].float() if recipe["ablation"] == "affine" else None
        return ablated(model, (r / r.norm()).float(), mean)

    def kl(position: int, layer: int) -> float:
        with ablation(position, layer):
            return kl_divergence(base_first, score.first_answer_token(model, texts["harmless"])).mean().item()

    def induce(position: int, layer: int) -> float:
        with added(model, difference(position, layer).float(), layer):
            return score(model, texts["harmless"]).mean().item()

    def bypass(position: int, layer: int) -> float:
        with ablation(position, layer):
            return score(model, texts["harmful"]).mean().item()

    grid = pd.DataFrame([(p, layer) for p in positions for layer in layers], columns=["position", "layer"])
    table = sweep(
        grid,
        n_layers,
        {"kl": kl, "induce": induce, "bypass": bypass},
        recipe["max_kl"],
        recipe["min_induce"],
    )
    usable = bool((table["dropped"] == "").any())
    picked = (
        choose(table, n_layers, recipe["max_kl"], recipe["min_induce"]) if usable else best_failing(table)
    )
    if usable is False and pd.isna(picked["bypass"]):
        table.loc[picked.name, "bypass"] = bypass(int(picked["position"]), int(picked["layer"]))
    table.loc[picked.name, "chosen"] = True
    position, layer = int(picked["position"]), int(picked["layer"])
    raw = difference(position, layer)
    about |= {
        "position": position,
        "layer": layer,
        "token": where["tokens"][position],
        "usable": usable,
        "bounds": {"max_kl": recipe["max_kl"], "min_induce": recipe["min_induce"]},
        "passes_published_bounds": bool(usable and picked["kl"] <= 0.1 and picked["induce"] >= 0),
        "reason": "" if usable else "every candidate was filtered out; this one is the best of the failing",
        "score": kind,
        "ablation": recipe["ablation"],
        "norm": raw.norm().item(),
        "baseline": {"harmful": base_harmful.mean().item(), "harmless": base_harmless.mean().item()},
        "chosen": {k: none_if_nan(table.loc[picked.name, k]) for k in ("bypass", "induce", "kl")},
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
