"""The sweep: which candidate direction mediates refusal best, without scoring them all in full.

The choice equals that of scoring every candidate on every prompt (``full=True``), because nothing is left out but what
cannot change it:

* KL divergence is never negative, so a candidate whose sum over some prompts already exceeds the bound for all of them
  is dropped there. Four short prompts come first, several candidates in one batch, one direction a row, and more for
  candidates that seem to exceed it;
* of the rest those that on four prompts do not induce refusal are tried on all, and dropped if they do not;
* of the rest ``bypass`` is measured, and the two filters to the end only from the lowest bypass up, until one passes;
* adding a direction at layer l leaves the blocks below as they are: those passes start at layer l.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from holdfast.batching import fitting_batch_size, halving
from holdfast.refusal.interventions import ablated
from holdfast.refusal.passes import BlockInputs, Prompts, next_token_logits
from holdfast.refusal.scores import RefusalScore, first_token_log_probabilities, kl_divergence
from holdfast.refusal.selection import best_failing, choose, nothing_measured, too_deep, why_dropped

STEP = 4  # prompts at a time that a candidate's KL is tried on
COLUMNS = ["position", "layer", "bypass", "induce", "kl", "kl_prompts", "dropped", "chosen"]
NOT_NEEDED = "not the lowest bypass"


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


class Sweep:
    """Scores of candidates on validation prompts, each measured when it is asked for and once only.

    Args:
        harmful, harmless: validation prompts.
        batch_size: prompts at a time; None fits it to the free memory. Halved when memory runs out.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        score: RefusalScore,
        candidates: Sequence[Candidate],
        harmful: Sequence[str],
        harmless: Sequence[str],
        batch_size: int | None = None,
    ) -> None:
        self.model, self.score, self.candidates = model, score, list(candidates)
        self.harmful, self.harmless = score.prompts(harmful), score.prompts(harmless)
        self.plain = Prompts(score.tokenizer, score.settings, harmless)
        self.size = batch_size or fitting_batch_size(
            model, max(self.harmful.lengths() + self.harmless.lengths())
        )
        everything = list(range(len(self.plain)))
        self.before = torch.cat(halving(self._first_tokens, everything, self.size))
        self.kl_order = sorted(everything, key=lambda row: len(self.plain.ids[row]))
        self.kl_sum = [0.0] * len(self.candidates)
        self.kl_done = [0] * len(self.candidates)
        self.bypass = [math.nan] * len(self.candidates)
        self.induce_values: list[list[float]] = [[] for _ in self.candidates]
        self.kept: BlockInputs | None = None

    def _first_tokens(self, rows: Sequence[int]) -> Tensor:
        return first_token_log_probabilities(self.model, self.plain, rows)

    def measure_kl(self, numbers: Sequence[int], upto: int) -> None:
        """Go on with the KL of these candidates (numbers), over the first ``upto`` prompts, shortest first."""
        pairs = [(n, row) for n in numbers for row in self.kl_order[self.kl_done[n] : upto]]

        def of(some: Sequence[tuple[int, int]]) -> Tensor:
            chosen, rows = [self.candidates[n] for n, _ in some], [row for _, row in some]
            units = torch.stack([c.unit for c in chosen])
            means = None
            if chosen[0].harmless is not None:
                means = torch.stack([c.harmless for c in chosen if c.harmless is not None], 1)
            with ablated(self.model, units, means):
                return kl_divergence(self.before[rows], self._first_tokens(rows))

        values = torch.cat(halving(of, pairs, self.size)).tolist() if pairs else []
        for (number, _), value in zip(pairs, values, strict=True):
            self.kl_sum[number] += value
            self.kl_done[number] += 1

    def kl(self, number: int) -> float:
        """Mean KL divergence on harmless prompts, nats; a lower bound of it until all prompts are measured.

        NaN where any value was.
        """
        return self.kl_sum[number] / len(self.plain)

    def measure_bypass(self, number: int) -> float:
        """Mean refusal score on harmful prompts with the direction ablated."""
        if math.isnan(self.bypass[number]):
            candidate = self.candidates[number]

            def of(rows: Sequence[int]) -> Tensor:
                with ablated(self.model, candidate.unit, candidate.harmless):
                    return self.score.of(next_token_logits(self.model, self.harmful, rows))

            rows = [row for batch in self.harmful.batches(self.size) for row in batch]
            self.bypass[number] = torch.cat(halving(of, rows, self.size)).mean().item()
        return self.bypass[number]

    def measure_induce(self, number: int, upto: int | None = None) -> float:
        """Mean refusal score on the first ``upto`` harmless prompts (None: all), the difference added at its layer."""
        candidate, values = self.candidates[number], self.induce_values[number]
        if self.kept is None:
            layers = [c.layer for c in self.candidates]
            self.kept = BlockInputs(self.model, self.harmless, layers, self.size)
        kept = self.kept

        def of(rows: Sequence[int]) -> Tensor:
            with kept.resumed(self.model, candidate.layer, rows, candidate.difference):
                return self.score.of(next_token_logits(self.model, self.harmless, rows))

        for part in halving(of, range(len(self.harmless))[len(values) : upto], self.size):
            values += part.tolist()
        return sum(values) / len(values)

    def induce(self, number: int) -> float:
        """NaN until all prompts are measured."""
        values = self.induce_values[number]
        return sum(values) / len(values) if len(values) == len(self.harmless) else math.nan

    def table(self, n_layers: int, max_kl: float, min_induce: float) -> pd.DataFrame:
        """One row a candidate: its scores as far as they were measured, and why it was dropped."""
        rows = []
        for number, candidate in enumerate(self.candidates):
            whole = self.kl_done[number] == len(self.plain)
            row = {
                "position": candidate.position,
                "layer": candidate.layer,
                "bypass": self.bypass[number],
                "induce": self.induce(number),
                "kl": self.kl(number) if whole else math.nan,
                "kl_prompts": self.kl_done[number],
            }
            # A sum over part of the prompts that is over the bound for all of them has failed the filter already.
            known = self.kl(number) if whole or not self.kl(number) <= max_kl else 0.0
            failed = why_dropped({**row, "kl": known}, n_layers, max_kl, min_induce)
            undecided = math.isnan(row["induce"]) or (not whole and row["induce"] >= min_induce)
            if undecided and not failed.startswith(("last", "kl")):
                failed = NOT_NEEDED
            rows.append({**row, "dropped": failed, "chosen": False})
        return pd.DataFrame(rows, columns=COLUMNS)


