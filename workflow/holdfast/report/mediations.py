"""Which directions mediate refusal, by the paired tests that the table and its finding share."""

from dataclasses import dataclass

from holdfast.config.cells import AS_IS, DENSE
from holdfast.report.measures.mediation import CONTROLS, NONE, of_the_dense
from holdfast.report.numbers import Numbers
from holdfast.report.repairs import SIGNIFICANT
from holdfast.statistics import Rate, holm


@dataclass(frozen=True)
class Mediation:
    """Refusal of one kind of prompts under one intervention, beside none and its control, random directions.

    ``p`` and ``p_random`` are adjusted by Holm over a model's rows, each apart.
    """

    compression: str
    kind: str
    intervention: str
    none: Rate
    under: Rate
    random: Rate
    p: float
    p_random: float

    @property
    def acts(self) -> bool:
        """Ablation lowers and addition raises refusal, beyond no intervention and beyond every random direction."""
        others = (self.none.value, self.random.value)
        lowered, raised = self.under.value < min(others), self.under.value > max(others)
        moved = lowered if self.kind == "harmful" else raised
        return moved and max(self.p, self.p_random) < SIGNIFICANT


def mediations(numbers: Numbers) -> list[Mediation]:
    """Every intervention with a direction; what was not tried has no rates."""
    listed = [
        (compression, kind, name)
        for compression in numbers.compressions
        for kind, controls in CONTROLS.items()
        for name in controls
        if not (compression == DENSE and of_the_dense(name))
    ]
    against_none, against_random = (
        holm([numbers.get(compression, AS_IS, f"{measure}[{name}]").value for compression, _, name in listed])
        for measure in ("mediation_p", "mediation_p_random")
    )
    found = []
    for (compression, kind, name), p, p_random in zip(listed, against_none, against_random, strict=True):
        before, under, random = (
            numbers.get(compression, AS_IS, f"refusal_{kind}[{i}]")
            for i in (NONE, name, CONTROLS[kind][name])
        )
        found.append(Mediation(compression, kind, name, before, under, random, p, p_random))
    return found
