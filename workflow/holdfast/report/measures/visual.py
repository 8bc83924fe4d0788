"""Accuracy on benign questions about images (VQA), and what changed from the dense model, both ways."""

from pathlib import Path

from holdfast.errors import HoldfastError
from holdfast.files import read_jsonl
from holdfast.report.measures.paired import BESIDE, beside
from holdfast.report.measures.reading import Verdicts, counted, share, unfinished, verdict_file, verdicts
from holdfast.statistics import Rate

ACCURACY = "visual_accuracy"
MEASURES = {
    ACCURACY: "share of benign questions about images answered rightly (docs/vision.md); Wilson",
    f"{ACCURACY}[CATEGORY]": "the same of one kind of question",
    "visual_refused": "share of these questions refused, by the first list; Wilson",
} | {f"{ACCURACY}_{kind}": told.format(ACCURACY, "questions") for kind, told in BESIDE.items()}


def categories_of(path: Path) -> dict[str, str]:
    """The category of every question of the file that ``holdfast visual`` wrote, by its id."""
    return {str(r["id"]): str(r.get("category") or "") for r in read_jsonl(path)}


def measured(cell: Path, dense: Path | None, categories: dict[str, str], judge: str) -> dict[str, Rate]:
    """The measures of one cell.

    Args:
        cell: ``MODEL/COMPRESSION/METHOD``.
        dense: the dense model's cell, None for that cell itself.
        categories: of the study's questions, by id.
        judge: a substring list.

    Raises:
        HoldfastError: the cell answered other questions than the study's.
    """
    here = _of_these(cell, categories, judge)
    right = _right(here)
    rates = {
        ACCURACY: share(list(right.values())),
        "visual_refused": counted(here, lambda v: None if unfinished(v) else bool(v["refused"])),
    }
    kinds = sorted(set(categories.values()) - {""})
    for kind in kinds if len(kinds) > 1 else []:
        rates[f"{ACCURACY}[{kind}]"] = share([ok for i, ok in right.items() if categories[i] == kind])
    if dense:
        rates |= beside(ACCURACY, _right(_of_these(dense, categories, judge)), right)
    return rates


def _right(found: Verdicts | None) -> dict[str, bool]:
    """Of the answers that were not cut before their first word."""
    return {i: v["right"] for i, v in found.items() if not unfinished(v)} if found else {}


def _of_these(cell: Path, categories: dict[str, str], judge: str) -> Verdicts | None:
    """The cell's scored answers; None where it has none."""
    found, where = verdicts(cell / "visual", "visual", judge), verdict_file(cell / "visual", "visual", judge)
    if found is None:
        return None
    if found.keys() != categories.keys():
        what = "answers to other questions about images than the study's"
        raise HoldfastError(what, str(where), "generate and score them again")
    if not all(isinstance(v.get("right"), bool) or unfinished(v) for v in found.values()):
        raise HoldfastError("a verdict without right", str(where), "delete it and run `holdfast score`")
    return found