def run_sweep(
    sweep: Sweep, n_layers: int, max_kl: float, min_induce: float, *, full: bool = False
) -> tuple[pd.DataFrame, int, bool]:
    """Measure what the choice needs; ``full`` measures everything.

    Returns the table, the number of the chosen candidate, and whether it passes the filters; when none does, the one
    that ``selection.best_failing`` names.
    """
    everything = list(range(len(sweep.candidates)))
    every_prompt = len(sweep.plain)
    if full:
        for number in tqdm(everything, desc="direction sweep", unit="candidate", mininterval=2):
            sweep.measure_kl([number], every_prompt)
            sweep.measure_induce(number)
            sweep.measure_bypass(number)
        table = sweep.table(n_layers, max_kl, min_induce)
        usable = bool((table["dropped"] == "").any())
        picked = choose(table, n_layers, max_kl, min_induce) if usable else best_failing(table, n_layers)
        return table, int(picked.name), usable
    shallow = [n for n in everything if not too_deep(sweep.candidates[n].layer, n_layers)]
    with tqdm(total=2 * len(shallow), desc="direction sweep", unit="step", mininterval=2) as progress:
        hopeful = []
        for number in _within_bound(sweep, shallow, max_kl, progress):
            # Where a few prompts say that it does not induce refusal, all of them are asked before anything else.
            induced = sweep.measure_induce(number, STEP)
            if induced >= min_induce or sweep.measure_induce(number) >= min_induce:
                sweep.measure_bypass(number)
                hopeful.append(number)
            progress.update()
    chosen = next((n for n in _by_bypass(sweep, hopeful) if _passes(sweep, n, max_kl, min_induce)), None)
    usable = chosen is not None
    if chosen is None:
        chosen = _best_failing(sweep, shallow)
        sweep.measure_bypass(chosen)
    return sweep.table(n_layers, max_kl, min_induce), chosen, usable


def _within_bound(sweep: Sweep, numbers: Sequence[int], max_kl: float, progress: Any) -> list[int]:
    """Candidates not shown to exceed the bound on KL; those that seem to are pursued until they are or do not."""
    group = max(1, sweep.size // STEP)
    undecided, hopeful = list(numbers), []
    while undecided:
        for start in range(0, len(undecided), group):
            some = undecided[start : start + group]
            sweep.measure_kl(some, sweep.kl_done[some[0]] + STEP)
        still = []
        for number in undecided:
            over = not sweep.kl(number) <= max_kl
            likely_over = sweep.kl_sum[number] > max_kl * sweep.kl_done[number]
            if not over and likely_over and sweep.kl_done[number] < len(sweep.plain):
                still.append(number)
                continue
            progress.update(2 if over else 1)
            if not over:
                hopeful.append(number)
        undecided = still
    return sorted(hopeful)


def _by_bypass(sweep: Sweep, numbers: Sequence[int]) -> list[int]:
    """From the lowest up, of equals the first; without those that are NaN."""
    return sorted((n for n in numbers if not math.isnan(sweep.bypass[n])), key=lambda n: (sweep.bypass[n], n))


def _passes(sweep: Sweep, number: int, max_kl: float, min_induce: float) -> bool:
    """The filters, KL in steps so that a candidate far over the bound costs little."""
    while sweep.kl(number) <= max_kl and sweep.kl_done[number] < len(sweep.plain):
        sweep.measure_kl([number], max(2 * sweep.kl_done[number], STEP))
    return sweep.kl(number) <= max_kl and sweep.measure_induce(number) >= min_induce


def _best_failing(sweep: Sweep, shallow: Sequence[int]) -> int:
    """``selection.best_failing`` with as few passes: what is measured so far is a lower bound of the KL."""
    heap = [(sweep.kl(n), sweep.kl_done[n] < len(sweep.plain), n) for n in shallow]
    heap = [entry for entry in heap if not math.isnan(entry[0])]
    heapq.heapify(heap)
    lowest: int | None = None
    while heap:
        _, bound_only, number = heapq.heappop(heap)
        if bound_only:
            sweep.measure_kl([number], sweep.kl_done[number] + STEP)
            if not math.isnan(sweep.kl(number)):
                heapq.heappush(heap, (sweep.kl(number), sweep.kl_done[number] < len(sweep.plain), number))
            continue
        lowest = number if lowest is None else lowest
        if sweep.measure_induce(number) > 0:
            return number
    if lowest is None:
        raise nothing_measured()
    return lowest
