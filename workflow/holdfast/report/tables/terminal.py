"""Main numbers and findings as plain text for the terminal."""

import textwrap

import pandas as pd

from holdfast.report.claims import claims
from holdfast.report.numbers import Numbers
from holdfast.report.rendering import MISSING
from holdfast.report.tables.main import main_table
from holdfast.report.tables.of_model import model_tables, models
from holdfast.report.wording import figure, percent, share

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
    """Main numbers and findings as plain text, at most 120 columns wide."""
    blocks = []
    for model in models(frame):
        numbers = Numbers(frame, model)
        rows = [TERMINAL_HEAD]
        for c, k in numbers.cells:
            measures = ("attack_success_rate", "genuine_refusal", "over_refusal")
            corrected, degenerate = (
                percent(numbers.get(c, k, m).value)
                for m in ("attack_success_rate_corrected", "degenerate_rate")
            )
            zero_shot = percent(numbers.zero_shot(c, k).value)
            perplexity, density = (numbers.get(c, k, m).value for m in ("perplexity", "density"))
            names = [n if len(n) <= TERMINAL_NAME else n[: TERMINAL_NAME - 1] + "…" for n in (c, k)]
            rates = [share(numbers.get(c, k, m)) for m in measures]
            if (c, k) in numbers.missing and rates[0] == MISSING:
                rates[0] = "missing"
            ability = [figure(perplexity, 1), zero_shot, figure(density, 2)]
            rows.append([*names, rates[0], corrected, *rates[1:], degenerate, *ability])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        form = "  ".join(f"{{:{'<' if i < 2 else '>'}{w}}}" for i, w in enumerate(widths))
        lines = [form.format(*row) for row in rows]
        lines.insert(1, "-" * len(lines[0]))
        decided = claims(numbers)
        said = [f for t in model_tables(numbers, decided) for f in t.findings]
        said += [f"{c.name} {c.verdict}: {c.statement}" for c in decided]
        # A number is not parted from its percent sign.
        kept = [f.replace(" %", "\u00a0%") for f in said]
        wrapped = [
            textwrap.fill(f, TERMINAL_WIDTH, initial_indent="- ", subsequent_indent="  ") for f in kept
        ]
        note = textwrap.fill(main_table(numbers).note, TERMINAL_WIDTH)
        blocks.append("\n".join([model, *lines, note, *wrapped]).replace("\u00a0", " "))
    return "\n\n".join(blocks) + "\n"
