"""Yes-or-no outcomes of two models on the same items: the change, flips both ways, McNemar's test.

A small net change can hide many flips, so both are given.
"""

from collections.abc import Mapping, Sequence
from math import isnan
from typing import Any

from holdfast.report.measures.reading import NOTHING, point, share
from holdfast.statistics import Rate, mcnemar_exact, paired_difference

# What is told of a measure beside the dense model's, by the suffix of its name.
BESIDE = {
    "change": "{} less the dense model's on the same {}; Newcombe, of paired proportions",
    "gained": "share of {1} of which {0} holds here and not of the dense model; Wilson",
    "lost": "share of {1} of which {0} holds of the dense model and not here; Wilson",
    "p": "exact McNemar p of {} against the dense model, same {}",
}

Outcomes = Mapping[Any, bool]


def changed(before: Outcomes, after: Outcomes) -> Rate:
    """McNemar's p, with n; missing where the two say nothing of the same items."""
    both = [(before[i], after[i]) for i in after if i in before]
    if not both:
        return NOTHING
    lost, gained = sum(b and not a for b, a in both), sum(a and not b for b, a in both)
    return point(mcnemar_exact(gained, lost))._replace(n=len(both))


def weakest(p: Sequence[Rate]) -> Rate:
    """Against several controls the weakest comparison counts: the largest p; missing without one, and where one is."""
    return max(p, key=lambda rate: rate.value) if p and not any(isnan(rate.value) for rate in p) else NOTHING


def beside(name: str, before: Outcomes, after: Outcomes) -> dict[str, Rate]:
    """``NAME_change``, ``NAME_gained``, ``NAME_lost`` and ``NAME_p``, on the items that both say something of."""
    both = [(after[i], before[i]) for i in after if i in before]
    gained, lost = [a and not b for a, b in both], [b and not a for a, b in both]
    return {
        f"{name}_change": paired_difference(*map(list, zip(*both, strict=True))) if both else NOTHING,
        f"{name}_gained": share(gained),
        f"{name}_lost": share(lost),
        f"{name}_p": changed(before, after),
    }
