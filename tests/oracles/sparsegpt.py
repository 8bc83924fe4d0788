"""SparseGPT written as it is derived (Frantar & Alistarh 2023, sections 2 and 3): float64, no blocks, no
Cholesky factor. Column by column the optimal brain surgeon's step on the columns that are left, and then the
explicit inverse Hessian of the columns still left.

Shares no code with ``holdfast.compression``.
"""

import torch


def prune(
    weight: torch.Tensor,
    inputs: torch.Tensor,
    sparsity: float | None = None,
    pattern: tuple[int, int] | None = None,
    *,
    block: int = 128,
) -> torch.Tensor:
    """The pruned copy, float64, of a weight (d_out, d_in) for inputs (tokens, d_in).

    Args:
        sparsity: of every ``block`` columns the int(count * sparsity) lowest scores over all rows go.
        pattern: (n, m), n kept of every m columns of a row.
    """
    W, X = weight.double().clone(), inputs.double()
    H = X.T @ X
    damp = 0.01 * H.diagonal().mean()
    for j in range(len(H)):
        if H[j, j] == 0:
            H[j, j] = 1
            W[:, j] = 0
        H[j, j] += damp
    group = block if pattern is None else pattern[1]
    pruned: set[tuple[int, int]] = set()
    inverse = torch.linalg.inv(H)
    for j in range(len(H)):
        if j % group == 0:
            columns = range(j, min(j + group, len(H)))
            # The paper scores w^2 / [H_F^-1]_kk, F the columns from k on: the inverse's diagonal when k's
            # turn comes.
            own = {k: float(torch.linalg.inv(H[k:, k:])[0, 0]) for k in columns}
            scores = {(i, k): float(W[i, k] ** 2) / own[k] for k in columns for i in range(len(W))}
            if pattern is None:
                ordered = sorted(scores, key=lambda place: (scores[place], place[1], place[0]))
                pruned.update(ordered[: int(len(scores) * sparsity)])
            else:
                for i in range(len(W)):
                    row = sorted(columns, key=lambda k: (scores[i, k], k))
                    pruned.update((i, k) for k in row[: pattern[1] - pattern[0]])
        for i in range(len(W)):
            if (i, j) in pruned:
                # Eq. 3 of the paper: the row's other weights make up for the one that goes.
                W[i, j:] -= W[i, j] / inverse[0, 0] * inverse[0]
                W[i, j] = 0
        # The next inverse, without row and column j, by one step of Gaussian elimination.
        inverse = (inverse - torch.outer(inverse[:, 0], inverse[0]) / inverse[0, 0])[1:, 1:]
    return W
