"""Which edit to make: the search among candidates on validation prompts, best first.

An edit of some layer leaves the blocks below it as they are, so every pass starts at that layer, from block inputs
kept of the unedited model. All candidates are measured on a few prompts; then only the one with the largest gain so
far goes on, until the leader has been measured on all. A candidate whose KL divergence on some prompts already exceeds
the bound for all of them is out: KL is never negative. So the winner keeps the bound and beats every other candidate
measured in full; one that was overtaken early, on part of the prompts, might have recovered: its row in the trace says
how many it saw.
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
from holdfast.refusal.edit_candidates import Candidate, Edits, original
from holdfast.refusal.passes import BlockInputs, Prompts, next_token_logits
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
        harmful: Sequence[str],
        harmless: Sequence[str],
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
            scores.append(torch.cat(halving(self._scores, self._rows(self.harmful, step))))
            before.append(torch.cat(halving(self._first_tokens, self._rows(self.harmless, step))))
        self.baseline, self.before = scores, before

    def _rows(self, prompts: Prompts, step: int) -> list[int]:
        start, stop = (len(prompts) * s // self.steps for s in (step, step + 1))
        return list(range(start, stop))

    def _scores(self, rows: Sequence[int]) -> Tensor:
        return self.score.of(next_token_logits(self.model, self.harmful, rows))

    def _first_tokens(self, rows: Sequence[int]) -> Tensor:
        return first_token_log_probabilities(self.model, self.harmless, rows)

    def measure(self, candidate: Candidate, step: int) -> tuple[Tensor, Tensor]:
        """KL divergence [row] and, where it is not over the bound by itself, refusal scores [row] of one step."""
        start = min(candidate.layers)

        def scores(rows: Sequence[int]) -> Tensor:
            with self.of_harmful.resumed(self.model, start, rows):
                return self._scores(rows)

        def first_tokens(rows: Sequence[int]) -> Tensor:
            with self.of_harmless.resumed(self.model, start, rows):
                return self._first_tokens(rows)

        with edited(self.model, candidate.edits, self.folder):
            after = torch.cat(halving(first_tokens, self._rows(self.harmless, step)))
            kl = kl_divergence(self.before[step], after)
            if not kl.sum() <= self.max_kl * len(self.harmless):
                return kl, torch.zeros(0)
            return kl, torch.cat(halving(scores, self._rows(self.harmful, step)))

    def run(self, candidates: Sequence[Candidate]) -> tuple[int | None, list[dict[str, Any]]]:
        """The number of the winner, None when none keeps the bound and raises the score, and the trace.

        The trace has a row for the unedited model, then one a candidate: variant, layers, alpha, refusal_score and kl
        (means over the prompts it saw; refusal_score None where it was over the bound), and how many it saw.
        """
        kls: list[list[float]] = [[] for _ in candidates]
        scores: list[list[float]] = [[] for _ in candidates]
        done = [0] * len(candidates)
        baseline = [value for step in self.baseline for value in step.tolist()]
        progress = tqdm(
            total=len(candidates) + self.steps - 1, desc="edit search", unit="step", mininterval=2
        )

        def advance(number: int) -> bool:
            """Whether the candidate is still in."""
            kl, refusal = self.measure(candidates[number], done[number])
            kls[number] += kl.tolist()
            scores[number] += refusal.tolist()
            done[number] += 1
            progress.update()
            return len(refusal) > 0 and sum(kls[number]) <= self.max_kl * len(self.harmless)

        def gain(number: int) -> float:
            seen = len(scores[number])
            return (sum(scores[number]) - sum(baseline[:seen])) / seen

        inside = [number for number in range(len(candidates)) if advance(number)]
        heap = [(-gain(number), number) for number in inside]
        heapq.heapify(heap)
        best = None
        while heap:
            number = heapq.heappop(heap)[1]
            if done[number] == self.steps:
                best = number if gain(number) > 0 else None
                break
            if advance(number):
                heapq.heappush(heap, (-gain(number), number))
            else:
                inside.remove(number)
        progress.close()
        trace: list[dict[str, Any]] = [
            {
                "variant": None,
                "layers": [],
                "alpha": 0.0,
                "refusal_score": sum(baseline) / len(baseline),
                "kl": 0.0,
                "prompts": len(baseline),
            }
        ]
        for number, candidate in enumerate(candidates):
            trace.append(
                {
                    "variant": candidate.variant,
                    "layers": candidate.layers,
                    "alpha": candidate.alpha,
                    "refusal_score": mean(scores[number]) if number in inside else None,
                    "kl": mean(kls[number]),
                    "prompts": len(kls[number]),
                }
            )
        return best, trace


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
