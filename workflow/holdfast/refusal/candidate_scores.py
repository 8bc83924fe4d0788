"""Scores of candidate directions, measured prompt after prompt as far as they are asked for, each value once.

The means over some prompts bound the means over all: KL divergence is never negative, and a refusal score is at most
that of a certain refusal.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from holdfast.architectures import decoder_layers
from holdfast.batching import fitting_batch_size, halving
from holdfast.prompts.images import Instruction
from holdfast.refusal.interventions import ablated
from holdfast.refusal.passes import BlockInputs, next_token_logits, pack_size
from holdfast.refusal.prompt_trees import Prompts
from holdfast.refusal.scores import HIGHEST, RefusalScore, first_token_log_probabilities, kl_divergence

Packs = Sequence[tuple[int, ...]]


@dataclass(frozen=True)
class Candidate:
    """``difference`` (mean harmful − mean harmless) [d_model] float32; ``harmless`` means [layer, d_model] for affine
    ablation, or None."""

    position: int
    layer: int
    difference: Tensor
    harmless: Tensor | None = None

    @property
    def unit(self) -> Tensor:
        return self.difference / self.difference.norm()


class Measure:
    """One score of every candidate: its sum over the prompts that were asked so far, shortest first.

    Args:
        of: the score of candidates (numbers), one a pack, on the prompts of its pack: [prompt], pack after pack.
        apart: candidates that differ in it cannot go through the model together.
        size, pack: prompts in a batch, and in a row of it.
    """

    def __init__(
        self,
        prompts: Prompts,
        of: Callable[[Sequence[int], Packs], Tensor],
        apart: Sequence[int],
        size: int,
        pack: int,
    ) -> None:
        self.prompts, self.of, self.apart, self.size, self.pack = prompts, of, apart, size, pack
        self.order = sorted(range(len(prompts)), key=lambda row: len(prompts.ids[row]))
        self.total = [0.0] * len(apart)
        self.done = [0] * len(apart)

    def advance(self, numbers: Sequence[int], upto: int | None = None) -> None:
        """Go on with these candidates, over the first ``upto`` prompts (None: all)."""

        def alike(number: int) -> tuple[int, int]:
            return self.apart[number], self.done[number]

        for (_, done), together in itertools.groupby(sorted(numbers, key=alike), alike):
            rows = self.order[done:upto]
            if rows:
                packs = self.prompts.packs(rows, self.pack)
                items = [(number, pack) for number in together for pack in packs]
                halving(self._add, items, max(1, self.size // max(map(len, packs))))

    def _add(self, items: Sequence[tuple[int, tuple[int, ...]]]) -> None:
        packs = [pack for _, pack in items]
        values: Tensor | None = None
        try:
            values = self.of([number for number, _ in items], packs)
        except torch.cuda.OutOfMemoryError:
            if len(items) > 1 or len(packs[0]) == 1:
                raise
        if values is None:  # not even one pack fits
            torch.cuda.empty_cache()
            halving(self._add, [(items[0][0], (row,)) for row in packs[0]], 1)
            return
        for (number, _), some in zip(items, values.split([len(pack) for pack in packs]), strict=True):
            self.total[number] += some.sum().item()
            self.done[number] += len(some)

    def whole(self, number: int) -> bool:
        return self.done[number] == len(self.prompts)

    def so_far(self, number: int) -> float:
        """Mean over the prompts asked; of some."""
        return self.total[number] / self.done[number]

    def mean(self, number: int) -> float:
        """Mean over all prompts, NaN until all are asked."""
        return self.so_far(number) if self.whole(number) else math.nan

    def least(self, number: int) -> float:
        """The lowest that the mean can be, of a score that is never negative; NaN where any value was."""
        return self.total[number] / len(self.prompts)

    def most(self, number: int) -> float:
        """The highest that the mean can be, of a score that is at most HIGHEST; NaN where any value was."""
        return (self.total[number] + (len(self.prompts) - self.done[number]) * HIGHEST) / len(self.prompts)


class Sweep:
    """The three scores of candidates on validation prompts.

    ``kl``: KL divergence of the first answer token on harmless prompts with the direction ablated, nats; ``induce``:
    refusal score on harmless prompts, the difference added at its layer; ``bypass``: refusal score on harmful prompts
    with the direction ablated.

    Args:
        harmful, harmless: validation prompts.
        batch_size: prompts at a time; None fits it to the free memory. Halved when memory runs out.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        score: RefusalScore,
        candidates: Sequence[Candidate],
        harmful: Sequence[Instruction],
        harmless: Sequence[Instruction],
        batch_size: int | None = None,
    ) -> None:
        self.model, self.score, self.candidates = model, score, list(candidates)
        self.n_layers = len(decoder_layers(model))
        self.harmful, self.harmless = score.prompts(harmful), score.prompts(harmless)
        self.plain = Prompts(score.tokenizer, score.settings, harmless)
        size = batch_size or fitting_batch_size(model, max(self.harmful.lengths() + self.harmless.lengths()))
        pack = pack_size(model, [self.harmful, self.harmless], size)
        layers = [c.layer for c in self.candidates]
        self.kept = BlockInputs(model, self.harmless, layers, size, pack)
        together = [0] * len(layers)
        self.kl = Measure(self.plain, self._kl, together, size, pack)
        self.induce = Measure(self.harmless, self._induce, layers, size, pack)
        self.bypass = Measure(self.harmful, self._bypass, together, size, pack)

    def _directions(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """What :func:`ablated` takes: one direction a row."""
        chosen = [self.candidates[n] for n in numbers]
        means = [c.harmless for c in chosen if c.harmless is not None]
        return torch.stack([c.unit for c in chosen]), torch.stack(means, 1) if means else None

    def _kl(self, numbers: Sequence[int], packs: Packs) -> Tensor:
        rows = [row for pack in packs for row in pack]
        with ablated(self.model, *self._directions(numbers)):
            after = first_token_log_probabilities(self.model, self.plain, packs)
        return kl_divergence(self.kept.first[rows], after)

    def _bypass(self, numbers: Sequence[int], packs: Packs) -> Tensor:
        with ablated(self.model, *self._directions(numbers)):
            return self.score.of(next_token_logits(self.model, self.harmful, packs))

    def _induce(self, numbers: Sequence[int], packs: Packs) -> Tensor:
        differences = torch.stack([self.candidates[n].difference for n in numbers])
        with self.kept.resumed(self.model, self.candidates[numbers[0]].layer, packs, differences):
            return self.score.of(next_token_logits(self.model, self.harmless, packs))
