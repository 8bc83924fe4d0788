"""The two formats of bitsandbytes, written from their papers: float64, no packing, no kernels."""

from statistics import NormalDist

import torch


def rounded_rows(values: torch.Tensor) -> torch.Tensor:
    """Every row to int8 by its largest magnitude, and back (Dettmers et al. 2022, arXiv 2208.07339, eq. 1)."""
    scale = values.double().abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / 127
    return (values.double() / scale).round() * scale


def llm_int8(weight: torch.Tensor, inputs: torch.Tensor, threshold: float | None = 6.0) -> torch.Tensor:
    """x Wᵀ for inputs (tokens, d_in): eq. 8 of the paper, outlier features apart.

    Features with any magnitude of ``threshold`` and more are multiplied as they are, by weights that bitsandbytes
    holds in int8 like all others (the paper keeps these columns in 16 bit too); the others by int8 inputs with one
    scale a token. Without a threshold no feature is taken apart.
    """
    weight, inputs = rounded_rows(weight), inputs.double()
    outlier = torch.zeros(inputs.shape[1], dtype=torch.bool)
    if threshold is not None:
        outlier = (inputs.abs() >= threshold).any(dim=0)
    regular = rounded_rows(inputs.masked_fill(outlier, 0))
    return regular @ weight.T + inputs[:, outlier] @ weight[:, outlier].T


def nf4_levels() -> torch.Tensor:
    """The 16 levels (Dettmers et al. 2023, arXiv 2305.14314, section 3 and appendix E): quantiles of a normal
    distribution, 8 above zero and 7 below, zero itself, scaled to [-1, 1]."""
    offset = 0.9677083
    normal = NormalDist()
    above = [normal.inv_cdf(offset + (0.5 - offset) * i / 8) for i in range(8)]
    below = [-normal.inv_cdf(offset + (0.5 - offset) * i / 7) for i in range(7)]
    levels = torch.tensor([*above, 0.0, *below], dtype=torch.float64)
    return (levels / levels.max()).sort().values


def nf4(weight: torch.Tensor, block: int = 64) -> torch.Tensor:
    """Every weight the nearest level times the largest magnitude of its ``block`` neighbours in memory order."""
    blocks = weight.double().reshape(-1, block)
    largest = blocks.abs().amax(dim=1, keepdim=True)
    levels = nf4_levels()
    nearest = ((blocks / largest)[..., None] - levels).abs().argmin(dim=2)
    return (levels[nearest] * largest).view(weight.shape)
