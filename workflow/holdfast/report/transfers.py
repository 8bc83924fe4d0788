"""Which directions act in the other model, by the rule that the table and its finding share."""

import math
from dataclasses import dataclass

from holdfast.config.cells import AS_IS
from holdfast.report.measures.transfer import CHANCE, NULLS, SCORES, WAYS
from holdfast.report.numbers import Numbers
from holdfast.report.repairs import SIGNIFICANT
from holdfast.statistics import Rate, holm


@dataclass(frozen=True)
class Transfer:
    """One model's direction in the other.

    ``p`` by score (bypass, induce), the larger of that against random directions and that against shuffled labels (an
    intersection–union test: beyond both), adjusted by Holm over a model's rows; ``beyond``: both scores lie outside
    of the range of the directions of both nulls that were tried, on the right side.
    """

    compression: str
    way: str
    p: dict[str, float]
    beyond: bool

    @property
    def acts(self) -> bool:
        """Beyond both nulls both ways: ablated it lowers the score, added it raises it."""
        return max(self.p.values()) < SIGNIFICANT


def transfers(numbers: Numbers) -> list[Transfer]:
    """Every compression, both ways, that has been measured."""
    raw = {
        (compression, way): [
            _larger([numbers.get(compression, AS_IS, f"{prefix}_{score}_p{null}").value for null in CHANCE])
            for score in SCORES
        ]
        for compression in numbers.compressed()
        for way, (prefix, _) in WAYS.items()
    }
    measured = {place: p for place, p in raw.items() if not any(map(math.isnan, p))}
    adjusted = [holm([p[number] for p in measured.values()]) for number in range(len(SCORES))]
    return [
        Transfer(compression, way, dict(zip(SCORES, p, strict=True)), _beyond(numbers, compression, way))
        for (compression, way), *p in zip(measured, *adjusted, strict=True)
    ]


def _larger(p: list[float]) -> float:
    """NaN where one is missing."""
    return math.nan if any(map(math.isnan, p)) else max(p)


def _beyond(numbers: Numbers, compression: str, way: str) -> bool:
    prefix, other = WAYS[way]

    def of(score: str, whose: str) -> Rate:
        return numbers.get(compression, AS_IS, f"{prefix}_{score}[{whose}]")

    return all(
        of("bypass", other).value < of("bypass", NULLS[null]).low
        and of("induce", other).value > of("induce", NULLS[null]).high
        for null in CHANCE
    )
