"""The sweep: which candidate direction mediates refusal best, without scoring them all in full.

The choice equals that of scoring every candidate on every prompt (``full=True``), because nothing is left out but what
cannot change it:

* KL divergence is never negative, so a candidate whose sum over some prompts already exceeds the bound for all of them
  is dropped there. Four short prompts come first, and more for candidates that seem to exceed it;
* a refusal score has a highest value, so a candidate that would not induce refusal even if every prompt left were
  refused for certain is dropped there;
* ``bypass`` is measured for the rest, and the two filters to the end only from the lowest bypass up, until one passes;
* when none passes, a candidate is out of the question once its sum of KL divergences exceeds the whole sum of one that
  induces refusal, or once it cannot induce refusal itself: whichever is cheaper to show.

Passes hold several candidates, and several prompts a row (``prompt_trees``); adding a direction at layer l leaves the
blocks below as they are, so those passes start at layer l.
"""

import heapq
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from tqdm import tqdm

from holdfast.refusal.candidate_scores import Sweep
from holdfast.refusal.scores import HIGHEST
from holdfast.refusal.selection import best_failing, choose, nothing_measured, too_deep, why_dropped

STEP = 4  # prompts that a candidate is tried on before more
COLUMNS = ["position", "layer", "bypass", "induce", "kl", "kl_prompts", "dropped", "chosen"]
NOT_NEEDED = "not the lowest bypass"


def run_sweep(
    sweep: Sweep, n_layers: int, max_kl: float, min_induce: float, *, full: bool = False
) -> tuple[pd.DataFrame, int, bool]:
    """Measure what the choice needs; ``full`` measures everything.

    Returns the table, the number of the chosen candidate, and whether it passes the filters; when none does, the one
    that ``selection.best_failing`` names.
    """
    everything = list(range(len(sweep.candidates)))
    if full:
        for number in tqdm(everything, desc="direction sweep", unit="candidate", mininterval=2):
            for measure in (sweep.kl, sweep.induce, sweep.bypass):
                measure.advance([number])
        table = scores_table(sweep, n_layers, max_kl, min_induce)
        usable = bool((table["dropped"] == "").any())
        bounds = max_kl, min_induce
        picked = choose(table, n_layers, *bounds) if usable else best_failing(table, n_layers, min_induce)
        return table, int(picked.name), usable
    shallow = [n for n in everything if not too_deep(sweep.candidates[n].layer, n_layers)]
    with tqdm(total=3 * len(shallow), desc="direction sweep", unit="step", mininterval=2) as progress:
        hopeful = _within_bound(sweep, shallow, max_kl, progress)
        progress.update(len(shallow) - len(hopeful))
        sweep.induce.advance(hopeful, STEP)
        for number in hopeful:
            if sweep.induce.so_far(number) >= min_induce or _induces(sweep, number, min_induce):
                sweep.bypass.advance([number])
            progress.update()
        ranked = sorted(
            (n for n in hopeful if not math.isnan(sweep.bypass.mean(n))),
            key=lambda n: (sweep.bypass.mean(n), n),
        )
        chosen = next((n for n in ranked if _passes(sweep, n, max_kl, min_induce)), None)
        usable = chosen is not None
        if chosen is None:
            chosen = _best_failing(sweep, shallow, min_induce, progress)
            sweep.bypass.advance([chosen])
        progress.update(progress.total - progress.n)
    return scores_table(sweep, n_layers, max_kl, min_induce), chosen, usable


def scores_table(sweep: Sweep, n_layers: int, max_kl: float, min_induce: float) -> pd.DataFrame:
    """One row a candidate: its scores as far as they were measured to the end, and why it was dropped."""
    rows = []
    for number, candidate in enumerate(sweep.candidates):
        kl, induce = sweep.kl, sweep.induce
        row = {
            "position": candidate.position,
            "layer": candidate.layer,
            "bypass": sweep.bypass.mean(number),
            "induce": induce.mean(number),
            "kl": kl.mean(number),
            "kl_prompts": kl.done[number],
        }
        # A bound that fails a filter has failed it; one that does not leaves it open.
        known = {**row, "kl": kl.least(number), "induce": induce.most(number)}
        failed = why_dropped(known, n_layers, max_kl, min_induce)
        measured = all(m.whole(number) for m in (kl, induce, sweep.bypass))
        if not measured and failed in ("", "bypass is NaN"):
            failed = NOT_NEEDED
        rows.append({**row, "dropped": failed, "chosen": False})
    return pd.DataFrame(rows, columns=COLUMNS)


