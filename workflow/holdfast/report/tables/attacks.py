"""Attack success of every cell under every setting."""

from holdfast.report.numbers import Numbers
from holdfast.report.rendering import Table
from holdfast.report.wording import bracket, count, names, percent, share, usual_n


def attacks_table(numbers: Numbers) -> Table | None:
    """None in a study without attack settings."""
    settings = [bracket(m) for m in numbers.measures if m.startswith("setting_success[")]
    if not settings:
        return None
    columns = {"Plain": "attack_success_rate"}
    for name in settings:
        columns[name] = f"setting_success[{name}]"
        if (of_all := f"setting_any_success[{name}]") in numbers.measures:
            samples = max(int(n) for n in _values(numbers, f"setting_samples[{name}]"))
            columns[f"{name}: any of {samples}"] = of_all
    usual = usual_n([numbers.get(c, k, m).n for c, k in numbers.cells for m in columns.values()])
    rows = [[c, k, *(share(numbers.get(c, k, m), usual) for m in columns.values())] for c, k in numbers.cells]
    return Table(
        f"{numbers.model}: ASR by attack setting",
        ["Compression", "Method", *columns],
        rows,
        f"n: {usual} attack prompts where no other n stands. Of several samples a prompt: their mean, with the "
        "interval of one answer a prompt.",
        "Share of harmful prompts whose attack succeeds [95 % interval], by the headline judge; settings as in the "
        "study's evaluate.attacks. Any of several samples grows with their number.",
        names=2,
        findings=_findings(numbers, settings),
    )


def _values(numbers: Numbers, measure: str) -> list[float]:
    rates = [numbers.get(c, k, measure) for c, k in numbers.cells]
    return [r.value for r in rates if r.value == r.value]


def _findings(numbers: Numbers, settings: list[str]) -> list[str]:
    found = []
    for name in settings:
        pairs = [
            (cell, numbers.get(*cell, "attack_success_rate"), numbers.get(*cell, f"setting_success[{name}]"))
            for cell in numbers.cells
        ]
        tried = [(cell, plain, under) for cell, plain, under in pairs if plain.n and under.n]
        if not tried:
            continue
        raised = [" / ".join(cell) for cell, plain, under in tried if under.low > plain.high]
        lowered = [" / ".join(cell) for cell, plain, under in tried if under.high < plain.low]
        said = f"{name} raises ASR above the plain attack's (intervals apart) in {len(raised)} of "
        said += f"{count(tried, 'cell')}{names(raised)}"
        found.append(said + (f", and lowers it in {len(lowered)}{names(lowered)}." if lowered else "."))
        for kind in ("degenerate", "unfinished"):
            worst = max(_values(numbers, f"setting_{kind}[{name}]"), default=0)
            if worst >= 0.1:
                found.append(f"Under {name} up to {percent(worst)} of the answers are {kind}.")
    return found
