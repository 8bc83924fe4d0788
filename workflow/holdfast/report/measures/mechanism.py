"""What a compression is, and where refusal lives in it: direction, comparison, mediation."""

from pathlib import Path
from typing import Any

import pandas as pd

from holdfast.config.cells import DENSE
from holdfast.errors import HoldfastError
from holdfast.report.measures import mediation
from holdfast.report.measures.formats import Comparison, Direction, Provenance
from holdfast.report.measures.reading import band, json_object, point, weights
from holdfast.statistics import Rate

MEASURES = {
    "pruned": "1 when the compression prunes, else 0",
    "quantized": "1 when the compression quantizes, else 0",
    "cosine_to_dense": "cosine of the compressed and the dense model's refusal directions; jackknife over prompts",
    "cosine_to_dense_same_source": "the same with both taken at the dense model's layer and position",
    "cosine_null_split_half": "cosine of directions from two halves of the same prompts: mean, interval",
    "cosine_null_random": "cosine of chance directions: mean, interval",
    "cosine_null_shuffled": "cosine of differences of means over shuffled labels: mean, interval",
    "cosine_p": "p that two halves of the dense model's prompts give a cosine as low, one-sided",
    "direction_explained": "share of the compressed direction's squared length along the dense one; as cosine_to_dense",
    "cosine_at_layer[LAYER]": "cosine of the two models' differences of means at this layer, at the dense direction's "
    "position; jackknife over prompts",
    "cosine_at_layer_null_split_half[LAYER]": "its null, as cosine_null_split_half: mean, interval",
    "cosine_at_layer_null_random[LAYER]": "as cosine_null_random",
    "cosine_at_layer_null_shuffled[LAYER]": "as cosine_null_shuffled",
    "cosine_at_layer_p[LAYER]": "p that resampling the dense model's prompts gives a cosine as low, Holm over "
    "comparison.csv (every layer and position)",
    "source_layer": "layer the direction comes from",
    "source_position": "token position it comes from, from the end",
    "direction_seconds": "seconds that caching activations and finding the direction took together",
    "direction_usable": "1 when a candidate passed every filter, else 0",
    "direction_published_bounds": "1 when it passes KL <= 0.1 and induce >= 0, the bounds of Arditi et al.",
    "score_valid": "1 when the refusal score is known to track generated refusals, else 0",
    "score_checked": "1 when there were refusals and answers enough to check it",
    "score_auroc": "AUROC of the refusal score against generated refusals, over all validation prompts",
    "score_check_auroc": "the one that decides score_valid, over the prompts that it is checked on; its interval",
    "score_check_harmful": "1 when these are the harmful prompts alone; 0 when they are of both kinds, so that telling "
    "the kinds apart is enough",
} | mediation.MEASURES

NULLS = ("split_half", "random", "shuffled")


def mechanism(compression: Path, name: str) -> dict[str, Rate]:
    provenance = json_object(compression / "checkpoint/provenance.json", Provenance) or {}
    recipe = provenance.get("recipe")
    kind = recipe if isinstance(recipe, dict) else {}
    # Neither key in a compressed model's recipe: what it does is not known, and not guessed from its name.
    known = name == DENSE or bool({"prune", "quantize", "source"} & set(kind))
    pruned, quantized = bool(kind.get("prune")), bool(kind.get("quantize"))
    if name != DENSE and "source" in kind:  # a published checkpoint's weights tell what it is
        quantized, pruned = provenance.get("density") is None, (provenance.get("density") or 1) < 0.999
    measured = {
        **weights(provenance),
        "pruned": point(float(pruned) if known else None),
        "quantized": point(float(quantized) if known else None),
    }
    comparison = json_object(compression / "comparison.json", Comparison)
    # The dense model is what is compared with: without a file there is nothing missing.
    if comparison is not None or name != DENSE:
        comparison = comparison or {}
        measured["cosine_to_dense"] = band(comparison.get("cosine"), "value")
        measured["cosine_to_dense_same_source"] = band(comparison.get("cosine_same_source"), "value")
        measured["cosine_p"] = point(comparison.get("p"))
        measured["direction_explained"] = band(comparison.get("explained"), "value")
        for null in NULLS:
            measured[f"cosine_null_{null}"] = band(comparison.get(f"null_{null}"), "mean")
        measured |= _by_layer(compression / "comparison.csv", comparison)
    direction = json_object(compression / "direction/direction.json", Direction) or {}
    usable = direction.get("usable")
    return (
        measured
        | {
            "source_layer": point(direction.get("layer")),
            "source_position": point(direction.get("position")),
            "direction_seconds": point(_seconds(compression, "activations", "direction")),
            "direction_usable": point(None if usable is None else float(usable)),
            "direction_published_bounds": point(direction.get("passes_published_bounds")),
        }
        | mediation.mediation(compression / "mediation/verdicts.jsonl", of_dense=name == DENSE)
        | {key: point(direction.get(key)) for key in ("score_valid", "score_checked")}
        | {"score_auroc": point((direction.get("auroc") or {}).get(direction.get("score")))}
        | _score_check(direction)
    )


def _score_check(direction: dict[str, Any]) -> dict[str, Rate]:
    """What the score that the direction was chosen by was checked with."""
    check = (direction.get("score_check") or {}).get(direction.get("score")) or {}
    on = check.get("on")
    return {
        "score_check_auroc": band(check.get("auroc"), "value"),
        "score_check_harmful": point(None if on is None else float(on == "harmful")),
    }


def _by_layer(path: Path, comparison: dict[str, Any]) -> dict[str, Rate]:
    """The comparison at the dense direction's position, every layer where both models have differences of means."""
    if not (path.is_file() and "dense" in comparison):
        return {}
    bounds = ("", "_low", "_high")
    columns = ("cosine", "low", "high", *(f"{null}{bound}" for null in NULLS for bound in bounds), "p_holm")
    try:
        table = (
            pd.read_csv(path, float_precision="round_trip")
            .set_index(["position", "layer"])[list(columns)]
            .astype("float64")
        )
        rows = table.xs(comparison["dense"]["position"], level="position").dropna(subset="cosine")
    except (KeyError, ValueError) as error:
        raise HoldfastError(
            "not a comparison's table", str(path), "delete it and run `holdfast compare`"
        ) from error
    n = (comparison.get("cosine") or {}).get("n") or 0
    measured = {}
    for layer, row in rows.iterrows():
        measured[f"cosine_at_layer[{layer}]"] = Rate(row["cosine"], n, row["low"], row["high"])
        for null in NULLS:
            middle, low, high = (row[f"{null}{bound}"] for bound in bounds)
            measured[f"cosine_at_layer_null_{null}[{layer}]"] = Rate(middle, 0, low, high)
        measured[f"cosine_at_layer_p[{layer}]"] = point(row["p_holm"])
    return measured


def _seconds(compression: Path, *stages: str) -> float | None:
    """What these stages took together; None when one has left no record."""
    records = [json_object(compression / stage / "provenance.json", Provenance) or {} for stage in stages]
    return sum(r["seconds"] for r in records) if all("seconds" in r for r in records) else None
