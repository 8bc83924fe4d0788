"""The studied paper's claims with their verdicts."""

from collections.abc import Sequence

from holdfast.report.claims import PAPER, Claim
from holdfast.report.rendering import Table


def claims_table(model: str, decided: Sequence[Claim]) -> Table:
    return Table(
        f"{model}: claims of {PAPER}",
        ["Claim", "Verdict", "Statement", "Rule", "Evidence"],
        [[c.name, c.verdict, c.statement, c.rule, c.evidence] for c in decided],
        "",
        "Decided for this model and these prompts only.",
        prose=True,
    )
