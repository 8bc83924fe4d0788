"""Which edit to make: the search among candidates on validation prompts, best first in each variant.

An edit of some layer leaves the blocks below it as they are, so every pass starts at that layer, from block inputs
kept of the unedited model. All candidates are measured on a few prompts; then, of each variant, only the one with the
largest gain so far goes on, until the variant's leader has been measured on all, and so has the same edit at every
other strength: a few prompts tell layers apart, but strengths of one layer lie close together. A candidate whose KL
divergence on some prompts already exceeds the bound for all of them is out: KL is never negative. So every variant's
leader keeps the bound and beats every other candidate of it that was measured in full; one of another layer that was
overtaken early, on part of the prompts, might have recovered: its row in the trace says how many it saw.
"""

import contextlib
import heapq
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from holdfast.architectures import decoder_layers, module_name, writer
from holdfast.batching import fitting_batch_size, halving
from holdfast.edited_checkpoints import set_weight
from holdfast.methods.edit_candidates import Candidate, Edits, original
from holdfast.prompts.images import Instruction
from holdfast.refusal.passes import BlockInputs, next_token_logits
from holdfast.refusal.prompt_trees import Prompts
from holdfast.refusal.scores import RefusalScore, first_token_log_probabilities, kl_divergence

STEP = 4  # prompts of each kind that a candidate is measured on at a time


@contextlib.contextmanager
def edited(model: PreTrainedModel, edits: Edits, folder: Path) -> Iterator[None]:
    """The model of ``folder`` with the edited matrices dense in memory, and its own modules again afterwards."""
    kept: dict[str, tuple[nn.Linear, Tensor]] = {}
    layers = decoder_layers(model)
    try:
        for (layer, kind), edit in edits.items():
            linear = writer(layers[layer], kind)
            name = module_name(model, linear)
            kept[name] = linear, linear.weight.data
            set_weight(model, f"{name}.weight", edit.applied(original(model, linear, folder)))
        yield
    finally:
        for name, (linear, values) in kept.items():
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, linear)  # a quantized one was replaced by a dense one
            linear.weight.data = values


