"""The studied paper's claims with their verdicts."""

from holdfast.report.claims import PAPER, claims
from holdfast.report.numbers import Numbers
from holdfast.report.rendering import Table


def claims_table(numbers: Numbers) -> Table:
    return Table(
        f"{numbers.model}: claims of {PAPER}",
        ["Claim", "Verdict", "Statement", "Rule", "Evidence"],
        [[c.name, c.verdict, c.statement, c.rule, c.evidence] for c in claims(numbers)],
        "",
        "Decided for this model and these prompts only.",
        prose=True,
    )
