"""AIRD, *artificially inducing refusal direction*: a rank-one edit of matrices that write to the residual stream.

**A reconstruction.** arXiv 2504.04215 names AIRD and says what it does (weights are orthogonalized with
respect to the original model's refusal direction, one layer is touched, attack success falls); its exact
formula was not at hand. The variants below are Holdfast's.

Every variant is W' = W + left ⊗ right, with W of shape [d_model, d_in]; with ``keep_sparsity`` the nearest change to
that on the weights that are not zero (:mod:`holdfast.methods.kept_sparsity`).
"""

from dataclasses import dataclass
from typing import Protocol, get_args

import torch
from torch import Tensor

from holdfast.config.values import Variant
from holdfast.errors import HoldfastError

VARIANTS: tuple[Variant, ...] = get_args(Variant)
PRINCIPAL = 16  # harmless input directions left alone by `null-space`


class Update(Protocol):
    """A change of a matrix, linear in its strength."""

    def scaled(self, factor: float) -> "Update":
        """The edit at strength α, of a variant that has one; or with its norm matched."""

    def norm(self, weight: Tensor) -> float:
        """Frobenius norm of the change, before it is rounded to the weight's dtype."""

    def applied(self, weight: Tensor) -> Tensor:
        """The weight [d_model, d_in] with the change made, in its own dtype, on its own device."""


@dataclass(frozen=True)
class RankOne:
    """W' = W + left ⊗ right: left [d_model], right [d_in], float64."""

    left: Tensor
    right: Tensor

    def scaled(self, factor: float) -> "RankOne":
        return RankOne(self.left, factor * self.right)

    def norm(self, weight: Tensor) -> float:
        return float(self.left.norm() * self.right.norm())

    def applied(self, weight: Tensor) -> Tensor:
        return (weight.double() + torch.outer(self.left, self.right).to(weight.device)).to(weight.dtype)


def rank_one(
    variant: str,
    weight: Tensor,
    direction: Tensor,
    *,
    dense_weight: Tensor | None = None,
    own_direction: Tensor | None = None,
    harmless_inputs: Tensor | None = None,
) -> RankOne:
    """The edit of one matrix, at α = 1 (see :meth:`RankOne.scaled`).

    * ``amplify``: right = α Wᵀr̂: what is written along r̂ grows by 1 + α;
    * ``restore``: right = (W_dense − W)ᵀr̂, what is written along r̂ is again what the dense matrix writes, of the same
      inputs (AWQ rescales those: refused there);
    * ``realign``: left = r̂ − r̂_c, right = Wᵀr̂_c, what is written along the compressed model's own direction
      is written along r̂;
    * ``centred``: right = α (I − m mᵀ/‖m‖²) Wᵀr̂, m the mean harmless input, whose output does not change;
    * ``null-space``: the leading PRINCIPAL directions of harmless inputs (uncentred) are projected out of right
      instead, after AlphaEdit (Fang et al. 2025).

    Args:
        weight: W [d_model, d_in] of the compressed model.
        direction: r̂ [d_model], unit (the dense model's, or a random control).
        dense_weight: for ``restore``; own_direction: r̂_c [d_model], for ``realign``.
        harmless_inputs: inputs of the matrix on harmless prompts [n, d_in], for ``centred``, ``null-space``.

    Raises HoldfastError for an unknown variant or a missing argument.
    """
    w, r = weight.double().cpu(), direction.double().cpu()
    along = r @ w
    if variant == "amplify":
        return RankOne(r, along)
    if variant == "restore" and dense_weight is not None:
        return RankOne(r, r @ dense_weight.double().cpu() - along)
    if variant == "realign" and own_direction is not None:
        own = own_direction.double().cpu()
        return RankOne(r - own, own @ w)
    if variant in {"centred", "null-space"} and harmless_inputs is not None:
        x = harmless_inputs.double().cpu()
        if variant == "centred":
            m = x.mean(0)
            basis = (m / m.norm())[None]
        else:
            basis = torch.linalg.svd(x, full_matrices=False).Vh[:PRINCIPAL]
        return RankOne(r, along - (along @ basis.T) @ basis)
    if variant not in VARIANTS:
        raise HoldfastError(f"unknown variant {variant!r}", "methods", f"use one of {', '.join(VARIANTS)}")
    raise HoldfastError(
        f"variant {variant} lacks what it is computed from", "edit", "give the stage all its inputs"
    )
