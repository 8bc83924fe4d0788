"""Reading one file of a cell, and the rates made of it; what is missing is NaN."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from holdfast.errors import HoldfastError
from holdfast.evaluation.judges import substring_lists
from holdfast.files import read_json, read_jsonl
from holdfast.records import Record, require
from holdfast.statistics import Rate, wilson, wilson_of_share

NOTHING = Rate(math.nan, 0, math.nan, math.nan)
Verdicts = dict[str, dict[str, Any]]


def json_object(path: Path, kind: type[Record]) -> dict[str, Any] | None:
    """The file's object, or None when it is missing; HoldfastError when a field of ``kind`` has another type."""
    if not path.is_file():
        return None
    value: dict[str, Any] = read_json(path)
    require(kind, value, str(path), "delete it and run its stage again")
    return value


def number(value: Any) -> float:
    return math.nan if value is None else float(value)


def point(value: Any) -> Rate:
    return NOTHING._replace(value=number(value))


def share(flags: list[bool]) -> Rate:
    return wilson(sum(flags), len(flags)) if flags else NOTHING


def counted(verdicts: Verdicts | None, holds: Callable[[dict[str, Any]], bool | None]) -> Rate:
    """Share of verdicts of which something holds; those that do not say (None) are left out of n."""
    said = [] if verdicts is None else [holds(v) for v in verdicts.values()]
    return share([s for s in said if s is not None])


def unfinished(verdict: dict[str, Any]) -> bool:
    """Was the answer cut before its first word, in a thought?"""
    return bool(verdict.get("label") == "unfinished")


def degenerate(verdict: dict[str, Any]) -> bool | None:
    return None if unfinished(verdict) else bool(verdict["degenerate"])


def verdict_file(cell: Path, prompts: str, judge: str) -> Path:
    """Where a judge's verdicts on a prompt set lie: the lists' together, each model's in its own folder."""
    return cell / "verdicts" / ("" if judge in substring_lists() else judge) / f"{prompts}.jsonl"


def verdicts(cell: Path, prompts: str, judge: str) -> Verdicts | None:
    """The judge's verdicts by prompt id, or None when the file is missing."""
    path = verdict_file(cell, prompts, judge)
    if not path.is_file():
        return None
    found: Verdicts = {}
    for record in read_jsonl(path):
        check(record, ("prompt_id", "judge"), path)
        if record["judge"] != judge:
            continue
        # Two completions of one prompt are not independent: an interval over them would be too narrow.
        if record["prompt_id"] in found:
            raise HoldfastError(
                f"two verdicts of {judge} on {record['prompt_id']}", str(path), "judge it again"
            )
        found[record["prompt_id"]] = record
    if not found:
        raise HoldfastError(f"no verdicts of judge {judge}", str(path), "delete it and run `holdfast judge`")
    return found


def check(record: dict[str, Any], strings: tuple[str, ...], path: Path) -> None:
    good = all(isinstance(record.get(k), str) for k in strings)
    # Only a model's verdict, which says what it thinks of the attack, need not say whether it was refused.
    said = isinstance(record.get("refused"), bool) or "attack_success" in record
    if not good or not said or not isinstance(record.get("degenerate"), bool):
        raise HoldfastError(
            f"a verdict lacks {', '.join(strings)}, refused or degenerate",
            str(path),
            "delete it and judge again",
        )


def weights(provenance: dict[str, Any]) -> dict[str, Rate]:
    return {key: point(provenance.get(key)) for key in ("density", "bits_per_weight")}


def band(found: dict[str, Any] | None, middle: str) -> Rate:
    band = found or {}
    low, high = number(band.get("low")), number(band.get("high"))
    return Rate(number(band.get(middle)), band.get("n") or 0, low, high)


def clustered(prompts: list[list[bool]]) -> Rate:
    """Share over several tries of the same prompts (random directions), n and interval as of one try.

    Tries of one prompt are not independent: counting each would make the interval too narrow.
    """
    if not prompts:
        return NOTHING
    mean = sum(sum(tries) / len(tries) for tries in prompts) / len(prompts)
    return wilson_of_share(mean, len(prompts))
