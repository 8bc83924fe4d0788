"""Main numbers and findings as plain text for the terminal."""

import textwrap

import pandas as pd

from holdfast.report.claims import claims
from holdfast.report.measures.pairs import ALL
from holdfast.report.measures.visual import ACCURACY
from holdfast.report.numbers import Numbers
from holdfast.report.rendering import MISSING
from holdfast.report.tables.main import main_table
from holdfast.report.tables.of_model import model_tables, models
from holdfast.report.wording import bracket, figure, percent, share, usual_n

GENUINE, OVER = "pair_genuine_refusal", "pair_over_refusal"
TERMINAL_WIDTH = 120
TERMINAL_NAME = 13
TERMINAL_HEAD = [
    "compression",
    "method",
    "ASR",
    "corr.",
    "genuine ref.",
    "over-refusal",
    "degen.",
    "perpl.",
    "0-shot",
    "dens.",
]


def terminal_tables(frame: pd.DataFrame) -> str:
    """Main numbers, pairs by modality and findings as plain text, at most 120 columns wide."""
    blocks = []
    for model in models(frame):
        numbers = Numbers(frame, model)
        decided = claims(numbers)
        said = [f for t in model_tables(numbers, decided) for f in t.findings]
        said += [f"{c.name} {c.verdict}: {c.statement}" for c in decided]
        # A number is not parted from its percent sign.
        kept = [f.replace(" %", "\u00a0%") for f in said]
        wrapped = [
            textwrap.fill(f, TERMINAL_WIDTH, initial_indent="- ", subsequent_indent="  ") for f in kept
        ]
        note = textwrap.fill(main_table(numbers).note, TERMINAL_WIDTH)
        lines = [model, *_aligned(_main(numbers)), note, *_paired(numbers), *wrapped]
        blocks.append("\n".join(lines).replace("\u00a0", " "))
    return "\n\n".join(blocks) + "\n"


def _main(numbers: Numbers) -> list[list[str]]:
    rows = [TERMINAL_HEAD]
    for c, k in numbers.cells:
        corrected, degenerate = (
            percent(numbers.get(c, k, m).value) for m in ("attack_success_rate_corrected", "degenerate_rate")
        )
        perplexity, density = (numbers.get(c, k, m).value for m in ("perplexity", "density"))
        rates = [
            share(numbers.get(c, k, m)) for m in ("attack_success_rate", "genuine_refusal", "over_refusal")
        ]
        if (c, k) in numbers.missing and rates[0] == MISSING:
            rates[0] = "missing"
        ability = [figure(perplexity, 1), percent(numbers.zero_shot(c, k).value), figure(density, 2)]
        rows.append([*_names(c, k), rates[0], corrected, *rates[1:], degenerate, *ability])
    return rows


def _paired(numbers: Numbers) -> list[str]:
    """Genuine refusal of every modality's pairs, how many benign halves are refused, and what is still seen; no line
    in a study that asks neither."""
    modalities = [m for m in map(bracket, numbers.measures_of(GENUINE)) if m != ALL]
    seen = ACCURACY in numbers.measures
    if not modalities and not seen:
        return []
    benign = ["benign refused"] if modalities else []
    rows = [["compression", "method", *modalities, *benign, *(["images"] if seen else [])]]
    for c, k in numbers.cells:
        genuine = [share(numbers.get(c, k, f"{GENUINE}[{m}]")) for m in modalities]
        over = " / ".join(percent(numbers.get(c, k, f"{OVER}[{m}]").value) for m in modalities)
        accuracy = [share(numbers.get(c, k, ACCURACY))] if seen else []
        rows.append([*_names(c, k), *genuine, *([over] if modalities else []), *accuracy])
    told = []
    if modalities:
        of = {m: [numbers.get(c, k, f"{GENUINE}[{m}]").n for c, k in numbers.cells] for m in modalities}
        pairs = ", ".join(f"{usual_n(counts)} {m}" for m, counts in of.items())
        told.append(
            f"Genuine refusal of harmful halves of pairs ({pairs}); benign ones refused, in that order."
        )
    if seen:
        told.append("Images: accuracy on benign questions about them.")
    return ["", *_aligned(rows), textwrap.fill(" ".join(told), TERMINAL_WIDTH)]


def _names(compression: str, method: str) -> list[str]:
    return [n if len(n) <= TERMINAL_NAME else n[: TERMINAL_NAME - 1] + "…" for n in (compression, method)]


def _aligned(rows: list[list[str]]) -> list[str]:
    """Columns of one width, names on the left; a rule under the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    form = "  ".join(f"{{:{'<' if i < 2 else '>'}{w}}}" for i, w in enumerate(widths))
    lines = [form.format(*row) for row in rows]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]
