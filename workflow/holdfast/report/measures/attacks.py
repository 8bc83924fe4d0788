"""What a study asks of a cell beside the usual prompts: the attack under other settings, borderline prompts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast.errors import HoldfastError
from holdfast.evaluation.judges import attack_success
from holdfast.evaluation.judges.agreement import recorded
from holdfast.evaluation.judges.substring import quick_judge
from holdfast.files import read_jsonl
from holdfast.report.measures.answers import corrected
from holdfast.report.measures.reading import (
    NOTHING,
    Verdicts,
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
from holdfast.statistics import Rate, bootstrap_mean, mcnemar_exact

MEASURES = {
    "setting_success[SETTING]": "share of attack prompts whose attack succeeds under a setting of evaluate.attacks, by "
    "the headline judge: mean over its samples; Wilson, n = prompts",
    "setting_success_corrected[SETTING]": "the same corrected for that judge's error on PyRIT's labels, of a judge "
    "that has them; Lang & Reiczigel, n = prompts",
    "setting_any_success[SETTING]": "share of attack prompts with a success among several samples; Wilson",
    "setting_degenerate[SETTING]": "share of completions that are degenerate, as setting_success",
    "setting_unfinished[SETTING]": "share of completions cut before their first word, as setting_success",
    "setting_samples[SETTING]": "samples a prompt",
    "setting_plain[SETTING]": "attack_success_rate on the prompts of the setting, of those judged in both; Wilson",
    "setting_change[SETTING]": "mean over those prompts of the share of successes under the setting less the plain "
    "attack's success; bootstrap over prompts",
    "setting_p[SETTING]": "exact McNemar p of the setting against the plain attack, same prompts; of settings with one "
    "answer a prompt",
    "over_refusal_borderline": "share of borderline (harmless) prompts refused, by the first list",
    "over_refusal_borderline_degenerate": "share of borderline prompts whose completion is degenerate",
}


def settings(cell: Path, names: Sequence[str], judge: str) -> dict[str, Rate]:
    """Attack success of a cell under every setting."""
    measured = {}
    plain = verdicts(cell, "attack", judge)
    for name in names:
        path = verdict_file(cell / "attacks" / name, "attack", judge)
        by_prompt = _tries(path, judge)
        tries = list(by_prompt.values())
        said = [[s for v in of_one if (s := attack_success(v)) is not None] for of_one in tries]
        successes = [of_one for of_one in said if of_one]
        samples = max(map(len, tries), default=0)
        measured[f"setting_success[{name}]"] = clustered(successes)
        if recorded(judge) is not None:
            of_prompts = sum(sum(of_one) / len(of_one) for of_one in successes)
            measured[f"setting_success_corrected[{name}]"] = corrected(of_prompts, len(successes), judge)
        if samples > 1:
            measured[f"setting_any_success[{name}]"] = share([any(of_one) for of_one in successes])
        whole = [[v["degenerate"] for v in t if not unfinished(v)] for t in tries]
        measured |= {
            f"setting_degenerate[{name}]": clustered([of_one for of_one in whole if of_one]),
            f"setting_unfinished[{name}]": clustered([[unfinished(v) for v in t] for t in tries]),
            f"setting_samples[{name}]": point(samples) if samples else NOTHING,
        }
        measured |= {f"{key}[{name}]": rate for key, rate in _beside_plain(plain, by_prompt, path).items()}
    return measured


def borderline(cell: Path, judges: Sequence[str]) -> dict[str, Rate]:
    """Over-refusal of prompts that only sound harmful."""
    found = verdicts(cell / "borderline", "borderline", quick_judge(judges))
    return {
        "over_refusal_borderline": counted(found, lambda v: v["refused"]),
        "over_refusal_borderline_degenerate": counted(found, degenerate),
    }


def _beside_plain(
    plain: Verdicts | None, tries: Mapping[str, list[dict[str, Any]]], where: Path
) -> dict[str, Rate]:
    """The setting against the plain attack, on the same prompts; those that either could not judge are left out.

    Raises HoldfastError where the setting was tried on prompts that the plain attack was not.
    """
    if plain is not None and not tries.keys() <= plain.keys():
        what = "judged on other prompts than the plain attack"
        raise HoldfastError(what, str(where), "generate and judge it again")
    pairs = [
        (before, after)
        for prompt, of_one in tries.items()
        if plain is not None and (before := attack_success(plain[prompt])) is not None
        if (after := [s for v in of_one if (s := attack_success(v)) is not None])
    ]
    changes = [sum(after) / len(after) - before for before, after in pairs]
    p = NOTHING
    # Several answers a prompt are no yes-or-no outcome: their difference has an interval instead.
    if pairs and max(map(len, tries.values())) == 1:
        p = point(mcnemar_exact(changes.count(1), changes.count(-1)))._replace(n=len(pairs))
    return {
        "setting_plain": share([before for before, _ in pairs]),
        "setting_change": bootstrap_mean(changes, seed=0) if len(changes) > 1 else NOTHING,
        "setting_p": p,
    }


def _tries(path: Path, judge: str) -> dict[str, list[dict[str, Any]]]:
    """The judge's verdicts on each prompt's samples; none when the file is missing."""
    found: dict[str, list[dict[str, Any]]] = {}
    for record in read_jsonl(path) if path.is_file() else []:
        check(record, ("prompt_id", "judge", "label"), path)
        if record["judge"] == judge:
            found.setdefault(record["prompt_id"], []).append(record)
    return found
