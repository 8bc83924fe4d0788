"""What a study asks of a cell beside the usual prompts: the attack under other settings, borderline prompts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from holdfast.evaluation.judges import attack_success
from holdfast.evaluation.judges.substring import quick_judge
from holdfast.files import read_jsonl
from holdfast.report.measures.reading import (
    NOTHING,
    check,
    clustered,
    counted,
    degenerate,
    point,
    share,
    unfinished,
    verdict_file,
    verdicts,
)
from holdfast.statistics import Rate

MEASURES = {
    "setting_success[SETTING]": "share of attack prompts whose attack succeeds under a setting of evaluate.attacks, by "
    "the headline judge: mean over its samples; Wilson, n = prompts",
    "setting_any_success[SETTING]": "share of attack prompts with a success among several samples; Wilson",
    "setting_degenerate[SETTING]": "share of completions that are degenerate, as setting_success",
    "setting_unfinished[SETTING]": "share of completions cut before their first word, as setting_success",
    "setting_samples[SETTING]": "samples a prompt",
    "over_refusal_borderline": "share of borderline (harmless) prompts refused, by the first list",
    "over_refusal_borderline_degenerate": "share of borderline prompts whose completion is degenerate",
}


def settings(cell: Path, names: Sequence[str], judge: str) -> dict[str, Rate]:
    """Attack success of a cell under every setting."""
    measured = {}
    for name in names:
        tries = _tries(cell / "attacks" / name, judge)
        said = [[s for v in of_one if (s := attack_success(v)) is not None] for of_one in tries]
        successes = [of_one for of_one in said if of_one]
        samples = max(map(len, tries), default=0)
        measured[f"setting_success[{name}]"] = clustered(successes)
        if samples > 1:
            measured[f"setting_any_success[{name}]"] = share([any(of_one) for of_one in successes])
        whole = [[v["degenerate"] for v in t if not unfinished(v)] for t in tries]
        measured |= {
            f"setting_degenerate[{name}]": clustered([of_one for of_one in whole if of_one]),
            f"setting_unfinished[{name}]": clustered([[unfinished(v) for v in t] for t in tries]),
            f"setting_samples[{name}]": point(samples) if samples else NOTHING,
        }
    return measured


def borderline(cell: Path, judges: Sequence[str]) -> dict[str, Rate]:
    """Over-refusal of prompts that only sound harmful."""
    found = verdicts(cell / "borderline", "borderline", quick_judge(judges))
    return {
        "over_refusal_borderline": counted(found, lambda v: v["refused"]),
        "over_refusal_borderline_degenerate": counted(found, degenerate),
    }


def _tries(cell: Path, judge: str) -> list[list[dict[str, Any]]]:
    """The judge's verdicts on each prompt's samples; none when the file is missing."""
    path = verdict_file(cell, "attack", judge)
    found: dict[str, list[dict[str, Any]]] = {}
    for record in read_jsonl(path) if path.is_file() else []:
        check(record, ("prompt_id", "judge", "label"), path)
        if record["judge"] == judge:
            found.setdefault(record["prompt_id"], []).append(record)
    return list(found.values())
