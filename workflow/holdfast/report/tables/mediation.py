"""Refusal under ablation and addition of directions, tested in pairs."""

from holdfast.report.findings import mediation_findings
from holdfast.report.mediations import mediations
from holdfast.report.numbers import Numbers
from holdfast.report.rendering import Table
from holdfast.report.wording import p_value, share, usual_n

TOLD = {
    "ablate": "own direction ablated",
    "ablate-dense": "the dense model's ablated",
    "add": "own direction added",
    "add-dense": "the dense model's added",
}


def mediation_table(numbers: Numbers) -> Table:
    found = mediations(numbers)
    usual = {
        kind: usual_n([r.n for it in found if it.kind == kind for r in (it.none, it.under, it.random)])
        for kind in ("harmful", "harmless")
    }
    rows = [
        [
            it.compression,
            TOLD[it.intervention],
            it.kind,
            *(share(rate, usual[it.kind]) for rate in (it.none, it.under, it.random)),
            p_value(it.p),
            p_value(it.p_random),
        ]
        for it in found
    ]
    return Table(
        f"{numbers.model}: mediation",
        [
            "Compression",
            "Intervention",
            "Prompts",
            "Refused without",
            "Refused with",
            "With a random direction",
            "p against none",
            "p against random",
        ],
        rows,
        f"n: {usual['harmful']} harmful and {usual['harmless']} harmless prompts; p: exact McNemar on the same "
        "prompts, each column adjusted by Holm over this table. Of several random directions: the mean of the rates, "
        "with the interval of one answer a prompt, and the largest p of them.",
        "Share of prompts refused by an answer that is not degenerate [95 % interval]. One direction "
        "mediates refusal when ablating it stops refusal of "
        "harmful prompts, adding it induces refusal of harmless ones, and a random direction does neither. A random "
        "direction is added as its row's is, as long and at the same layer. The own and the dense model's direction "
        "have different lengths, and a longer one does more when added: their rates under addition are not to be "
        "compared as directions. The random directions are isotropic, not drawn with the activations' covariance as "
        "those of the mechanism and transfer tables are, which makes them a weaker control.",
        names=3,
        findings=mediation_findings(numbers),
    )
