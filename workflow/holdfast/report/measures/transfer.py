"""What one model's direction does inside the other, from ``transfer.json``."""

from pathlib import Path

from holdfast.report.measures.formats import Transfer
from holdfast.report.measures.reading import band, json_object, point
from holdfast.statistics import Rate

# The measures' names of the two ways, by their names in transfer.json, and whose direction is tried.
WAYS = {
    "dense_in_compressed": ("transfer", "dense"),
    "compressed_in_dense": ("transfer_back", "compressed"),
}
SCORES = ("bypass", "induce")
# Names of the nulls and of the p against them, by what stands after ``null`` and ``p`` in transfer.json.
NULLS = {"": "null", "_shuffled": "null-shuffled", "_split_half": "null-split-half"}
CHANCE = ("", "_shuffled")

MEASURES = {
    "transfer_bypass[WHOSE]": "in the compressed model: mean refusal score (log-odds) of harmful validation prompts "
    "with a direction ablated: own, dense, none (baseline), dense-own paired; bootstrap; and, mean and range, random "
    "(null), of the giving model over shuffled labels (null-shuffled), of halves of the own prompts (null-split-half)",
    "transfer_bypass_p": "one-sided p that a random direction lowers the score as far as the dense model's",
    "transfer_bypass_p_shuffled": "the same of a direction over shuffled labels",
    "transfer_induce[WHOSE]": "the same of harmless prompts with the difference of means added",
    "transfer_induce_p": "one-sided p that a random direction raises it as far",
    "transfer_induce_p_shuffled": "one-sided p that a direction over shuffled labels does",
    "transfer_back_bypass[WHOSE]": "in the dense model, with the compressed model's direction",
    "transfer_back_bypass_p": "as transfer_bypass_p",
    "transfer_back_bypass_p_shuffled": "as transfer_bypass_p_shuffled",
    "transfer_back_induce[WHOSE]": "as transfer_induce",
    "transfer_back_induce_p": "as transfer_induce_p",
    "transfer_back_induce_p_shuffled": "as transfer_induce_p_shuffled",
}


def transfer(path: Path) -> dict[str, Rate]:
    found = json_object(path, Transfer) or {}
    measured = {}
    for way, (prefix, other) in WAYS.items():
        for score in SCORES:
            of = (found.get(way) or {}).get(score) or {}
            name = f"{prefix}_{score}"
            for whose, key in (("baseline", "baseline"), ("own", "own"), (other, "other")):
                measured[f"{name}[{whose}]"] = band(of.get(key), "value")
            measured[f"{name}[{other}-own]"] = band(of.get("other_minus_own"), "value")
            for suffix, null in NULLS.items():
                measured[f"{name}[{null}]"] = band(of.get(f"null{suffix}"), "mean")
            for suffix in CHANCE:
                measured[f"{name}_p{suffix}"] = point(of.get(f"p{suffix}"))
    return measured
