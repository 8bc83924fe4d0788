"""GPTQ written as naively as it reads (Frantar et al. 2022, arXiv 2210.17323): float64, one column at a time.

No Cholesky factor and no blocks: the inverse Hessian of the columns not yet quantized is kept in full and one
row and column is eliminated from it at a time, which is what the paper's section 3.2 derives both from.
"""

import torch


def round_to_nearest(weight: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """Symmetric, one min-max scale for every ``group`` inputs of a row: max|w| over half the number of levels."""
    return _rounded(weight.double(), _scales(weight.double(), bits, group), bits)


def quantize(weight: torch.Tensor, inputs: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """The dequantized weights, float64 (d_out, d_in), of a linear with these inputs (tokens, d_in).

    H = 2 X Xᵀ with 1 % of its mean diagonal added; columns in the order of falling diagonals, as in
    llm-compressor's "static" order (the paper's own is left to right); scales from the weights as they came.
    """
    weight, inputs = weight.double().clone(), inputs.double()
    scales = _scales(weight, bits, group)
    hessian = 2 * inputs.T @ inputs
    order = hessian.diagonal().argsort(descending=True)
    hessian += 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)
    inverse = torch.linalg.inv(hessian)
    for q in order.tolist():
        rounded = _rounded(weight[:, q : q + 1], scales[:, q : q + 1], bits)[:, 0]
        # Eq. 2: what the other columns take over of this one's error.
        weight -= torch.outer((weight[:, q] - rounded) / inverse[q, q], inverse[q])
        weight[:, q] = rounded
        # Eq. 3: this row and column leave the inverse.
        inverse -= torch.outer(inverse[:, q], inverse[q]) / inverse[q, q]
        inverse[q, :] = inverse[:, q] = 0
    return weight


def _scales(weight: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """(d_out, d_in), the scale of every weight."""
    largest = weight.unflatten(1, (-1, group)).abs().amax(dim=2)
    return (largest / ((2**bits - 1) / 2)).repeat_interleave(group, dim=1)


def _rounded(weight: torch.Tensor, scales: torch.Tensor, bits: int) -> torch.Tensor:
    return (weight / scales).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scales
