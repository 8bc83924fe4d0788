"""What a search found: the best edit of every variant, on validation prompts."""

from typing import Any

from holdfast.report.measures.reading import band, point
from holdfast.statistics import Rate

UNEDITED = "unedited"  # stands where a variant does

MEASURES = {
    "search_score[VARIANT]": "mean refusal score on the harmful validation prompts, n, of the variant's best edit: the "
    "one made, or else the first; of no edit for VARIANT unedited, "
    "missing where nothing was to be gained",
    "search_kl[VARIANT]": "its mean KL divergence on the harmless validation prompts, nats",
    "search_layer[VARIANT]": "its first layer",
    "search_alpha[VARIANT]": "its strength",
    "search_chosen[VARIANT]": "1 for the edit that was made, else 0",
    "search_refused[VARIANT]": "share of harmful validation prompts refused, where it was verified with answers",
    "search_over_refusal[VARIANT]": "the same of harmless validation prompts",
}


def search(edit: dict[str, Any]) -> dict[str, Rate]:
    """The measures of one ``edit.json``; none where nothing was searched."""
    validation = edit.get("validation")
    if not validation:
        return {}
    measured = {}
    if edit.get("trace"):
        unedited = edit["trace"][0]
        measured[f"search_score[{UNEDITED}]"] = point(unedited["refusal_score"])._replace(
            n=unedited.get("prompts") or 0
        )
    measured |= _verified(UNEDITED, validation["before"])
    best: dict[str, dict[str, Any]] = {}
    for row in edit.get("leaderboard") or []:
        if row["chosen"] or row["variant"] not in best:
            best[row["variant"]] = row
    for variant, row in best.items():
        measured |= {
            f"search_score[{variant}]": point(row["refusal_score"])._replace(n=row["prompts"]),
            f"search_kl[{variant}]": point(row["kl"])._replace(n=row["prompts"]),
            f"search_layer[{variant}]": point(row["layers"][0]),
            f"search_alpha[{variant}]": point(row["alpha"]),
            f"search_chosen[{variant}]": point(float(row["chosen"])),
        }
        for tried in validation["tries"]:
            if all(tried[key] == row[key] for key in ("variant", "layers", "alpha")):
                measured |= _verified(variant, tried)
    return measured


def _verified(variant: str, rates: dict[str, Any]) -> dict[str, Rate]:
    return {
        f"search_refused[{variant}]": band(rates["harmful_refused"], "value"),
        f"search_over_refusal[{variant}]": band(rates["harmless_refused"], "value"),
    }