def _within_bound(sweep: Sweep, numbers: Sequence[int], max_kl: float, progress: Any) -> list[int]:
    """Candidates not shown to exceed the bound on KL; those that seem to are pursued until they are or do not."""
    kl = sweep.kl
    undecided, hopeful = list(numbers), []
    while undecided:
        kl.advance(undecided, kl.done[undecided[0]] + STEP)
        inside = [n for n in undecided if kl.least(n) <= max_kl]
        still = [n for n in inside if kl.so_far(n) > max_kl and not kl.whole(n)]
        progress.update(len(undecided) - len(still))
        hopeful += [n for n in inside if n not in still]
        undecided = still
    return sorted(hopeful)


def _induces(sweep: Sweep, number: int, min_induce: float) -> bool:
    """Whether the candidate induces refusal over all prompts; asked as far as it takes to know."""
    induce = sweep.induce
    while induce.most(number) >= min_induce and not induce.whole(number):
        induce.advance([number], _induce_prompts(sweep, number, min_induce))
    return induce.mean(number) >= min_induce


def _induce_prompts(sweep: Sweep, number: int, min_induce: float) -> int:
    """On how many prompts a candidate must be asked until it is shown not to induce refusal, if it goes on alike."""
    induce, everything = sweep.induce, len(sweep.harmless)
    if not induce.so_far(number) < min_induce:
        return everything
    needed = everything * (HIGHEST - min_induce) / (HIGHEST - induce.so_far(number))
    return min(everything, max(induce.done[number] + STEP, math.ceil(needed)))


def _passes(sweep: Sweep, number: int, max_kl: float, min_induce: float) -> bool:
    """The filters, KL in steps so that a candidate far over the bound costs little."""
    kl = sweep.kl
    while kl.least(number) <= max_kl and not kl.whole(number):
        kl.advance([number], 2 * kl.done[number])
    return kl.least(number) <= max_kl and _induces(sweep, number, min_induce)


def _best_failing(sweep: Sweep, numbers: Sequence[int], min_induce: float, progress: Any) -> int:
    """``selection.best_failing`` with as few passes as can be."""
    kl, induce = sweep.kl, sweep.induce
    known = [n for n in numbers if not math.isnan(kl.least(n))]
    induce.advance(known, STEP)
    best: int | None = None

    def beaten(number: int) -> bool:
        if best is None:
            return math.isnan(kl.least(number))
        return not (kl.least(number), number) <= (kl.least(best), best)

    # First those that seem to induce refusal, by what their KL seems to be: theirs is what others have to undercut.
    for number in sorted(known, key=lambda n: (not induce.so_far(n) >= min_induce, kl.so_far(n))):
        if best is not None and _kl_is_cheaper(sweep, number, kl.total[best], min_induce):
            while not (beaten(number) or kl.whole(number)):
                kl.advance([number], max(kl.done[number] + STEP, _kl_prompts(sweep, number, kl.total[best])))
        if not beaten(number) and _induces(sweep, number, min_induce):
            while not (beaten(number) or kl.whole(number)):
                kl.advance([number], None if best is None else 2 * kl.done[number])
            best = best if beaten(number) else number
        progress.update()
    return _lowest_kl(sweep, known) if best is None else best


def _kl_prompts(sweep: Sweep, number: int, total: float) -> int:
    """On how many prompts a candidate's sum of KL divergences exceeds ``total``, if it goes on alike; with one over."""
    so_far = sweep.kl.so_far(number)
    return math.ceil(total / so_far) + 1 if so_far > 0 else 2 * len(sweep.plain)


def _kl_is_cheaper(sweep: Sweep, number: int, total: float, min_induce: float) -> bool:
    """Whether to show that a KL divergence is too high takes fewer tokens × layers than that nothing is induced."""
    layers = sweep.n_layers
    by_kl = _kl_prompts(sweep, number, total)
    by_induce = _induce_prompts(sweep, number, min_induce) - sweep.induce.done[number]
    kl_tokens, induce_tokens = (sum(p.lengths()) / len(p) for p in (sweep.plain, sweep.harmless))
    cost = by_induce * induce_tokens * (layers - sweep.candidates[number].layer)
    return by_kl <= len(sweep.plain) and (by_kl - sweep.kl.done[number]) * kl_tokens * layers < cost


def _lowest_kl(sweep: Sweep, numbers: Sequence[int]) -> int:
    """What is measured so far is a lower bound of the KL: always the lowest is measured on."""
    kl = sweep.kl
    heap = [(kl.least(n), n) for n in numbers]
    heapq.heapify(heap)
    while heap:
        _, number = heapq.heappop(heap)
        if kl.whole(number):
            return number
        kl.advance([number], kl.done[number] + STEP)
        if not math.isnan(kl.least(number)):
            heapq.heappush(heap, (kl.least(number), number))
    raise nothing_measured()
