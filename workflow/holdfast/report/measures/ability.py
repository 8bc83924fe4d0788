"""Perplexity and zero-shot accuracy of a cell."""

from pathlib import Path

from holdfast.report.measures.formats import Perplexity, ZeroShot
from holdfast.report.measures.reading import NOTHING, json_object, number
from holdfast.statistics import Rate, wilson

MEASURES = {
    "perplexity": "per token; n = windows",
    "zero_shot[TASK]": "the task's own metric, 0..1; Wilson",
}


def ability(cell: Path, tasks: list[str]) -> dict[str, Rate]:
    text = json_object(cell / "ability/perplexity.json", Perplexity) or {}
    low, high = number(text.get("low")), number(text.get("high"))
    measured = {"perplexity": Rate(number(text.get("perplexity")), text.get("windows") or 0, low, high)}
    scores = json_object(cell / "ability/zero_shot.json", ZeroShot) or {}
    for task in tasks:
        score = scores.get(task) or {}
        n = score.get("n") or 0
        measured[f"zero_shot[{task}]"] = wilson(round(score["value"] * n), n) if n else NOTHING
    return measured
