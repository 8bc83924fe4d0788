"""The edit that is made: variant and layers by the search's score, its strength by real answers to validation prompts.

An edit that fails there (:mod:`holdfast.methods.validation`) gives way to the next best. The score tells variants and
layers apart, but not how strong an edit has to be: of the winner's strengths the answers choose.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from holdfast.methods.edit_candidates import Candidate
from holdfast.methods.edit_search import Ranking, edited
from holdfast.methods.validation import OVER_REFUSES, TRIES, Trials


def choose_edit(ranking: Ranking, trials: Trials, folder: Path) -> tuple[Candidate | None, dict[str, Any]]:
    """The candidate to make, or None, and ``{reason, leaderboard}`` for edit.json.

    ``folder``: the checkpoint that the model was loaded from; it does not refuse all harmful prompts. ``leaderboard``:
    the best candidate of every variant and whatever was verified after them, measured in full, best first, as rows of
    :meth:`Ranking.row` with ``chosen`` and ``rejected`` (why it was verified and not made, or None).
    """
    leaders = ranking.leaders()
    board = {number: ranking.row(number) | {"chosen": False, "rejected": None} for number in leaders}

    def rejected(number: int) -> str | None:
        under = edited(trials.verifier.model, ranking.candidates[number].edits, folder)
        row = board.setdefault(number, ranking.row(number) | {"chosen": False})
        row["rejected"] = trials.rejected(
            number, under, **{key: row[key] for key in ("variant", "layers", "alpha")}
        )
        return row["rejected"]

    chosen, reason = None, ""
    while chosen is None and not reason:
        if not leaders or ranking.gain(leaders[0]) <= 0:
            reason = (
                "no other edit is left that raises the refusal score"
                if trials.tries
                else "no edit keeps the bound on kl and raises the refusal score"
            )
        elif len(trials.tries) == TRIES:
            reason = f"none of the {TRIES} best edits is borne out by the answers to validation prompts"
        elif why := rejected(leaders[0]):
            ranking.withdraw(beaten(ranking.candidates, leaders[0], why))
            leaders = ranking.leaders()
        else:
            for other in ranking.strengths(leaders[0]):
                rejected(other)
            chosen = trials.best(ranking.gain)
            board[chosen]["chosen"] = True
    ordered = sorted(board, key=lambda number: -ranking.gain(number))
    return (
        None if chosen is None else ranking.candidates[chosen],
        {"reason": reason, "leaderboard": [board[number] for number in ordered]},
    )


def beaten(candidates: Sequence[Candidate], number: int, why: str) -> list[int]:
    """Candidates that need no verifying once this one was rejected: itself, and of the same variant and layers those
    that are stronger still, where it over-refuses, or weaker still, where it gains nothing."""
    it = candidates[number]
    same = [n for n, c in enumerate(candidates) if (c.variant, c.layers) == (it.variant, it.layers)]
    if it.alpha is None:
        return same
    sign = 1 if why == OVER_REFUSES else -1
    return [n for n in same if sign * (candidates[n].alpha or 0.0) >= sign * it.alpha]
