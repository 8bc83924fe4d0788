"""A change from the dense model on the same items, as tables word it."""

import math
from collections.abc import Sequence

from holdfast.config.cells import AS_IS, DENSE
from holdfast.report.numbers import Numbers
from holdfast.report.rendering import MISSING
from holdfast.report.wording import signed
from holdfast.statistics import holm


def adjusted(numbers: Numbers, measures: Sequence[str]) -> dict[tuple[str, str, str], float]:
    """p-values of every (compression, method, measure), by Holm within two families: what compression did (the cells
    as they are), and where methods leave it; the dense model itself is in neither."""
    found: dict[tuple[str, str, str], float] = {}
    for done in (False, True):
        tests = [
            (c, k, m)
            for c, k in numbers.cells
            if (k != AS_IS) == done and (c, k) != (DENSE, AS_IS)
            for m in measures
        ]
        found |= dict(zip(tests, holm([numbers.get(*test).value for test in tests]), strict=True))
    return found


def changed_by(numbers: Numbers, compression: str, method: str, measure: str, of: str = "") -> str:
    """``−12.0 [−20, −3]``, percentage points; ``of``: what stands in the measure's brackets, with them."""
    change = numbers.get(compression, method, f"{measure}_change{of}")
    if math.isnan(change.value):
        return MISSING
    low, high = (f"{100 * end:.0f}".replace("-", "−") for end in (change.low, change.high))
    return f"{signed(100 * change.value)} [{low}, {high}]"


def flips(numbers: Numbers, compression: str, method: str, measure: str, of: str = "") -> str:
    """``7 / 2``: items lost and gained."""
    lost, gained = (numbers.get(compression, method, f"{measure}_{way}{of}") for way in ("lost", "gained"))
    return MISSING if not lost.n else f"{round(lost.value * lost.n)} / {round(gained.value * gained.n)}"