class EditSearch:
    """Refusal score and KL divergence of edits on validation prompts, a few prompts at a time.

    Args:
        layers: the lowest layer of every edit that will be tried.
        folder: the checkpoint that ``model`` was loaded from.
        max_kl: the largest mean KL divergence on harmless prompts, nats.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        score: RefusalScore,
        harmful: Sequence[Instruction],
        harmless: Sequence[Instruction],
        layers: Sequence[int],
        folder: Path,
        max_kl: float,
    ) -> None:
        self.model, self.score, self.folder, self.max_kl = model, score, folder, max_kl
        self.harmful = score.prompts(harmful)
        self.harmless = Prompts(score.tokenizer, score.settings, harmless)
        size = fitting_batch_size(model, max(self.harmful.lengths() + self.harmless.lengths()))
        self.of_harmful, self.of_harmless = (
            BlockInputs(model, prompts, layers, size) for prompts in (self.harmful, self.harmless)
        )
        self.steps = max(1, -(-max(len(harmful), len(harmless)) // STEP))
        scores, before = [], []
        for step in range(self.steps):
            scores.append(joined(halving(self._scores, self._rows(self.harmful, step))))
            before.append(joined(halving(self._first_tokens, self._rows(self.harmless, step))))
        self.baseline, self.before = scores, before

    def _rows(self, prompts: Prompts, step: int) -> list[int]:
        # Rounded up, so that the first step has prompts of each kind, however few of one there are.
        start, stop = (-(-len(prompts) * s // self.steps) for s in (step, step + 1))
        return list(range(start, stop))

    def _scores(self, rows: Sequence[int]) -> Tensor:
        return self.score.of(next_token_logits(self.model, self.harmful, rows))

    def _first_tokens(self, rows: Sequence[int]) -> Tensor:
        return first_token_log_probabilities(self.model, self.harmless, rows)

    def measure(self, candidate: Candidate, step: int) -> tuple[Tensor, Tensor | None]:
        """KL divergence [row] and refusal scores [row] of one step; None for these where the KL is over the bound by
        itself. Where there are more prompts of the other kind, a step may have none of one."""
        start = min(candidate.layers)

        def scores(rows: Sequence[int]) -> Tensor:
            with self.of_harmful.resumed(self.model, start, rows):
                return self._scores(rows)

        def first_tokens(rows: Sequence[int]) -> Tensor:
            with self.of_harmless.resumed(self.model, start, rows):
                return self._first_tokens(rows)

        with edited(self.model, candidate.edits, self.folder):
            after = joined(halving(first_tokens, self._rows(self.harmless, step)))
            kl = kl_divergence(self.before[step], after) if len(after) else after
            if not kl.sum() <= self.max_kl * len(self.harmless):
                return kl, None
            return kl, joined(halving(scores, self._rows(self.harmful, step)))


def joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts)) if parts else torch.zeros(0)


class Ranking:
    """Candidates by their gain in refusal score over the unedited model, of each variant apart, and what was measured.

    Making one measures every candidate on the first prompts; :meth:`leader` measures only what decides the lead.
    """

    def __init__(self, search: EditSearch, candidates: Sequence[Candidate]) -> None:
        self.search, self.candidates = search, candidates
        self.baseline = [value for step in search.baseline for value in step.tolist()]
        self.kls: list[list[float]] = [[] for _ in candidates]
        self.scores: list[list[float]] = [[] for _ in candidates]
        self.done = [0] * len(candidates)
        # At least: every candidate once, of each variant one layer's strengths to the end.
        leading = {(c.variant, c.alpha) for c in candidates}
        least = len(candidates) + len(leading) * (search.steps - 1)
        self.progress = tqdm(total=least, desc="edit search", unit="step", mininterval=2)
        self.inside = {number for number in range(len(candidates)) if self._advance(number)}
        self.heaps: dict[str, list[tuple[float, int]]] = {}
        for number in sorted(self.inside):
            self.heaps.setdefault(str(candidates[number].variant), []).append((-self.gain(number), number))
        for heap in self.heaps.values():
            heapq.heapify(heap)

    def _advance(self, number: int) -> bool:
        """Measure a candidate on the next prompts; whether it is still in."""
        kl, refusal = self.search.measure(self.candidates[number], self.done[number])
        self.kls[number] += kl.tolist()
        self.done[number] += 1
        self.progress.total = max(self.progress.total, self.progress.n + 1)
        self.progress.update()
        if refusal is None:
            return False
        self.scores[number] += refusal.tolist()
        return sum(self.kls[number]) <= self.search.max_kl * len(self.search.harmless)

    def gain(self, number: int) -> float:
        """Mean refusal score less the unedited model's, over the harmful prompts that the candidate has seen."""
        seen = len(self.scores[number])
        return (sum(self.scores[number]) - sum(self.baseline[:seen])) / seen

    def leader(self, variant: str) -> int | None:
        """The number of a variant's best candidate, measured on all prompts as its other strengths are; None when no
        candidate keeps the bound."""
        heap = self.heaps.get(variant, [])
        while heap:
            first = heap[0][1]
            layers = self.candidates[first].layers
            unfinished = [n for _, n in heap if self.done[n] < self.search.steps]
            if first not in unfinished:
                unfinished = [n for n in unfinished if self.candidates[n].layers == layers]
                if not unfinished:
                    return first
            else:
                unfinished = [first]
            for number in unfinished:
                heap.remove((-self.gain(number), number))
                if self._advance(number):
                    heap.append((-self.gain(number), number))
                else:
                    self.inside.remove(number)
            heapq.heapify(heap)
        return None

    def leaders(self) -> list[int]:
        """Every variant's leader, the largest gain first."""
        found = [self.leader(variant) for variant in self.heaps]
        self.progress.close()
        return sorted(
            (number for number in found if number is not None), key=lambda number: -self.gain(number)
        )

    def strengths(self, number: int) -> list[int]:
        """The same edit at other strengths: those still in the race, measured in full, that raise the score."""
        it = self.candidates[number]
        return [
            n
            for _, n in self.heaps[str(it.variant)]
            if n != number
            and self.candidates[n].layers == it.layers
            and self.done[n] == self.search.steps
            and self.gain(n) > 0
        ]

    def withdraw(self, numbers: Sequence[int]) -> None:
        """Take candidates out of the race; what was measured of them stays."""
        for variant, heap in self.heaps.items():
            self.heaps[variant] = [entry for entry in heap if entry[1] not in numbers]
            heapq.heapify(self.heaps[variant])

    def row(self, number: int) -> dict[str, Any]:
        """variant, layers, alpha; refusal_score and kl, means over the prompts seen (refusal_score None where the
        candidate was over the bound); prompts, how many of each kind it saw."""
        candidate = self.candidates[number]
        return {
            "variant": candidate.variant,
            "layers": candidate.layers,
            "alpha": candidate.alpha,
            "refusal_score": mean(self.scores[number]) if number in self.inside else None,
            "kl": mean(self.kls[number]),
            "prompts": len(self.kls[number]),
        }

    def trace(self) -> list[dict[str, Any]]:
        """A row for the unedited model, then one a candidate."""
        unedited: dict[str, Any] = {
            "variant": None,
            "layers": [],
            "alpha": 0.0,
            "refusal_score": mean(self.baseline),
        }
        rows = [self.row(number) for number in range(len(self.candidates))]
        return [unedited | {"kl": 0.0, "prompts": len(self.baseline)}, *rows]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
