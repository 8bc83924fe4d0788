"""What every method's search shares: a score to run on, and real answers to validation prompts with the last word.

The score reads the first tokens only and KL averages over prompts, so what a search finds is verified: with greedy
answers it must refuse more harmful validation prompts than the unedited model, and not too many more harmless ones.
Babble is no refusal, whatever words it holds.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from holdfast.evaluation.generation import complete
from holdfast.evaluation.judges import degenerate, substring_judge
from holdfast.prompts.images import Instruction
from holdfast.prompts.templates import answer_opening
from holdfast.refusal.score_check import ANSWER_TOKENS, search_score
from holdfast.refusal.scores import RefusalScore
from holdfast.statistics import wilson

TRIES = 5  # the best that are verified with real answers before nothing is made
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
    harmful: Sequence[Instruction]
    harmless: Sequence[Instruction]
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

    def rejected(self, before: tuple[int, int], after: tuple[int, int]) -> str | None:
        """Why what is tried is not made, or None."""
        if after[1] - before[1] > self.allowed:
            return OVER_REFUSES
        return NO_GAIN if after[0] <= before[0] else None


class Trials:
    """Answers of the unedited model, and of what is tried after it.

    ``before``: harmful and harmless prompts that the unedited model refuses; ``tries``: of everything tried what names
    it, ``rejected`` (why it is not made, or None) and its rates of refusal.
    """

    def __init__(self, verifier: Verifier) -> None:
        self.verifier = verifier
        self.before = verifier.refused()
        self.tries: list[dict[str, Any]] = []
        self._passing: dict[Hashable, tuple[int, int]] = {}

    @property
    def nothing_to_gain(self) -> bool:
        return self.before[0] == len(self.verifier.harmful)

    def rejected(self, key: Hashable, under: AbstractContextManager[None], **named: Any) -> str | None:
        """Have the model answer under an edit or intervention; why that is not made, or None."""
        after = self.verifier.refused(under)
        rejected = self.verifier.rejected(self.before, after)
        self.tries.append(named | {"rejected": rejected} | self._rates(after))
        if rejected is None:
            self._passing[key] = after
        return rejected

    def best(self, gain: Callable[[Any], float]) -> Any:
        """The key of what passed and refuses most harmful prompts, then fewest harmless ones, then gains most.

        None where nothing passed.
        """
        passing = self._passing
        return max(passing, key=lambda key: (passing[key][0], -passing[key][1], gain(key)), default=None)

    def about(self) -> dict[str, Any]:
        """How refusals are counted, of the model as it is and of all that was tried."""
        return {
            "judge": self.verifier.judge,
            "tokens": ANSWER_TOKENS,
            "max_over_refusal": self.verifier.max_over_refusal,
            "before": self._rates(self.before),
            "tries": self.tries,
        }

    def _rates(self, counts: tuple[int, int]) -> dict[str, Any]:
        sizes = len(self.verifier.harmful), len(self.verifier.harmless)
        names = ("harmful_refused", "harmless_refused")
        return {name: wilson(k, n)._asdict() for name, k, n in zip(names, counts, sizes, strict=True)}


def searched(
    search: Callable[[RefusalScore, Trials], tuple[Any, dict[str, Any]]],
    model: PreTrainedModel,
    tokenizer: Any,
    settings: Mapping[str, Any],
    *,
    own: Mapping[str, Any],
    dense: Mapping[str, Any],
    harmful: Sequence[Instruction],
    harmless: Sequence[Instruction],
    recipe: Mapping[str, Any],
) -> tuple[Any | None, dict[str, Any]]:
    """What a search finds, or None, and ``{score, reason, validation}`` with whatever else it says.

    Nothing is searched without a score that tracks refusal (``score_check.search_score``), nor where the unedited model
    refuses every harmful validation prompt already; ``reason`` says why nothing was found, or is empty.

    Args:
        search: given the score and the trials, what it finds or None, and its part of the record, ``reason`` included.
        own, dense: the ``direction.json`` of the model and of the dense one.
        recipe: ``judge`` and ``search`` {max_over_refusal}.
    """
    score, about = search_score(own, dense, tokenizer, settings)
    if score is None:
        return None, {"score": about, "reason": f"no search: {about['reason']}", "validation": None}
    verifier = Verifier(
        model, tokenizer, settings, harmful, harmless, recipe["judge"], recipe["search"]["max_over_refusal"]
    )
    trials = Trials(verifier)
    if trials.nothing_to_gain:
        return None, {"score": about, "reason": NOTHING_TO_GAIN, "validation": trials.about()}
    found, said = search(score, trials)
    return found, {"score": about, "validation": trials.about()} | said
