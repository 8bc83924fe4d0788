"""What an edited cell is, and its answers paired with the unedited model's and with its control's."""

from pathlib import Path
from typing import Any

from holdfast.errors import HoldfastError
from holdfast.report.measures.reading import (
    AS_IS,
    NOTHING,
    Verdicts,
    json_object,
    point,
    share,
    verdicts,
    weights,
)
from holdfast.statistics import Rate, mcnemar_exact

MEASURES = {
    "density": "share of weights that are not zero; of checkpoints that are not quantized",
    "bits_per_weight": "bits on disk per weight, scales included",
    "edit_layer": "first edited layer",
    "edit_alpha": "strength of the edit",
    "edit_random": "1 for an edit along a random direction (a control), else 0",
    "refusal_gained": "share of attack prompts answered as-is and refused after the edit",
    "refusal_lost": "share of attack prompts refused as-is and answered after the edit",
    "mcnemar_p": "exact McNemar p of the edit against as-is, same attack prompts",
    "mcnemar_p[CONTROL]": "the same against the random-direction edit that is its control",
}


def edit(compression: Path, method: str, others: list[str], judge: str) -> dict[str, Rate]:
    edit = _edit_record(compression, method)
    before = verdicts(compression / AS_IS / "verdicts/attack.jsonl", judge)
    after_file = compression / method / "verdicts/attack.jsonl"
    after = verdicts(after_file, judge)
    gained, lost, p = _paired(before, after, after_file)
    measured = {
        **weights(json_object(compression / method / "checkpoint/provenance.json") or {}),
        "edit_layer": point((edit.get("layers") or [None])[0]),
        "edit_alpha": point(edit.get("alpha")),
        "edit_random": point(_is_random(edit)),
        "refusal_gained": gained,
        "refusal_lost": lost,
        "mcnemar_p": p,
    }
    if _is_random(edit) == 0:
        for other in others:
            if _controls(compression, other, method):
                control = verdicts(compression / other / "verdicts/attack.jsonl", judge)
                measured[f"mcnemar_p[{other}]"] = _paired(control, after, after_file)[2]
    return measured


def _edit_record(compression: Path, method: str) -> dict[str, Any]:
    return json_object(compression / method / "checkpoint/edit.json") or {}


def _controls(compression: Path, other: str, method: str) -> bool:
    """Is ``other`` a random edit that is matched to ``method``, or to none in particular?"""
    if _is_random(_edit_record(compression, other)) != 1:
        return False
    recipe = (json_object(compression / other / "checkpoint/provenance.json") or {}).get("recipe")
    return not isinstance(recipe, dict) or recipe.get("matched_to", method) == method


def _is_random(edit: dict[str, Any]) -> float | None:
    return float(str(edit["direction"]).startswith("random")) if "direction" in edit else None


def _paired(before: Verdicts | None, after: Verdicts | None, where: Path) -> tuple[Rate, Rate, Rate]:
    """Share of prompts that began and that stopped to be refused, and McNemar's p (with n)."""
    if before is None or after is None:
        return NOTHING, NOTHING, NOTHING
    if before.keys() != after.keys():
        raise HoldfastError(
            "judged on other prompts than the cell it is paired with",
            str(where),
            "generate and judge it again",
        )
    gained = [after[i]["refused"] and not before[i]["refused"] for i in before]
    lost = [before[i]["refused"] and not after[i]["refused"] for i in before]
    p = NOTHING._replace(value=mcnemar_exact(sum(gained), sum(lost)), n=len(before))
    return share(gained), share(lost), p
