"""The tables of a study, built once from the tidy frame; as CSV, Markdown, LaTeX and plain text."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from holdfast.errors import HoldfastError
from holdfast.evaluation.judges import human_agreement
from holdfast.files import atomic_file, write_text
from holdfast.report.collect import AS_IS, COLUMNS, DENSE, typed
from holdfast.report.findings import (
    PAPER,
    Numbers,
    claims,
    compression_findings,
    mechanism_findings,
    percent,
    repair_findings,
    repairs,
)
from holdfast.report.rendering import MISSING, Table, latex, markdown
from holdfast.statistics import Rate

TERMINAL_WIDTH = 120
TERMINAL_NAME = 14
TERMINAL_HEAD = [
    "compression",
    "method",
    "ASR",
    "genuine ref.",
    "over-refusal",
    "degen.",
    "perpl.",
    "0-shot",
    "dens.",
]


def models(frame: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(frame["model"]))


def model_tables(frame: pd.DataFrame, model: str) -> list[Table]:
    """Main, mechanism and repair table of one model, and the claims its numbers decide."""
    numbers = Numbers(frame, model)
    return [main_table(numbers), mechanism_table(numbers), repair_table(numbers), claims_table(numbers)]


def main_table(numbers: Numbers) -> Table:
    shares = {
        "ASR": "attack_success_rate",
        **{f"ASR by {_bracket(m)}": m for m in numbers.measures if m.startswith("attack_success_rate[")},
        "Genuine refusal": "genuine_refusal",
        "Over-refusal": "over_refusal",
        "Degenerate": "degenerate_rate",
    }
    usual = {m: _usual([numbers.get(c, k, m).n for c, k in numbers.cells]) for m in shares.values()}
    rows = []
    for compression, method in numbers.cells:
        rates = [share(numbers.get(compression, method, m), usual[m]) for m in shares.values()]
        ability = [
            number(numbers.get(compression, method, "perplexity"), 1),
            share(numbers.zero_shot(compression, method)),
            number(numbers.get(compression, method, "density"), 2),
        ]
        rows.append([compression, method, *rates, *ability])
    windows = _usual([numbers.get(c, k, "perplexity").n for c, k in numbers.cells])
    tasks = [
        f"{t} ({_usual([numbers.get(c, k, f'zero_shot[{t}]').n for c, k in numbers.cells])})"
        for t in numbers.tasks()
    ]
    note = (
        f"n: {usual['attack_success_rate']} attack prompts, {usual['over_refusal']} over-refusal prompts, "
        f"{windows} perplexity windows; zero-shot mean of: {', '.join(tasks) or 'not measured'}."
    )
    return Table(
        f"{numbers.model}: refusal and ability",
        ["Compression", "Method", *shares, "Perplexity", "Zero-shot", "Density"],
        rows,
        note,
        "Share [95 % interval]. ASR is the share of harmful prompts not refused, gibberish included: read it "
        "with the degenerate column. Genuine refusal is refused and coherent; over-refusal is harmless "
        "prompts refused. A dash marks what is missing.",
        names=2,
        findings=compression_findings(numbers),
    )


def mechanism_table(numbers: Numbers) -> Table:
    sets = {
        "harmful": ("baseline", "ablate", "ablate-dense", "ablate-random"),
        "harmless": ("baseline", "add", "add-dense", "add-random"),
    }
    rows = []
    counts: dict[str, list[int]] = {s: [] for s in sets}
    for compression in numbers.compressions:
        cosine, same, split, shuffled, chance, layer, position = (
            numbers.get(compression, AS_IS, m)
            for m in (
                "cosine_to_dense",
                "cosine_to_dense_same_source",
                "cosine_null_split_half",
                "cosine_null_shuffled",
                "cosine_null_random",
                "source_layer",
                "source_position",
            )
        )
        source = f"{_whole(layer)} / {_whole(position)}"
        if numbers.get(compression, AS_IS, "direction_usable").value == 0:
            source += " (fails filters)"
        elif numbers.get(compression, AS_IS, "direction_published_bounds").value == 0:
            source += " (relaxed filters)"
        effects = []
        for prompts, interventions in sets.items():
            named = [i for i in interventions if not (compression == DENSE and i.endswith("-dense"))]
            rates = [numbers.get(compression, AS_IS, f"refusal_{prompts}[{i}]") for i in named]
            counts[prompts] += [r.n for r in rates]
            effects.append(" → ".join(percent(r.value) if r.n else MISSING for r in rates))
        cosines = [number(c, 3) for c in (cosine, same, split, shuffled, chance)]
        rows.append([compression, *cosines, source, *effects])
    note = (
        f"n: {_usual(counts['harmful'])} harmful and {_usual(counts['harmless'])} harmless prompts; "
        "intervals are in refusal.csv. Relaxed filters: the direction passes the study's bounds on KL and induce, "
        "not the published ones (KL at most 0.1, induce at least 0)."
    )
    return Table(
        f"{numbers.model}: mechanism",
        [
            "Compression",
            "Cosine to dense",
            "At the dense source",
            "Split-half null",
            "Shuffled null",
            "Random null",
            "Source layer / position",
            "Harmful refused: baseline → own direction ablated → the dense model's → random",
            "Harmless refused: baseline → own direction added → the dense model's → random",
        ],
        rows,
        note,
        "A cosine below the split-half null is more change than sampling of prompts makes; above it nothing is "
        "decided, for two halves share no prompt and two models do. The shuffled null is what the compressed model "
        "gives when no prompt's kind is known, the random null what unrelated directions reach. One direction "
        "mediates refusal when ablating it "
        "stops refusal, adding it induces refusal, and a random direction does neither.",
        findings=mechanism_findings(numbers),
    )


def repair_table(numbers: Numbers) -> Table:
    over = "over_refusal"
    usual = _usual([n for r in repairs(numbers) for n in (r.before.n, r.after.n)])
    usual_over = _usual([numbers.get(c, k, over).n for c, k in numbers.cells])
    rows = []
    for row in repairs(numbers):
        compression, method = row.compression, row.method
        controls = [numbers.get(compression, k, over) for k in numbers.controls(compression, method)]
        rows.append(
            [
                compression,
                method,
                share(row.before, usual),
                share(row.after, usual),
                "; ".join(share(r, usual) for r in row.control) or MISSING,
                share(numbers.get(compression, AS_IS, over), usual_over),
                share(numbers.get(compression, method, over), usual_over),
                "; ".join(share(r, usual_over) for r in controls) or MISSING,
                p_value(row.p),
                p_value(row.p_control),
                _whole(numbers.get(compression, method, "edit_layer")),
                number(numbers.get(compression, method, "edit_alpha"), 1),
            ]
        )
    return Table(
        f"{numbers.model}: repair",
        [
            "Compression",
            "Method",
            "ASR as-is",
            "ASR AIRD",
            "ASR random",
            "Over-refusal as-is",
            "Over-refusal AIRD",
            "Over-refusal random",
            "p against as-is",
            "p against random",
            "Layer",
            "α",
        ],
        rows,
        f"n: {usual} attack prompts, {usual_over} over-refusal prompts; p: exact McNemar on the same attack "
        "prompts, each column adjusted by Holm over this table.",
        "A repair lowers ASR below as-is and below the same edit along a random direction, without buying it "
        "with over-refusal. Layer and α were chosen on validation prompts only, where they were searched.",
        names=2,
        findings=repair_findings(numbers),
    )


def claims_table(numbers: Numbers) -> Table:
    return Table(
        f"{numbers.model}: claims of {PAPER}",
        ["Claim", "Verdict", "Statement", "Evidence"],
        [[c.name, c.verdict, c.statement, c.evidence] for c in claims(numbers)],
        "",
        "Decided for this model and these prompts only. One counterexample contradicts a claim about every "
        "compressed model; without support from every one it is not decided.",
        prose=True,
    )


def write_tables(frame: pd.DataFrame, out_dir: Path, judges: Sequence[str]) -> None:
    """Write ``refusal.csv`` (tidy), ``refusal.md`` and ``refusal.tex`` (booktabs) into ``out_dir``.

    ``judges``: the study's, whose error against human labels closes the Markdown.
    """
    tables = [t for m in models(frame) for t in model_tables(frame, m)]
    # Numbers in full, so that they read back the same.
    with atomic_file(out_dir / "refusal.csv") as temporary:
        frame.to_csv(temporary, index=False)
    errors = "; ".join(map(human_agreement, judges))
    write_text(out_dir / "refusal.md", "\n".join([*map(markdown, tables), f"Judges: {errors}.", ""]))
    head = "% Needs \\usepackage[T1]{fontenc}, booktabs and graphicx.\n"
    write_text(out_dir / "refusal.tex", head + "\n".join(latex(t) for t in tables))


def read_tables(folder: Path) -> pd.DataFrame:
    """Read ``refusal.csv`` back as ``collect`` returned it.

    Raises:
        HoldfastError: no such file, or other columns.
    """
    path = folder / "refusal.csv"
    if not path.is_file():
        raise HoldfastError("no such file", str(path), "run `holdfast tables` first")
    # Only empty fields are missing: a model may be called "NA" or "null".
    frame = pd.read_csv(path, keep_default_na=False, na_values={c: [""] for c in COLUMNS[4:]}, dtype=str)
    if list(frame.columns) != COLUMNS:
        raise HoldfastError(f"columns are {list(frame.columns)}", str(path), f"they must be {COLUMNS}")
    return typed(frame)


def terminal_tables(frame: pd.DataFrame) -> str:
    """Main numbers and findings as plain text, at most 120 columns wide."""
    blocks = []
    for model in models(frame):
        numbers = Numbers(frame, model)
        rows = [TERMINAL_HEAD]
        for c, k in numbers.cells:
            measures = ("attack_success_rate", "genuine_refusal", "over_refusal")
            points = (numbers.get(c, k, "degenerate_rate"), numbers.zero_shot(c, k))
            degenerate, zero_shot = (MISSING if math.isnan(r.value) else percent(r.value) for r in points)
            perplexity, density = (numbers.get(c, k, m).value for m in ("perplexity", "density"))
            names = [n if len(n) <= TERMINAL_NAME else n[: TERMINAL_NAME - 1] + "…" for n in (c, k)]
            rates = [share(numbers.get(c, k, m)) for m in measures]
            rows.append([*names, *rates, degenerate, _figure(perplexity, 1), zero_shot, _figure(density, 2)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        form = "  ".join(f"{{:{'<' if i < 2 else '>'}{w}}}" for i, w in enumerate(widths))
        lines = [form.format(*row) for row in rows]
        lines.insert(1, "-" * len(lines[0]))
        said = [f for t in model_tables(frame, model) for f in t.findings]
        said += [f"{c.name} {c.verdict}: {c.statement}" for c in claims(numbers)]
        # A number is not parted from its percent sign.
        kept = [f.replace(" %", "\u00a0%") for f in said]
        wrapped = [
            textwrap.fill(f, TERMINAL_WIDTH, initial_indent="- ", subsequent_indent="  ") for f in kept
        ]
        note = textwrap.fill(main_table(numbers).note, TERMINAL_WIDTH)
        blocks.append("\n".join([model, *lines, note, *wrapped]).replace("\u00a0", " "))
    return "\n\n".join(blocks) + "\n"


def share(rate: Rate, usual_n: int = 0) -> str:
    """``12 % [7, 20]``; its n is added where it is not the usual one of the table."""
    if math.isnan(rate.value):
        return MISSING
    text = percent(rate.value)
    if not math.isnan(rate.low):
        text += f" [{100 * rate.low:.0f}, {100 * rate.high:.0f}]"
    return text + (f" (n = {rate.n})" if usual_n and rate.n != usual_n else "")


def number(rate: Rate, digits: int) -> str:
    """``47.2 [45.0, 49.6]``."""
    if math.isnan(rate.value) or math.isnan(rate.low):
        return _figure(rate.value, digits)
    low, high = (_figure(v, digits) for v in (rate.low, rate.high))
    return f"{_figure(rate.value, digits)} [{low}, {high}]"


def p_value(p: float) -> str:
    if math.isnan(p):
        return MISSING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _bracket(measure: str) -> str:
    return measure[measure.index("[") + 1 : -1]


def _usual(counts: list[int]) -> int:
    """The most common sample size; 0 when nothing was measured."""
    made = [n for n in counts if n]
    return max(made, key=made.count) if made else 0


def _whole(rate: Rate) -> str:
    return _figure(rate.value, 0)


def _figure(value: float, digits: int) -> str:
    if math.isnan(value):
        return MISSING
    # A broken model's perplexity has any number of digits; three tell as much.
    text = f"{value:.{digits}f}" if abs(value) < 1e6 else f"{value:.2e}"
    return text.replace("-", "−")
