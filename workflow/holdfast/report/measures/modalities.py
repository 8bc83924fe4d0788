"""Directions of text, images and drawn text: their cosines, and what they do, from ``modalities/modalities.json``."""

from pathlib import Path
from typing import Any

from holdfast.report.measures.formats import Modalities
from holdfast.report.measures.reading import band, json_object, point
from holdfast.statistics import Rate

# What stands in modalities.json, by the pair of directions that a measure names.
PAIRED = {"between": "{}", "to_chosen": "refusal-{}", "to_dense": "dense-{}"}
NULLS = ("split_half", "random", "shuffled")
SCORES = ("bypass", "induce")
# Whose direction, by its name in the file; ``text``, the refusal direction, is the one that edits use.
WHOSE = {"baseline": "baseline", "own": "own", "other": "refusal"}
CHANCE = {"": "null", "_shuffled": "null-shuffled"}

MEASURES = {
    "modality_cosine[PAIR]": "cosine of two differences of means at one place; jackknife over prompts. PAIR: "
    "text-image, text-typographic, image-typographic; refusal-MODALITY, with the refusal direction; dense-MODALITY, "
    "with the dense model's of the same modality",
    "modality_cosine_null_split_half[PAIR]": "its null, halves of the prompts of whichever of the two agree less: "
    "mean, interval",
    "modality_cosine_null_random[PAIR]": "as cosine_null_random: mean, interval",
    "modality_cosine_null_shuffled[PAIR]": "as cosine_null_shuffled: mean, interval",
    "modality_cosine_p_below[PAIR]": "p that resampling prompts gives a cosine as low, one-sided",
    "modality_cosine_p_chance[PAIR]": "p that they agree by chance: random directions and shuffled labels, the larger",
    "modality_bypass[MODALITY,WHOSE]": "mean refusal score (log-odds) of harmful halves of a modality's pairs with a "
    "direction ablated: the refusal direction, the modality's own, none (baseline), refusal-baseline and own-baseline "
    "paired; bootstrap; and, mean and range, random (null) and of shuffled labels (null-shuffled)",
    "modality_bypass_p[MODALITY]": "p that a random direction or one of shuffled labels, whichever does so more "
    "easily, lowers the score as far as the refusal direction, one-sided",
    "modality_induce[MODALITY,WHOSE]": "the same of benign halves with the difference of means added",
    "modality_induce_p[MODALITY]": "p that one raises it as far",
}


def modalities(path: Path) -> dict[str, Rate]:
    """The measures of ``modalities.json``; none where it is missing."""
    found = json_object(path, Modalities)
    if found is None:
        return {}
    measured: dict[str, Rate] = {}
    for kind, name in PAIRED.items():
        for pair, of in (found.get(kind) or {}).items():
            measured |= _cosine(name.format(pair), of or {})
    for modality, scores in found["tried"].items():
        for score in SCORES:
            measured |= _tried(modality, score, (scores or {}).get(score) or {})
    return measured


def _cosine(pair: str, of: dict[str, Any]) -> dict[str, Rate]:
    return (
        {f"modality_cosine[{pair}]": band(of.get("cosine"), "value")}
        | {f"modality_cosine_null_{null}[{pair}]": band(of.get(f"null_{null}"), "mean") for null in NULLS}
        | {f"modality_cosine_{p}[{pair}]": point(of.get(p)) for p in ("p_below", "p_chance")}
    )


def _tried(modality: str, score: str, of: dict[str, Any]) -> dict[str, Rate]:
    name = f"modality_{score}"
    measured = {f"{name}[{modality},{whose}]": band(of.get(key), "value") for key, whose in WHOSE.items()}
    for key, whose in (("other", "refusal"), ("own", "own")):
        measured[f"{name}[{modality},{whose}-baseline]"] = band(of.get(f"{key}_effect"), "value")
    for suffix, null in CHANCE.items():
        measured[f"{name}[{modality},{null}]"] = band(of.get(f"null{suffix}"), "mean")
    p = [value for suffix in CHANCE if (value := of.get(f"p{suffix}")) is not None]
    return measured | {f"{name}_p[{modality}]": point(max(p) if len(p) == len(CHANCE) else None)}
