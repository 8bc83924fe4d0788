"""Refusal and ability of every cell."""

from holdfast.report.findings import compression_findings
from holdfast.report.numbers import Numbers
from holdfast.report.rendering import Table
from holdfast.report.wording import bracket, number, share, usual_n


def main_table(numbers: Numbers) -> Table:
    shares = {
        "ASR": "attack_success_rate",
        **{f"ASR by {bracket(m)}": m for m in numbers.measures if m.startswith("attack_success_rate[")},
        "Genuine refusal": "genuine_refusal",
        "Over-refusal": "over_refusal",
        "Degenerate": "degenerate_rate",
    }
    usual = {m: usual_n([numbers.get(c, k, m).n for c, k in numbers.cells]) for m in shares.values()}
    rows = []
    for compression, method in numbers.cells:
        rates = [share(numbers.get(compression, method, m), usual[m]) for m in shares.values()]
        ability = [
            number(numbers.get(compression, method, "perplexity"), 1),
            share(numbers.zero_shot(compression, method)),
            number(numbers.get(compression, method, "density"), 2),
        ]
        rows.append([compression, method, *rates, *ability])
    windows = usual_n([numbers.get(c, k, "perplexity").n for c, k in numbers.cells])
    tasks = [
        f"{t} ({usual_n([numbers.get(c, k, f'zero_shot[{t}]').n for c, k in numbers.cells])})"
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
