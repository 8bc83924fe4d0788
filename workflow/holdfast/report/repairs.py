"""Edited cells beside their as-is cells and their random controls."""

from dataclasses import dataclass

from holdfast.config.cells import AS_IS
from holdfast.report.measures.paired import weakest
from holdfast.report.numbers import Numbers
from holdfast.statistics import Rate, holm

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Repair:
    """One edited cell beside its as-is cell and its random controls; p-values by Holm over the model."""

    compression: str
    method: str
    before: Rate
    after: Rate
    control: list[Rate]
    missing_controls: list[str]  # those that the study has, without record or answers
    p: float
    p_control: float

    @property
    def lowers(self) -> bool:
        """ASR is lower than as-is and than every control that the study has, both by McNemar after Holm."""
        if not self.control or self.missing_controls:
            return False
        below = all(self.after.value < rate.value for rate in (self.before, *self.control))
        return below and self.p < SIGNIFICANT and self.p_control < SIGNIFICANT

    @property
    def raises(self) -> bool:
        return self.after.value > self.before.value and self.p < SIGNIFICANT


def repairs(numbers: Numbers) -> list[Repair]:
    """Every repaired cell of a model; Holm runs over these rows, against as-is and against control apart."""
    cells = numbers.repairs()
    raw = [numbers.get(c, k, "mcnemar_p").value for c, k in cells]
    against = [_weakest(numbers, c, k) for c, k in cells]
    return [
        Repair(
            compression,
            method,
            numbers.get(compression, AS_IS, "attack_success_rate"),
            numbers.get(compression, method, "attack_success_rate"),
            [
                numbers.get(compression, r, "attack_success_rate")
                for r in numbers.controls(compression, method)
            ],
            numbers.missing_controls(compression, method, "attack_success_rate"),
            p,
            p_control,
        )
        for (compression, method), p, p_control in zip(cells, holm(raw), holm(against), strict=True)
    ]


def beside_as_is(numbers: Numbers) -> dict[tuple[str, str], float]:
    """McNemar's p of every (compression, method) that is no control against as-is.

    By Holm over the edits, so that it is the one of :func:`repairs`, and over all other methods apart.
    """
    edits = {(row.compression, row.method): row.p for row in repairs(numbers)}
    rivals = _rivals(numbers)
    adjusted = holm([numbers.get(c, k, "mcnemar_p").value for c, k in rivals])
    p = edits | dict(zip(rivals, adjusted, strict=True))
    return {cell: p[cell] for cell in numbers.methods() if cell in p}


def beside_controls(numbers: Numbers) -> dict[tuple[str, str], float]:
    """McNemar's p of every (compression, method) that has a control against it, by Holm as in :func:`beside_as_is`."""
    rivals = [cell for cell in _rivals(numbers) if numbers.controls(*cell)]
    adjusted = holm([_weakest(numbers, *cell) for cell in rivals])
    edits = {(row.compression, row.method): row.p_control for row in repairs(numbers) if row.control}
    return edits | dict(zip(rivals, adjusted, strict=True))


def _rivals(numbers: Numbers) -> list[tuple[str, str]]:
    """Everything done to a compressed model but AIRD's edits and controls."""
    apart = {*numbers.repairs(), *(cell for cell in numbers.cells if cell[1] in numbers.control_methods)}
    return [cell for cell in numbers.methods() if cell not in apart]


def _weakest(numbers: Numbers, compression: str, method: str) -> float:
    controls = numbers.controls(compression, method)
    return weakest([numbers.get(compression, method, f"mcnemar_p[{r}]") for r in controls]).value
