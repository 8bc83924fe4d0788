"""``keep_sparsity``: an edit on the weights that are not zero, so that a pruned matrix stays as sparse as it is.

A rank-one update fills every zero of a pruned matrix. Cut off there, it writes something else than was meant. So each
row's weights that are left also get the smallest correction (ridge least squares) after which the row's output on
inputs of the matrix is again what the whole update writes: with target t = left_i · right, its part t_S on the kept
entries S, and inputs X,

    δ_S = t_S + X_Sᵀ (X_S X_Sᵀ + λ I)⁻¹ X (t − t_S).

Linear in t, so it is computed once a variant, whatever the strength. Pruned rows are reconstructed from the inputs of
their layer likewise in SparseGPT (Frantar & Alistarh 2023, section 3.1); there from the dense row's output.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from holdfast.methods.aird import RankOne

COMPONENTS = 64  # leading components of the inputs that stand for them
RIDGE = 1e-4  # λ, as a share of the mean of the diagonal of X Xᵀ
ROWS, COLUMNS = 512, 1024  # of a matrix at a time


@dataclass(frozen=True)
class Kept:
    """W' = W + α M ∘ (left ⊗ right + coefficients · inputs), M the mask of what is not zero in W, α the ``strength``.

    ``coefficients`` [d_model, component], ``inputs`` [component, d_in], float64: less than the matrix they change.
    """

    whole: RankOne
    coefficients: Tensor
    inputs: Tensor
    strength: float = 1.0

    def scaled(self, factor: float) -> "Kept":
        return replace(self, strength=factor * self.strength)

    def change(self, weight: Tensor) -> Tensor:
        """What is added to the weight [d_model, d_in], float64."""
        change = torch.outer(self.whole.left, self.whole.right).addmm_(self.coefficients, self.inputs)
        return self.strength * change.to(weight.device) * (weight != 0)

    def norm(self, weight: Tensor) -> float:
        return float(self.change(weight).norm())

    def applied(self, weight: Tensor) -> Tensor:
        return (weight.double() + self.change(weight)).to(weight.dtype)


def leading_components(inputs: Tensor) -> Tensor:
    """[component, d_in] with nearly the inputs' own Xᵀ X: their leading COMPONENTS principal directions, uncentred.

    Output errors on X and on these differ only by what lies in the directions left out.
    """
    x = inputs.double().cpu()
    vectors = torch.linalg.eigh(x @ x.T).eigenvectors[:, -COMPONENTS:]
    return vectors.T @ x


def kept(weight: Tensor, updates: Sequence[RankOne], inputs: Tensor) -> list[Kept]:
    """The updates of one matrix on its weights that are not zero.

    Args:
        weight: W [d_model, d_in]; its zeros are the mask. Without a zero the updates are the rank-one ones.
        updates: at α = 1.
        inputs: of the matrix, [n, d_in].
    """
    x = leading_components(inputs)
    count, left = len(x), torch.stack([update.left for update in updates])
    right = torch.stack([update.right for update in updates])
    mask = (weight != 0).double().cpu()
    ridge = (RIDGE * x.square().sum() / count).clamp(min=torch.finfo(torch.float64).tiny)
    found = torch.zeros(len(updates), len(mask), count, dtype=torch.float64)
    for start in range(0, len(mask), ROWS):
        rows = slice(start, start + ROWS)
        grams, lost = _of_rows(mask[rows], x, right)
        factors = torch.linalg.cholesky(grams + ridge * torch.eye(count, dtype=torch.float64))
        found[:, rows] = torch.cholesky_solve(lost, factors).permute(2, 0, 1) * left[:, rows, None]
    return [Kept(update, of_it, x) for update, of_it in zip(updates, found, strict=True)]


def _of_rows(mask: Tensor, x: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """X_S X_Sᵀ [row, component, component], and X (right − right_S) [row, component, update]."""
    count = len(x)
    grams = torch.zeros(len(mask), count * count, dtype=torch.float64)
    lost = torch.zeros(len(mask), count * len(right), dtype=torch.float64)
    for start in range(0, x.shape[1], COLUMNS):
        columns = slice(start, start + COLUMNS)
        some = x[:, columns].T
        grams.addmm_(mask[:, columns], (some[:, :, None] * some[:, None, :]).flatten(1))
        weighed = (some[:, :, None] * right[:, columns].T[:, None, :]).flatten(1)
        lost.addmm_(1 - mask[:, columns], weighed)
    return grams.view(-1, count, count), lost.view(-1, count, len(right))
