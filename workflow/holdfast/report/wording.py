"""Numbers as text: shares, intervals, p-values, counts; and texts of models, fit to be shown."""

import math
import re
from collections.abc import Collection

from holdfast.report.rendering import MISSING
from holdfast.statistics import Rate

SAMPLE_CHARACTERS = 1500
# Control characters and marks that turn the direction of text could disguise what stands beside them.
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def percent(share: float) -> str:
    return MISSING if math.isnan(share) else f"{figure(100 * share, 0)} %"


def signed(change: float) -> str:
    return f"{change:+.1f}".replace("-", "−")


def count(things: Collection[object], noun: str) -> str:
    number = len(things)
    return f"{number} {noun}" + ("" if number == 1 else "s")


def names(names: list[str]) -> str:
    return f": {', '.join(names)}" if names else ""


def missing_beside(controls: list[str]) -> str:
    return f"missing beside it: {', '.join(controls)}"


def share(rate: Rate, usual_n: int = 0) -> str:
    """``12 % [7, 20]``, ``−5 % [−12, 3]``; its n is added where it is not the usual one of the table."""
    if math.isnan(rate.value):
        return MISSING
    text = percent(rate.value)
    if not math.isnan(rate.low):
        text += f" [{figure(100 * rate.low, 0)}, {figure(100 * rate.high, 0)}]"
    return text + (f" (n = {rate.n})" if usual_n and rate.n != usual_n else "")


def number(rate: Rate, digits: int) -> str:
    """``47.2 [45.0, 49.6]``."""
    if math.isnan(rate.value) or math.isnan(rate.low):
        return figure(rate.value, digits)
    low, high = (figure(v, digits) for v in (rate.low, rate.high))
    return f"{figure(rate.value, digits)} [{low}, {high}]"


def p_value(p: float) -> str:
    if math.isnan(p):
        return MISSING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def byte_count(count: float) -> str:
    """``2.3 MB``, in powers of 1,000."""
    if math.isnan(count):
        return MISSING
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" or count >= 9.95 else f"{count:.1f} {unit}"


def bracket(measure: str) -> str:
    return measure[measure.index("[") + 1 : -1]


def usual_n(counts: list[int]) -> int:
    """The most common sample size; 0 when nothing was measured."""
    made = [n for n in counts if n]
    return max(made, key=made.count) if made else 0


def whole(rate: Rate) -> str:
    return figure(rate.value, 0)


def figure(value: float, digits: int) -> str:
    if math.isnan(value):
        return MISSING
    # A broken model's perplexity has any number of digits; three tell as much.
    text = f"{value:z.{digits}f}" if abs(value) < 1e6 else f"{value:.2e}"
    return text.replace("-", "−")


def visible(text: str) -> str:
    """The text with unseen control characters replaced, cut where it is very long."""
    shown = UNSEEN.sub("\ufffd", text)
    more = len(shown) - SAMPLE_CHARACTERS
    return shown if more <= 0 else f"{shown[:SAMPLE_CHARACTERS]} … ({more} more characters)"
