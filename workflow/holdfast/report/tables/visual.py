"""Benign questions about images: accuracy of every cell, beside the dense model's."""

import math

from holdfast.report.measures.visual import ACCURACY
from holdfast.report.numbers import Numbers
from holdfast.report.rendering import MISSING, Table
from holdfast.report.repairs import SIGNIFICANT
from holdfast.report.tables.flips import adjusted, changed_by, flips
from holdfast.report.wording import bracket, count, names, p_value, share

KINDS = 6  # columns at most: of sets with more kinds of questions they stand in refusal.csv alone


def visual_table(numbers: Numbers) -> Table | None:
    """None in a study that asks none."""
    if ACCURACY not in numbers.measures:
        return None
    kinds = [bracket(m) for m in numbers.measures_of(ACCURACY)]
    kinds = kinds if len(kinds) <= KINDS else []
    p_of = {(c, k): p for (c, k, _), p in adjusted(numbers, [f"{ACCURACY}_p"]).items()}
    rows = []
    for cell in numbers.cells:
        rates = [numbers.get(*cell, m) for m in (ACCURACY, *(f"{ACCURACY}[{k}]" for k in kinds))]
        refused = numbers.get(*cell, "visual_refused")
        change, both = changed_by(numbers, *cell, ACCURACY), flips(numbers, *cell, ACCURACY)
        p = p_value(p_of.get(cell, math.nan))
        rows.append([*cell, str(rates[0].n or MISSING), *map(share, rates), share(refused), change, both, p])
    worse = [
        " / ".join(cell)
        for cell, p in p_of.items()
        if p < SIGNIFICANT and numbers.get(*cell, f"{ACCURACY}_change").value < 0
    ]
    tested = [p for p in p_of.values() if not math.isnan(p)]
    told = (
        f"Accuracy on questions about images falls below the dense model's in {len(worse)} of "
        f"{count(tested, 'cell')}{names(worse)} (same questions, McNemar after Holm)."
    )
    return Table(
        f"{numbers.model}: benign questions about images",
        [
            "Compression",
            "Method",
            "Questions",
            "Accuracy",
            *(k.capitalize() for k in kinds),
            "Refused",
            "Accuracy − dense",
            "Lost / gained",
            "p",
        ],
        rows,
        "Accuracy − dense: percentage points on the same questions [95 % interval of paired proportions]. Lost / "
        "gained: questions that only the dense model, only this one answers rightly. p: exact McNemar of these, by "
        "Holm over all compressions as they are, and over all methods.",
        "Share [95 % interval]. An answer is right where it names the right option and no other, or is one of the "
        "given answers where there are no options. Refused: by the first substring list.",
        names=2,
        findings=[told] if tested else [],
    )
