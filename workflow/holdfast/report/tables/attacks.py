"""Attack success of every cell under every setting."""

import math

from holdfast.report.numbers import Numbers
from holdfast.report.rendering import MISSING, Table
from holdfast.report.repairs import SIGNIFICANT
from holdfast.report.wording import bracket, count, names, p_value, percent, share, signed, usual_n
from holdfast.statistics import holm


def attacks_table(numbers: Numbers) -> Table | None:
    """None in a study without attack settings."""
    settings = [bracket(m) for m in numbers.measures if m.startswith("setting_success[")]
    if not settings:
        return None
    columns = {"Plain": "attack_success_rate"}
    if any(m.startswith("setting_success_corrected[") for m in numbers.measures):
        columns["Plain, corrected"] = "attack_success_rate_corrected"
    for name in settings:
        columns[name] = f"setting_success[{name}]"
        if (less_error := f"setting_success_corrected[{name}]") in numbers.measures:
            columns[f"{name}, corrected"] = less_error
        if (of_all := f"setting_any_success[{name}]") in numbers.measures:
            samples = max(int(n) for n in _values(numbers, f"setting_samples[{name}]"))
            columns[f"{name}: any of {samples}"] = of_all
    p = _adjusted(numbers, settings)
    usual = usual_n([numbers.get(c, k, m).n for c, k in numbers.cells for m in columns.values()])
    rows = [
        [
            *(c, k, *(share(numbers.get(c, k, m), usual) for m in columns.values())),
            *(_change(numbers, (c, k), name, p.get((c, k, name), math.nan)) for name in settings),
        ]
        for c, k in numbers.cells
    ]
    return Table(
        f"{numbers.model}: ASR by attack setting",
        ["Compression", "Method", *columns, *(f"{name} − plain" for name in settings)],
        rows,
        f"n: {usual} attack prompts where no other n stands. Of several samples a prompt: their mean, with the "
        "interval of one answer a prompt. A setting less plain: percentage points on the prompts that the setting was "
        "tried on [95 % bootstrap interval over them]; p: exact McNemar on these, by Holm over the table, of settings "
        "with one answer a prompt.",
        "Share of harmful prompts whose attack succeeds [95 % interval], by the headline judge; settings as in the "
        "study's evaluate.attacks. Corrected: less that judge's error against people's labels, as in the table of "
        "refusal and ability and no surer; a setting may change how the judge errs. Any of several samples grows with "
        "their number.",
        names=2,
        findings=_findings(numbers, settings, p),
    )


def _values(numbers: Numbers, measure: str) -> list[float]:
    rates = [numbers.get(c, k, measure) for c, k in numbers.cells]
    return [r.value for r in rates if r.value == r.value]


def _adjusted(numbers: Numbers, settings: list[str]) -> dict[tuple[str, str, str], float]:
    """p of every (compression, method, setting) against the plain attack, by Holm over all of them."""
    tests = [(c, k, name) for name in settings for c, k in numbers.cells]
    raw = [numbers.get(c, k, f"setting_p[{name}]").value for c, k, name in tests]
    return dict(zip(tests, holm(raw), strict=True))


def _change(numbers: Numbers, cell: tuple[str, str], name: str, p: float) -> str:
    """``+12.0 [3, 20], p = 0.020``"""
    change = numbers.get(*cell, f"setting_change[{name}]")
    if math.isnan(change.value):
        return MISSING
    low, high = (f"{100 * end:.0f}".replace("-", "−") for end in (change.low, change.high))
    text = f"{signed(100 * change.value)} [{low}, {high}]"
    return text if math.isnan(p) else f"{text}, p {'' if p < 0.001 else '= '}{p_value(p)}"


def _findings(
    numbers: Numbers, settings: list[str], adjusted: dict[tuple[str, str, str], float]
) -> list[str]:
    found = []
    for name in settings:
        raised: list[str] = []
        lowered: list[str] = []
        tried = []
        several = max(_values(numbers, f"setting_samples[{name}]"), default=0) > 1
        for cell in numbers.cells:
            change = numbers.get(*cell, f"setting_change[{name}]")
            if math.isnan(change.value):
                continue
            tried.append(cell)
            apart = change.low > 0 or change.high < 0 if several else adjusted[*cell, name] < SIGNIFICANT
            if apart:
                (raised if change.value > 0 else lowered).append(" / ".join(cell))
        if not tried:
            continue
        by = (
            "the interval of the paired difference leaves out 0; untested, so not corrected for the number of cells"
            if several
            else "same prompts, McNemar after Holm"
        )
        said = f"{name} raises ASR above the plain attack's ({by}) in {len(raised)} of "
        said += f"{count(tried, 'cell')}{names(raised)}"
        found.append(said + (f", and lowers it in {len(lowered)}{names(lowered)}." if lowered else "."))
        for kind in ("degenerate", "unfinished"):
            worst = max(_values(numbers, f"setting_{kind}[{name}]"), default=0)
            if worst >= 0.1:
                found.append(f"Under {name} up to {percent(worst)} of the answers are {kind}.")
    return found
