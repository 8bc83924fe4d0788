"""Does an edit along a direction found on text repair refusals of images too? By a stated rule, for each modality."""

import math
from dataclasses import dataclass

from holdfast.config.cells import AS_IS
from holdfast.report.claims import overall
from holdfast.report.numbers import Numbers
from holdfast.report.repairs import SIGNIFICANT
from holdfast.report.wording import missing_beside, p_value, share
from holdfast.statistics import holm

GENUINE = "pair_genuine_refusal"
HALF = 0.5


@dataclass(frozen=True)
class PairRepair:
    """One AIRD edit on the pairs of one modality; p-values by Holm over a model's edits and single modalities."""

    compression: str
    method: str
    modality: str
    p: float
    p_control: float


def pair_repairs(numbers: Numbers, modalities: list[str]) -> list[PairRepair]:
    """Every edit that is no control and was judged on pairs; Holm runs over these, against as-is and control apart,
    without those that left the weights as they were: there is nothing to test."""
    raw = {
        (c, k, m): [numbers.get(c, k, f"pair_repair_{p}[{m}]").value for p in ("p", "p_control")]
        for c, k in numbers.repairs()
        for m in modalities
    }
    judged = {row: p for row, p in raw.items() if not math.isnan(p[0])}
    made = {row for row in judged if not numbers.unedited(*row[:2])}
    adjusted = (
        holm([p[number] if row in made else math.nan for row, p in judged.items()]) for number in (0, 1)
    )
    return [PairRepair(*row, *p) for row, p in zip(judged, zip(*adjusted, strict=True), strict=True)]


def verdict(numbers: Numbers, row: PairRepair) -> str:
    """*Supported*: genuine refusals rise above as-is and every random control (McNemar, Holm), and discrimination rises
    with them, its interval above as-is's: what is refused of benign halves too is no repair. *Contradicted*: genuine
    refusals fall (the same test), or, without that rise, the interval of the share that comes back lies below a half.

    ``no edit``: the search left the weights as they were. ``nothing lost``: the interval of the paired difference from
    the dense model does not lie below 0. ``no control``: the study has none. Where it has one without answers, nothing
    but a fall is decided.
    """
    c, k, m = row.compression, row.method, row.modality
    if not numbers.get(c, AS_IS, f"{GENUINE}_change[{m}]").high < 0:
        return "nothing lost"
    if numbers.unedited(c, k):
        return "no edit"
    before, after = (numbers.get(c, name, f"{GENUINE}[{m}]").value for name in (AS_IS, k))
    if row.p < SIGNIFICANT and after < before:
        return "contradicted"
    if missing_controls(numbers, row):
        return "not decided"
    controls = numbers.controls(c, k)
    if not controls:
        return "no control"
    return _beside_controls(numbers, row, controls)


def _beside_controls(numbers: Numbers, row: PairRepair, controls: list[str]) -> str:
    c, k, m = row.compression, row.method, row.modality
    before, after, *beside = (numbers.get(c, name, f"{GENUINE}[{m}]").value for name in (AS_IS, k, *controls))
    if after > max(before, *beside) and row.p < SIGNIFICANT and row.p_control < SIGNIFICANT:
        tells, told = (numbers.get(c, name, f"pair_discrimination[{m}]") for name in (k, AS_IS))
        return "supported" if tells.low > told.high else "not decided"
    back = numbers.get(c, k, f"pair_repair_recovered[{m}]")
    return "contradicted" if back.high < HALF else "not decided"


def missing_controls(numbers: Numbers, row: PairRepair) -> list[str]:
    """The random controls that the study has for an edit and that say nothing of pairs of this modality."""
    return numbers.missing_controls(row.compression, row.method, f"{GENUINE}[{row.modality}]")


def pair_repair_findings(numbers: Numbers, modalities: list[str]) -> list[str]:
    """A line a modality: does AIRD, whose direction is found on text, give its refusals back?"""
    found = []
    rows = pair_repairs(numbers, modalities)
    for modality in modalities:
        of = {row: verdict(numbers, row) for row in rows if row.modality == modality}
        if not of:
            continue
        asked = f"Does AIRD along the direction found on text repair refusals of {modality} inputs?"
        counted = [v for v in of.values() if v not in ("nothing lost", "no edit", "no control")]
        told = "; ".join(_told(numbers, row, v) for row, v in of.items())
        found.append(f"{asked} {overall(counted).capitalize()}: {told}.")
    return found


def _told(numbers: Numbers, row: PairRepair, said: str) -> str:
    name = f"{row.compression} / {row.method}: {said}"
    if said == "not decided" and (without := missing_controls(numbers, row)):
        name += f" ({missing_beside(without)})"
    if said in ("nothing lost", "no edit"):
        return name
    back = numbers.get(row.compression, row.method, f"pair_repair_recovered[{row.modality}]")
    random = [
        share(numbers.get(row.compression, k, f"pair_repair_recovered[{row.modality}]"))
        for k in numbers.controls(row.compression, row.method)
    ]
    beside = f", random {', '.join(random)}" if random else ""
    over = [
        share(numbers.get(row.compression, k, f"pair_over_refusal[{row.modality}]"))
        for k in (row.method, AS_IS)
    ]
    return (
        f"{name}, {share(back)} of the lost refusals back{beside} (p {p_value(row.p)} against as-is, "
        f"{p_value(row.p_control)} against random), benign halves refused {over[0]}, as-is {over[1]}"
    )
