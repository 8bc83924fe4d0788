"""The variants of a searched edit beside each other, as the validation prompts saw them."""

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd

from holdfast.report.measures.searches import UNEDITED
from holdfast.report.numbers import Numbers
from holdfast.report.rendering import Table
from holdfast.report.wording import bracket, number, share, usual_n, whole

COLUMNS = [
    *("model", "compression", "method", "variant", "layer", "alpha", "refusal_score", "kl", "prompts"),
    *("harmful_refused", "harmless_refused", "chosen"),
]

UNDONE = "missing"  # stands where a variant does


def entries(numbers: Numbers) -> Iterator[tuple[str, str, str]]:
    """(compression, method, variant): of every searched edit first no edit, then the variants, the best first.

    A search that a run left undone has one row, whose variant is ``missing``.
    """
    ranked = {cell: _variants(numbers, *cell) for cell in numbers.repairs()}
    searching = {method for (_, method), variants in ranked.items() if variants}
    for (compression, method), variants in ranked.items():
        left = method in searching and (compression, method) in numbers.missing
        yield from ((compression, method, variant) for variant in variants or [UNDONE] * left)


def _variants(numbers: Numbers, compression: str, method: str) -> list[str]:
    scores = {
        bracket(m): numbers.get(compression, method, m).value
        for m in numbers.measures
        if m.startswith("search_score[")
    }
    searched = {v: score for v, score in scores.items() if not math.isnan(score)}
    if not math.isnan(numbers.get(compression, method, f"search_refused[{UNEDITED}]").value):
        searched.setdefault(UNEDITED, math.nan)  # all refused already: no score was needed
    return sorted(searched, key=lambda v: (v != UNEDITED, -searched[v]))


def leaderboard(numbers: Numbers) -> pd.DataFrame:
    """One row an entry, columns ``COLUMNS``."""
    rows: list[dict[str, Any]] = []
    for compression, method, variant in entries(numbers):

        def of(name: str, where: tuple[str, str, str] = (compression, method, variant)) -> float:
            return numbers.get(where[0], where[1], f"search_{name}[{where[2]}]").value

        row: dict[str, Any] = dict(zip(COLUMNS, (numbers.model, compression, method, variant), strict=False))
        row |= {"layer": of("layer"), "alpha": of("alpha"), "refusal_score": of("score"), "kl": of("kl")}
        row["prompts"] = numbers.get(compression, method, f"search_score[{variant}]").n
        row |= {"harmful_refused": of("refused"), "harmless_refused": of("over_refusal")}
        row["chosen"] = of("chosen") == 1
        rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS).astype({"layer": "Int64"})


def leaderboard_table(numbers: Numbers) -> Table | None:
    """None where nothing was searched."""
    rows, counts = [], []
    for compression, method, variant in entries(numbers):
        layer, alpha, score, kl, refused, over, chosen = (
            numbers.get(compression, method, f"search_{name}[{variant}]")
            for name in ("layer", "alpha", "score", "kl", "refused", "over_refusal", "chosen")
        )
        counts.append(score.n)
        named = f"{variant} (made)" if chosen.value == 1 else variant
        values = [
            whole(layer),
            number(alpha, 1),
            number(score, 2),
            number(kl, 3),
            share(refused),
            share(over),
        ]
        rows.append([compression, method, named, *values])
    if not rows:
        return None
    return Table(
        f"{numbers.model}: search",
        [
            *("Compression", "Method", "Variant", "Layer", "α", "Refusal score", "KL"),
            *("Harmful refused", "Harmless refused"),
        ],
        rows,
        f"n: {usual_n(counts)} validation prompts of each kind; nothing here is of the evaluation's prompts.",
        "The best edit of every variant that keeps the bound on KL, measured in full. The best score is verified with "
        "real answers: where it refuses no more harmful prompts than before, or too many harmless ones, it gives way "
        "to the next; of its strengths the answers choose. Only verified edits have shares. Where the unedited model "
        "refuses every harmful one, nothing is searched.",
        names=3,
    )
