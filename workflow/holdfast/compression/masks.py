"""Which weights magnitude and Wanda prune: exact counts, compared per row, per matrix or n:m.

Wanda: Sun et al. 2023, *A Simple and Effective Pruning Approach for Large Language Models*, arXiv 2306.11695.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from holdfast.errors import HoldfastError

# Scores computed at once: the work space of a mask is a few times this, however large the matrix.
CHUNK = 1 << 18


@dataclass(frozen=True)
class Rule:
    """How many weights go and among which they are compared.

    Attributes:
        sparsity: share pruned of every comparison group, int(count * sparsity) of its weights; 0 with a
            pattern.
        pattern: (n, m), n weights kept of every m consecutive inputs of a row; None when unstructured.
        compare: the group of unstructured magnitude and Wanda pruning, ``row`` or ``layer`` (whole matrix).
    """

    sparsity: float
    pattern: tuple[int, int] | None
    compare: str

    @classmethod
    def of(cls, recipe: Mapping[str, Any]) -> "Rule":
        """The rule of a checked pruning recipe; without ``compare``: layer for magnitude, row for Wanda."""
        compare = recipe.get("compare") or ("layer" if recipe["prune"] == "magnitude" else "row")
        if recipe.get("pattern"):
            kept, of = map(int, recipe["pattern"].split(":"))
            return cls(0, (kept, of), compare)
        return cls(recipe["sparsity"], None, compare)

    def check_widths(self, linears: dict[str, nn.Linear]) -> None:
        """Raises HoldfastError naming the first module whose input width the pattern's m does not divide."""
        if self.pattern is None:
            return
        kept, of = self.pattern
        for name, linear in linears.items():
            if linear.in_features % of:
                raise HoldfastError(
                    f"{kept}:{of} does not fit the width {linear.in_features} of {name}",
                    "compression recipe, pattern",
                    f"use a pattern whose second number divides {linear.in_features}, or a sparsity",
                )


def magnitude_mask(weight: torch.Tensor, rule: Rule) -> torch.Tensor:
    """True where pruned: the smallest magnitudes of every group, the first of equals in row-major order.

    Compared over the matrix this is the magnitude baseline of Wanda's code (``prune_magnitude``), which
    prunes everything up to and including a threshold; here the count is exact.

    Args:
        weight: (d_out, d_in), finite.

    Returns:
        bool (d_out, d_in).
    """
    return _mask(weight, None, rule)


def wanda_mask(weight: torch.Tensor, input_norms: torch.Tensor, rule: Rule) -> torch.Tensor:
    """True where pruned: the lowest scores |W_ij| * ||X_j||_2 of every group, in float64, the first of equals
    in row-major order.

    Score: Sun et al. 2023, eq. 1; compared per output row in section 3, over the matrix and n:m in their
    section 4.

    Args:
        weight: (d_out, d_in), finite.
        input_norms: float64 (d_in), the L2 norm of each input feature over all calibration tokens; only its
            proportions matter.

    Returns:
        bool (d_out, d_in).
    """
    return _mask(weight, input_norms, rule)


def lowest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """True at the ``count`` lowest of every row of ``scores`` (rows, n), the first of equals first."""
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = _smallest(scores, count)
    mask = scores <= threshold
    if bool((mask.sum(dim=1) > count).any()):
        below = scores < threshold
        mask = below | _first(mask & ~below, count - below.sum(dim=1, keepdim=True))
    return mask


def lowest_of_group(scores: torch.Tensor, count: int) -> torch.Tensor:
    """True at the ``count`` lowest along the first dimension of ``scores`` (m, ...), the first of equals first.

    By rank, from a comparison of every two of the m: for the small m of n:m patterns several times faster
    than sorting, and unlike ``topk`` it settles ties.
    """
    ranks = torch.zeros(scores.shape, dtype=torch.int16, device=scores.device)
    for first in range(len(scores)):
        for second in range(first + 1, len(scores)):
            later = scores[second] < scores[first]
            ranks[first] += later
            ranks[second] += ~later
    return ranks < count


def _mask(weight: torch.Tensor, norms: torch.Tensor | None, rule: Rule) -> torch.Tensor:
    mask = torch.empty(weight.shape, dtype=torch.bool, device=weight.device)
    if rule.pattern is not None:
        kept, of = rule.pattern
        for rows, scores in _scores(weight, norms):
            groups = scores.view(len(scores), -1, of).movedim(2, 0).contiguous()
            mask[rows] = lowest_of_group(groups, of - kept).movedim(0, 2).reshape(scores.shape)
    elif rule.compare == "row":
        for rows, scores in _scores(weight, norms):
            mask[rows] = lowest(scores, int(weight.shape[1] * rule.sparsity))
    else:
        count = int(weight.numel() * rule.sparsity)
        if count == 0:
            return mask.fill_(False)
        threshold, ties = _threshold(weight, norms, count)
        for rows, scores in _scores(weight, norms):
            equal = (scores == threshold).view(1, -1)
            mask[rows] = (scores < threshold) | _first(equal, ties).view_as(scores)
            ties -= min(ties, int(equal.sum()))
    return mask


def _scores(weight: torch.Tensor, norms: torch.Tensor | None) -> Iterator[tuple[slice, torch.Tensor]]:
    """Rows of the matrix and their scores, a chunk of rows at a time."""
    step = max(1, CHUNK // weight.shape[1])
    for start in range(0, len(weight), step):
        rows = slice(start, start + step)
        chunk = weight[rows].abs()
        # Half precisions are exact in float32, which numpy knows and they are not.
        if norms is None:
            yield rows, chunk.to(torch.promote_types(chunk.dtype, torch.float32))
        else:
            yield rows, chunk.double() * norms.double()


def _threshold(weight: torch.Tensor, norms: torch.Tensor | None, count: int) -> tuple[torch.Tensor, int]:
    """The ``count``-th lowest score of the matrix and how many equal to it are among those ``count``."""
    dtype = torch.promote_types(weight.dtype, torch.float32) if norms is None else torch.float64
    scores = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    for rows, chunk in _scores(weight, norms):
        scores[rows] = chunk
    threshold = _smallest(scores.view(1, -1), count, reorder=True)
    # A sum of bools would first widen them to int64, twice the scores' own size.
    return threshold, count - int(torch.count_nonzero(scores < threshold))


def _smallest(scores: torch.Tensor, count: int, *, reorder: bool = False) -> torch.Tensor:
    """The ``count``-th lowest of every row, (rows, 1); ``reorder`` allows to shuffle the rows of ``scores``."""
    if scores.device.type != "cpu":
        return scores.kthvalue(count, dim=1, keepdim=True).values
    # Twice as fast as torch's selection on a CPU, and without its int64 index for every score.
    values = (scores if reorder else scores.clone()).numpy()
    values.partition(count - 1, axis=1)
    return torch.from_numpy(np.ascontiguousarray(values[:, count - 1 : count]))


def _first(candidates: torch.Tensor, count: torch.Tensor | int) -> torch.Tensor:
    """The first ``count`` true ones of every row."""
    return candidates & (candidates.cumsum(dim=1) <= count)
