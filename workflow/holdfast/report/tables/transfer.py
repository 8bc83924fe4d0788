"""One model's direction inside the other, beside its own and the nulls."""

from holdfast.config.cells import AS_IS, DENSE
from holdfast.report.findings import transfer_findings
from holdfast.report.measures.transfer import NULLS, SCORES, WAYS
from holdfast.report.numbers import Numbers
from holdfast.report.rendering import Table
from holdfast.report.transfers import transfers
from holdfast.report.wording import number, p_value, usual_n


def transfer_table(numbers: Numbers) -> Table | None:
    """None where nothing was measured."""
    rows, counts, nulls = [], [], []
    for it in transfers(numbers):
        prefix, other = WAYS[it.way]
        whose, where = (DENSE, it.compression) if other == "dense" else (it.compression, DENSE)
        for score in SCORES:
            found = {
                key: numbers.get(it.compression, AS_IS, f"{prefix}_{score}[{key}]")
                for key in ("baseline", "own", other, f"{other}-own", *NULLS.values())
            }
            counts.append(found["baseline"].n)
            nulls.append(found["null"].n)
            shown = [number(rate, 1) for rate in found.values()]
            rows.append([it.compression, f"{whose} in {where}", score, *shown, p_value(it.p[score])])
    if not rows:
        return None
    return Table(
        f"{numbers.model}: transfer",
        [
            "Compression",
            "Direction",
            "Score",
            "No intervention",
            "Own direction",
            "The other's",
            "Other − own",
            "Random",
            "Shuffled labels",
            "Own, half of the prompts",
            "p",
        ],
        rows,
        f"n: {usual_n(counts)} validation prompts of each kind, {usual_n(nulls)} directions of each null [range]; "
        "p: one-sided, that a random direction and one over shuffled labels, whichever does it more easily, moves the "
        "score as far (Student's prediction interval), adjusted by Holm over the rows of a score.",
        "Refusal score of the receiving model (log-odds that it opens with a refusal) [95 % interval]. Bypass: of "
        "harmful prompts with a direction ablated, lower is better; induce: of harmless prompts with it added, higher "
        "is better. Random directions have the covariance of the receiving model's activations. Shuffled labels: "
        "differences of means of the giving model's activations where no prompt's kind is known; where the two kinds "
        "lie far apart these lean by chance to the true direction or away from it, which makes them a hard null. Half "
        "of the prompts: what sampling alone does to the own direction. The own direction was "
        "chosen on these very prompts, the other's was not.",
        names=3,
        findings=transfer_findings(numbers),
    )
