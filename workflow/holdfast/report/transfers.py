"""Which directions act in the other model, by the rule that the table and its finding share."""

import math
from dataclasses import dataclass

from holdfast.config.cells import AS_IS
from holdfast.report.measures.transfer import SCORES, WAYS
from holdfast.report.numbers import Numbers
from holdfast.report.repairs import SIGNIFICANT
from holdfast.statistics import holm


@dataclass(frozen=True)
class Transfer:
    """One model's direction in the other.

    ``p`` by score (bypass, induce), adjusted by Holm over a model's rows; ``beyond``: both scores lie outside of the
    range of the random directions tried, on the right side.
    """

    compression: str
    way: str
    p: dict[str, float]
    beyond: bool

    @property
    def acts(self) -> bool:
        """Beyond random directions both ways: ablated it lowers the score, added it raises it."""
        return max(self.p.values()) < SIGNIFICANT


def transfers(numbers: Numbers) -> list[Transfer]:
    """Every compression, both ways, that has been measured."""
    raw = {
        (compression, way): [numbers.get(compression, AS_IS, f"{prefix}_{score}_p").value for score in SCORES]
        for compression in numbers.compressed()
        for way, (prefix, _) in WAYS.items()
    }
    measured = {place: p for place, p in raw.items() if not any(map(math.isnan, p))}
    adjusted = [holm([p[number] for p in measured.values()]) for number in range(len(SCORES))]
    return [
        Transfer(compression, way, dict(zip(SCORES, p, strict=True)), _beyond(numbers, compression, way))
        for (compression, way), *p in zip(measured, *adjusted, strict=True)
    ]


def _beyond(numbers: Numbers, compression: str, way: str) -> bool:
    prefix, other = WAYS[way]
    bypass, lowest, induce, highest = (
        numbers.get(compression, AS_IS, f"{prefix}_{score}[{whose}]")
        for score in SCORES
        for whose in (other, "null")
    )
    return bypass.value < lowest.low and induce.value > highest.high
