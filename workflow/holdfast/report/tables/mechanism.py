"""Where refusal lives in each compressed model, and how far it has turned."""

import math

from holdfast.config.cells import AS_IS
from holdfast.report.findings import mechanism_findings
from holdfast.report.numbers import Numbers
from holdfast.report.rendering import MISSING, Table
from holdfast.report.wording import number, whole


def mechanism_table(numbers: Numbers) -> Table:
    rows = []
    for compression in numbers.compressions:
        cosine, same, share, split, shuffled, chance, layer, position = (
            numbers.get(compression, AS_IS, m)
            for m in (
                "cosine_to_dense",
                "cosine_to_dense_same_source",
                "direction_explained",
                "cosine_null_split_half",
                "cosine_null_shuffled",
                "cosine_null_random",
                "source_layer",
                "source_position",
            )
        )
        source = f"{whole(layer)} / {whole(position)}"
        if numbers.get(compression, AS_IS, "direction_usable").value == 0:
            source += " (fails filters)"
        elif numbers.get(compression, AS_IS, "direction_published_bounds").value == 0:
            source += " (relaxed filters)"
        if numbers.get(compression, AS_IS, "score_valid").value == 0:
            source += " (score in doubt)"
        cosines = [number(c, 3) for c in (cosine, same, share, split, shuffled, chance)]
        rows.append([compression, *cosines, source, _score_check(numbers, compression)])
    note = (
        "Relaxed filters: the direction passes the study's bounds on KL and induce, "
        "not the published ones (KL at most 0.1, induce at least 0). AUROC [95 % interval] of the refusal score that "
        "the direction was chosen by, against real answers: on harmful prompts, some refused and some answered; or "
        "between kinds only, with too few of either among harmful prompts, which shows that it tells harmful from "
        "harmless prompts and hardly that it tracks refusal."
    )
    return Table(
        f"{numbers.model}: mechanism",
        [
            "Compression",
            "Cosine to dense",
            "At the dense source",
            "Explained by dense",
            "Split-half null",
            "Shuffled null",
            "Random null",
            "Source layer / position",
            "Refusal score's AUROC",
        ],
        rows,
        note,
        "Explained by dense: the share of the direction's squared length that lies along the dense one, the first "
        "cosine squared. "
        "A cosine below the split-half null is more change than sampling of prompts makes; above it nothing is "
        "decided, for two halves share no prompt and two models do. The shuffled null is what the compressed model "
        "gives when no prompt's kind is known, the random null what unrelated directions reach.",
        findings=mechanism_findings(numbers),
    )


def _score_check(numbers: Numbers, compression: str) -> str:
    auroc, harmful, checked = (
        numbers.get(compression, AS_IS, m)
        for m in ("score_check_auroc", "score_check_harmful", "score_checked")
    )
    if math.isnan(harmful.value):
        return "not checked" if checked.value == 0 else MISSING
    return f"{number(auroc, 2)} {'on harmful prompts' if harmful.value else 'between kinds only'}"
