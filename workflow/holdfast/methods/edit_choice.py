"""The edit that is made: variant and layers by the search's score, its strength by real answers to validation prompts.

The score reads the first tokens only and KL averages over prompts, so the winner is verified: with greedy answers it
must refuse more harmful validation prompts than the unedited model, and not too many more harmless ones. Babble is no
refusal, whatever words it holds. An edit that fails gives way to the next best. The score tells variants and layers
apart, but not how strong an edit has to be: of the winner's strengths the answers choose.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from holdfast.evaluation.generation import complete
from holdfast.evaluation.judges import degenerate, substring_judge
from holdfast.methods.edit_candidates import Candidate
from holdfast.methods.edit_search import Ranking, edited
from holdfast.prompts.templates import answer_opening
from holdfast.refusal.score_check import ANSWER_TOKENS
from holdfast.statistics import wilson

TRIES = 5  # edits verified with real answers before nothing is edited

NO_GAIN = "refuses no more harmful prompts"
OVER_REFUSES = "refuses too many harmless prompts"
NOTHING_TO_GAIN = "the unedited model refuses every harmful validation prompt: nothing to gain"


@dataclass(frozen=True)
class Verifier:
    """Counts refusals in greedy answers of ANSWER_TOKENS tokens to the validation prompts.

    ``judge``: name of a substring judge; ``max_over_refusal``: share of the harmless prompts.
    """

    model: PreTrainedModel
    tokenizer: Any
    settings: Mapping[str, Any]
    harmful: Sequence[str]
    harmless: Sequence[str]
    folder: Path
    judge: str
    max_over_refusal: float

    def refused(self, under: AbstractContextManager[None] | None = None) -> tuple[int, int]:
        """Harmful and harmless prompts genuinely refused by the model: refused and not degenerate; under an edit or
        intervention or as it is."""
        judge = substring_judge(self.judge)
        with under or nullcontext():
            done = complete(
                self.model,
                self.tokenizer,
                [*self.harmful, *self.harmless],
                self.settings,
                max_new_tokens=ANSWER_TOKENS,
                progress="answers to verify",
                suffix=answer_opening(self.tokenizer, self.settings),
            )
        found = [judge.refused(c.text, c.finish_reason) and not degenerate(c.text) for c in done]
        return sum(found[: len(self.harmful)]), sum(found[len(self.harmful) :])

    @property
    def allowed(self) -> int:
        """Harmless prompts more that an edit may refuse: the bound's share, yet one where it is less than one."""
        return max(1, int(self.max_over_refusal * len(self.harmless) + 1e-9)) if self.max_over_refusal else 0

    def nothing_to_gain(self, before: tuple[int, int]) -> str:
        """Why no search is made, or nothing: every harmful prompt is refused by the model as it is."""
        return NOTHING_TO_GAIN if before[0] == len(self.harmful) else ""

    def rejected(self, before: tuple[int, int], after: tuple[int, int]) -> str | None:
        """Why the edit is not made, or None."""
        if after[1] - before[1] > self.allowed:
            return OVER_REFUSES
        return NO_GAIN if after[0] <= before[0] else None

    @staticmethod
    def better(counts: tuple[int, int]) -> tuple[int, int]:
        """What the better of two strengths has more of: harmful prompts refused, then harmless ones answered."""
        return counts[0], -counts[1]

    def about(self, before: tuple[int, int]) -> dict[str, Any]:
        """How refusals are counted, and of the model as it is."""
        return {
            "judge": self.judge,
            "tokens": ANSWER_TOKENS,
            "max_over_refusal": self.max_over_refusal,
            "before": self.rates(before),
        }

    def rates(self, counts: tuple[int, int]) -> dict[str, Any]:
        sizes = len(self.harmful), len(self.harmless)
        names = ("harmful_refused", "harmless_refused")
        return {name: wilson(k, n)._asdict() for name, k, n in zip(names, counts, sizes, strict=True)}


def choose_edit(
    ranking: Ranking, verifier: Verifier, before: tuple[int, int]
) -> tuple[Candidate | None, dict[str, Any]]:
    """The candidate to make, or None, and ``{reason, leaderboard, validation}`` for edit.json.

    ``before``: what the unedited model refuses, not all of the harmful prompts. ``leaderboard``: the best candidate of
    every variant and whatever was verified after them, measured in full, best first, as rows of :meth:`Ranking.row`
    with ``chosen`` and ``rejected`` (why it was verified and not made, or None).
    """
    leaders = ranking.leaders()
    board = {number: ranking.row(number) | {"chosen": False, "rejected": None} for number in leaders}
    tries: list[dict[str, Any]] = []

    def tried(number: int) -> tuple[int, int] | None:
        """The counts of an edit that passes."""
        edits = ranking.candidates[number].edits
        after = verifier.refused(edited(verifier.model, edits, verifier.folder))
        board.setdefault(number, ranking.row(number) | {"chosen": False})
        board[number]["rejected"] = verifier.rejected(before, after)
        about = {key: board[number][key] for key in ("variant", "layers", "alpha", "rejected")}
        tries.append(about | verifier.rates(after))
        return None if about["rejected"] else after

    chosen, reason = None, ""
    while chosen is None and not reason:
        if not leaders or ranking.gain(leaders[0]) <= 0:
            reason = (
                "no other edit is left that raises the refusal score"
                if tries
                else "no edit keeps the bound on kl and raises the refusal score"
            )
        elif len(tries) == TRIES:
            reason = f"none of the {TRIES} best edits is borne out by the answers to validation prompts"
        else:
            number = leaders[0]
            if counts := tried(number):
                passing = {number: counts}
                for other in ranking.strengths(number):
                    if counts := tried(other):
                        passing[other] = counts
                chosen = max(passing, key=lambda n: (*verifier.better(passing[n]), ranking.gain(n)))
                board[chosen]["chosen"] = True
            else:
                ranking.withdraw(beaten(ranking.candidates, number, board[number]["rejected"]))
                leaders = ranking.leaders()
    validation = verifier.about(before) | {"tries": tries}
    ordered = sorted(board, key=lambda number: -ranking.gain(number))
    return (
        None if chosen is None else ranking.candidates[chosen],
        {"reason": reason, "leaderboard": [board[number] for number in ordered], "validation": validation},
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
