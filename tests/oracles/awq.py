"""AWQ's and SmoothQuant's scales written as naively as they read: float64, one candidate at a time."""

import torch


def round_to_nearest(weight: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """With zero points: the range of every ``group`` inputs of a row, zero included, in 2^bits - 1 steps."""
    groups = weight.double().unflatten(1, (-1, group))
    low, high = groups.amin(dim=2, keepdim=True).clamp(max=0), groups.amax(dim=2, keepdim=True).clamp(min=0)
    step = (high - low) / (2**bits - 1)
    zero = (-low / step).round()
    return (((groups / step).round() + zero).clamp(0, 2**bits - 1) - zero).mul(step).flatten(1)


def scales(weight: torch.Tensor, inputs: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """The input scales (d_in) with the least ||Q(W diag(s)) diag(s)^-1 X - W X|| for one linear.

    Lin et al. 2023 (arXiv 2306.00978), eq. 4; the candidates are no scaling and s = mean|X|^r / mean|W|^(1-r)
    for 19 r from 0 to 1 (eq. 5 with the weights' part that AutoAWQ adds), |W| relative to the largest
    of its group, s divided by the root of its largest times its smallest.
    """
    weight, inputs = weight.double(), inputs.double()
    x_mean = inputs.abs().mean(dim=0)
    groups = weight.unflatten(1, (-1, group)).abs()
    w_mean = (groups / (groups.amax(dim=2, keepdim=True) + 1e-6)).flatten(1).mean(dim=0)
    candidates = [torch.ones_like(x_mean)]
    for step in range(19):
        r = step / 18
        s = (x_mean**r / (w_mean ** (1 - r) + 1e-4)).clamp(min=1e-4)
        candidates.append(s / (s.max() * s.min()).sqrt())
    return min(candidates, key=lambda s: float(output_error(weight, inputs, s, bits, group)))


def output_error(
    weight: torch.Tensor, inputs: torch.Tensor, s: torch.Tensor, bits: int, group: int
) -> torch.Tensor:
    """||Q(W diag(s)) diag(s)^-1 X - W X||^2."""
    weight, inputs, s = weight.double(), inputs.double(), s.double()
    return (inputs @ (round_to_nearest(weight * s, bits, group) / s - weight).T).square().sum()


def smoothquant_scales(weights: list[torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
    """sqrt(max|X_j| / max|W_j|) of linears with the same inputs (tokens, d_in).

    Xiao et al. 2022 (arXiv 2211.10438), eq. 4 with alpha 0.5; max|X_j| is half the range, as in llm-compressor.
    """
    spread = (inputs.double().amax(dim=0) - inputs.double().amin(dim=0)) / 2
    return (spread / torch.cat(weights).double().abs().amax(dim=0)).sqrt()
