"""Directions of text, images and drawn text: do they agree, and does the refusal direction act on all three?"""

import math

from holdfast.config.cells import AS_IS, DENSE
from holdfast.report.measures.modalities import SCORES
from holdfast.report.numbers import Numbers
from holdfast.report.rendering import Table
from holdfast.report.repairs import SIGNIFICANT
from holdfast.report.wording import bracket, count, names, number, p_value, usual_n
from holdfast.statistics import holm

COSINE = "modality_cosine"
NULLS = ("split_half", "shuffled", "random")


def modality_tables(numbers: Numbers) -> list[Table]:
    """The cosines and what the refusal direction does; none in a study without directions by modality."""
    if not any(m.startswith(f"{COSINE}[") for m in numbers.measures):
        return []
    return [_cosines(numbers), _tried(numbers)]


def _cosines(numbers: Numbers) -> Table:
    pairs = [bracket(m) for m in numbers.measures if m.startswith(f"{COSINE}[")]
    places = [
        (c, pair)
        for c in numbers.compressions
        for pair in pairs
        if not math.isnan(numbers.get(c, AS_IS, f"{COSINE}[{pair}]").value)
    ]
    below, chance = (
        dict(
            zip(
                places,
                holm([numbers.get(c, AS_IS, f"{COSINE}_{p}[{pair}]").value for c, pair in places]),
                strict=True,
            )
        )
        for p in ("p_below", "p_chance")
    )
    rows = []
    for c, pair in places:
        shown = [
            numbers.get(c, AS_IS, f"{COSINE}{null}[{pair}]") for null in ("", *(f"_null_{n}" for n in NULLS))
        ]
        p = [p_value(of[c, pair]) for of in (below, chance)]
        rows.append([c, pair.replace("-", " – "), *(number(rate, 3) for rate in shown), *p])
    return Table(
        f"{numbers.model}: directions by modality",
        [
            "Compression",
            "Directions",
            "Cosine",
            "Split-half null",
            "Shuffled null",
            "Random null",
            "p, below halves",
            "p, chance",
        ],
        rows,
        "p, one-sided, each adjusted by Holm over this table. Below halves: resampling prompts gives a cosine as low. "
        "Chance: random directions agree as much, or differences of means over shuffled labels have as large an inner "
        "product, the larger of both.",
        "Cosine of two differences of means (harmful − harmless inputs) at the place of the refusal direction [95 % "
        "interval]: of the same prompts as text, image and typographic; refusal: the refusal direction, found on text, "
        "that edits use; dense: the dense model's of the same modality, at its place. Split-half null: halves of the "
        "prompts of whichever of the two agree less. Shuffled directions lean to the true one or away from it where "
        "the kinds lie far apart; what tells them from it is that they are short, so the p compares inner products.",
        names=2,
        findings=_agreement(numbers, places, below, chance),
    )


def _agreement(
    numbers: Numbers,
    places: list[tuple[str, str]],
    below: dict[tuple[str, str], float],
    chance: dict[tuple[str, str], float],
) -> list[str]:
    found = []
    for pair in [
        p for p in ("text-image", "text-typographic", "image-typographic") if p in {q for _, q in places}
    ]:
        here = [c for c, other in places if other == pair]
        agree = [c for c in here if chance[c, pair] < SIGNIFICANT]
        apart = [c for c in here if below[c, pair] < SIGNIFICANT]
        dense = numbers.get(DENSE, AS_IS, f"{COSINE}[{pair}]")
        said = f" ({number(dense, 2)} in the dense model)" if DENSE in here else ""
        first, second = pair.split("-")
        found.append(
            f"The directions of {first} and {second} inputs agree beyond chance{said} in {len(agree)} of "
            f"{count(here, 'model')}{names(agree)}; they are not one direction (below what halves of the prompts give) "
            f"in {len(apart)}{names(apart)} (Holm-corrected p < {SIGNIFICANT})."
        )
    return found


def _tried(numbers: Numbers) -> Table:
    modalities = list(
        dict.fromkeys(
            bracket(m).partition(",")[0] for m in numbers.measures if m.startswith("modality_bypass[")
        )
    )
    places = [
        (c, m)
        for c in numbers.compressions
        for m in modalities
        if not math.isnan(numbers.get(c, AS_IS, f"modality_bypass_p[{m}]").value)
    ]
    p = {
        score: dict(
            zip(
                places,
                holm([numbers.get(c, AS_IS, f"modality_{score}_p[{m}]").value for c, m in places]),
                strict=True,
            )
        )
        for score in SCORES
    }
    rows, counts = [], []
    for c, m in places:
        for score in SCORES:
            shown = [
                numbers.get(c, AS_IS, f"modality_{score}[{m},{whose}]")
                for whose in ("baseline", "refusal", "own", "refusal-baseline", "null", "null-shuffled")
            ]
            counts.append(shown[0].n)
            rows.append([c, m, score, *(number(rate, 1) for rate in shown), p_value(p[score][c, m])])
    return Table(
        f"{numbers.model}: the refusal direction on each modality's inputs",
        [
            "Compression",
            "Inputs",
            "Score",
            "No intervention",
            "Refusal direction",
            "The modality's own",
            "Refusal direction − none",
            "Random",
            "Shuffled labels",
            "p",
        ],
        rows,
        f"n: {usual_n(counts)} pairs of a modality; p: one-sided, that a random direction or one over shuffled labels, "
        "whichever does it more easily, moves the score as far as the refusal direction (Student's prediction "
        "interval), adjusted by Holm over the rows of a score.",
        "Refusal score (log-odds that the answer opens with a refusal) [95 % interval]. Bypass: of harmful halves of "
        "pairs with a direction ablated, lower is better; induce: of benign halves with it added, higher is better. "
        "The refusal direction was found on text; the modality's own at the same place on its prompts, each added as "
        "long as it is, so that induce depends on the length too. Random ones are as long as the refusal direction.",
        names=3,
        findings=_acting(numbers, places, p),
    )


def _acting(
    numbers: Numbers, places: list[tuple[str, str]], p: dict[str, dict[tuple[str, str], float]]
) -> list[str]:
    found = []
    for modality in dict.fromkeys(m for _, m in places):
        here = [c for c, m in places if m == modality]
        acting = {score: [c for c in here if p[score][c, modality] < SIGNIFICANT] for score in SCORES}
        both = [c for c in here if all(c in of for of in acting.values())]
        found.append(
            f"On {modality} inputs the refusal direction, found on text, acts beyond random directions and shuffled "
            f"labels (Holm-corrected p < {SIGNIFICANT}) when ablated in {len(acting['bypass'])} of "
            f"{count(here, 'model')}{names(acting['bypass'])}, when added in {len(acting['induce'])}"
            f"{names(acting['induce'])}; both ways in {len(both)}."
        )
    return found
