"""Magnitude pruning, one sort per comparison group. Shares no code with ``holdfast.compression``."""

import torch


def mask(
    weight: torch.Tensor,
    sparsity: float | None = None,
    pattern: tuple[int, int] | None = None,
    *,
    compare: str = "layer",
) -> torch.Tensor:
    """True where pruned: the lowest scores of each group, the first of equals in row-major order.

    Args:
        weight: (d_out, d_in); its magnitudes are the scores.
        sparsity: int(count * sparsity) of every row or, with ``compare`` layer, of the matrix.
        pattern: (n, m), n kept of every m consecutive columns of a row.
    """
    scores = weight.double().abs().tolist()
    rows, columns = range(len(scores)), range(len(scores[0]))
    if pattern is not None:
        kept, of = pattern
        groups = [[(i, j + k) for k in range(of)] for i in rows for j in columns[::of]]
        counts = [of - kept] * len(groups)
    else:
        groups = [[(i, j) for j in columns] for i in rows]
        groups = groups if compare == "row" else [[place for group in groups for place in group]]
        counts = [int(len(group) * sparsity) for group in groups]
    pruned = torch.zeros(weight.shape, dtype=torch.bool)
    for group, count in zip(groups, counts, strict=True):
        for place in sorted(group, key=lambda place: (scores[place[0]][place[1]], place))[:count]:
            pruned[place] = True
    return pruned
