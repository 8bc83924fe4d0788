"""Paired harmful and benign inputs: every cell by modality."""

import math

from holdfast.config.cells import AS_IS
from holdfast.report.measures.pairs import ALL
from holdfast.report.numbers import Numbers
from holdfast.report.pair_repairs import pair_repair_findings
from holdfast.report.rendering import MISSING, Table
from holdfast.report.repairs import SIGNIFICANT
from holdfast.report.tables.flips import adjusted, changed_by, flips
from holdfast.report.wording import bracket, count, names, p_value, percent, share

SHARES = {
    "Genuine refusal": "pair_genuine_refusal",
    "Refused": "pair_refusal",
    "Incoherent": "pair_incoherent",
    "Over-refusal": "pair_over_refusal",
    "Discrimination": "pair_discrimination",
}
GENUINE = SHARES["Genuine refusal"]
NOT_MEASURABLE = "not measurable"
NET = 0.05  # of a change smaller than this many flips may be hidden
FLIPS = 0.1


def pairs_table(numbers: Numbers) -> Table | None:
    """None in a study without pairs."""
    modalities = [bracket(m) for m in numbers.measures_of(GENUINE)]
    if not modalities:
        return None
    rows_of = [(c, k, m) for c, k in numbers.cells for m in modalities]
    p_of = _adjusted(numbers, modalities)
    rows = []
    for c, k, m in rows_of:
        rates = {title: numbers.get(c, k, f"{measure}[{m}]") for title, measure in SHARES.items()}
        rows.append(
            [
                *(c, k, m, _looks(numbers, c, m), str(rates["Genuine refusal"].n or MISSING)),
                *map(share, rates.values()),
                changed_by(numbers, c, k, GENUINE, f"[{m}]"),
                flips(numbers, c, k, GENUINE, f"[{m}]"),
                p_value(p_of.get((c, k, m), math.nan)),
            ]
        )
    return Table(
        f"{numbers.model}: pairs of harmful and benign inputs",
        [
            "Compression",
            "Method",
            "Modality",
            "Uses image",
            "Pairs",
            *SHARES,
            "Genuine − dense",
            "Lost / gained",
            "p",
        ],
        rows,
        "Genuine − dense: percentage points on the same pairs [95 % interval of paired proportions]. Lost / gained: "
        "pairs whose harmful half only the dense model, only this one genuinely refuses. p: exact McNemar of these, by "
        "Holm over the single modalities of all compressions as they are, and of all methods; of all modalities "
        "together likewise.",
        "Share [95 % interval]. Genuine refusal: the harmful half is refused by a coherent answer. Incoherent: of both "
        "halves' answers. Over-refusal: the benign half is refused. Discrimination: the harmful half is genuinely "
        "refused and the benign one answered. By the first substring list. Uses image: the refusal score of the "
        "compressed model, before any method, on the harmful half's question rises with its image against the benign "
        "half's and against a blank one (95 % intervals above 0); of others the rates say nothing about images. It is "
        "not measurable where both halves show one image. What the pairs are, "
        "a reconstruction after study V, a published set or the embedded model's own words, is told in docs/vision.md.",
        names=3,
        findings=_findings(numbers, modalities, p_of),
    )


def _adjusted(numbers: Numbers, modalities: list[str]) -> dict[tuple[str, str, str], float]:
    """p of every (compression, method, modality) against the dense model: single modalities together; all of them,
    which is no further test of other data, apart."""
    found: dict[tuple[str, str, str], float] = {}
    for group in ([m for m in modalities if m != ALL], [m for m in modalities if m == ALL]):
        of = {f"{GENUINE}_p[{m}]": m for m in group}
        found |= {(c, k, of[measure]): p for (c, k, measure), p in adjusted(numbers, list(of)).items()}
    return found


def _looks(numbers: Numbers, compression: str, modality: str) -> str:
    looks = numbers.get(compression, AS_IS, f"image_refusals[{modality}]").value
    if math.isnan(looks):
        asked = numbers.get(compression, AS_IS, f"image_score_blank[{modality}]").n
        return NOT_MEASURABLE if asked else MISSING
    return "yes" if looks else "no"


def _image_findings(numbers: Numbers, modalities: list[str]) -> list[str]:
    found = []
    for looks, told in (
        (NOT_MEASURABLE, "Halves show one image, so that whether refusals use it is not measurable"),
        ("no", "Refusals ignore the image, so that nothing is known of images"),
    ):
        of = [f"{c}, {m}" for c in numbers.compressions for m in modalities if _looks(numbers, c, m) == looks]
        found += [f"{told}: {'; '.join(of)}."] if of else []
    for m in modalities:
        left = {numbers.get(c, AS_IS, f"image_one_image[{m}]").value for c in numbers.compressions}
        found += [
            f"{n:.0f} {m} pairs with one image for both halves do not count in whether refusals use it."
            for n in left
            if n > 0
        ]
    return found


def _findings(numbers: Numbers, modalities: list[str], p_of: dict[tuple[str, str, str], float]) -> list[str]:
    found = []
    for modality in [m for m in modalities if m != ALL]:
        tested = {(c, k): p for (c, k, m), p in p_of.items() if m == modality and not math.isnan(p)}
        changes = {cell: numbers.get(*cell, f"{GENUINE}_change[{modality}]").value for cell in tested}
        worse, better = (
            [" / ".join(cell) for cell, p in tested.items() if p < SIGNIFICANT and sign * changes[cell] > 0]
            for sign in (-1, 1)
        )
        if tested:
            said = f"Of {modality} pairs genuine refusal falls below the dense model's in {len(worse)} of "
            said += f"{count(tested, 'cell')}{names(worse)}"
            said += f", and rises above it in {len(better)}{names(better)}" if better else ""
            found.append(f"{said} (same pairs, McNemar after Holm).")
    found += _image_findings(numbers, modalities)
    found += pair_repair_findings(numbers, [m for m in modalities if m != ALL])
    hidden = []
    for c, k, m in p_of:
        net, lost, gained = (
            numbers.get(c, k, f"{GENUINE}_{kind}[{m}]").value for kind in ("change", "lost", "gained")
        )
        if abs(net) < NET and min(lost, gained) >= FLIPS / 2 and lost + gained >= FLIPS:
            hidden.append(f"{c} / {k}, {m} ({percent(lost)} lost, {percent(gained)} gained)")
    if hidden:
        found.append(f"Small net changes of genuine refusal hide flips both ways: {'; '.join(hidden)}.")
    return found
