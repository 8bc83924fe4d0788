"""What a direction is compared with: halves of the same model's prompts, random directions, shuffled labels."""

import numpy as np
import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]  # block inputs [prompt, d_model] at one place, harmful and harmless


def cosines(a: Tensor, b: Tensor) -> np.ndarray:
    """Row by row over the last axis."""
    a, b = a.double(), b.double()
    return ((a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))).numpy()


def difference(pair: Pair) -> Tensor:
    return pair[0].double().mean(0) - pair[1].double().mean(0)


def weighted_differences(pair: Pair, weights: Pair) -> Tensor:
    """Differences of weighted means [draw, d_model]; ``weights`` [draw, prompt], of each kind."""
    return weights[0] @ pair[0].double() - weights[1] @ pair[1].double()


def split_halves(pair: Pair, draws: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two differences of means of the *same* model, each over a random half of the prompts of each kind.

    Float64 [draw, d_model] each; the halves share no prompt.
    """
    draw = np.random.default_rng(seed)
    halves: list[list[Tensor]] = [[], []]
    for x in pair:
        half = len(x) // 2
        order = torch.from_numpy(draw.permuted(np.tile(np.arange(len(x)), (draws, 1)), axis=1))
        for number in (0, 1):
            chosen = order[:, number * half : (number + 1) * half]
            halves[number].append(
                torch.zeros(draws, len(x), dtype=torch.float64).scatter_(1, chosen, 1 / half)
            )
    a, b = (weighted_differences(pair, (h[0], h[1])) for h in halves)
    return a, b


def split_half_cosines(pair: Pair, draws: int, seed: int) -> np.ndarray:
    """Cosines of :func:`split_halves`.

    The ceiling for any comparison: two halves differ by sampling alone (and, being halves, by more than two whole sets
    would).
    """
    return cosines(*split_halves(pair, draws, seed))


def random_directions(pair: Pair, draws: int, seed: int) -> Tensor:
    """Directions drawn with the activations' own covariance within each kind, float64 [draw, d_model], of any length.

    In an anisotropic residual stream, such directions agree more than 1/√d_model suggests.
    """
    centred = torch.cat([x.double() - x.double().mean(0) for x in pair])
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(draws, len(centred), generator=generator, dtype=torch.float64) @ centred


def random_cosines(pair: Pair, direction: Tensor, draws: int, seed: int) -> np.ndarray:
    """Absolute cosines of ``direction`` with :func:`random_directions`."""
    return np.abs(cosines(random_directions(pair, draws, seed), direction[None]))


def shuffled_directions(pair: Pair, draws: int, seed: int) -> Tensor:
    """Differences of means over shuffled labels, float64 [draw, d_model]: no prompt's kind is known.

    A shuffle has by chance some more of one kind on one side, so such directions lean a little to the true one or away
    from it, the more so the further apart the kinds lie.
    """
    draw = np.random.default_rng(seed)
    together, count = torch.cat([x.double() for x in pair]), len(pair[0])
    order = torch.from_numpy(draw.permuted(np.tile(np.arange(len(together)), (draws, 1)), axis=1))
    weights = torch.full((draws, len(together)), -1 / (len(together) - count), dtype=torch.float64)
    weights.scatter_(1, order[:, :count], 1 / count)
    return weights @ together


def shuffled_cosines(pair: Pair, direction: Tensor, draws: int, seed: int) -> np.ndarray:
    """Absolute cosines of ``direction`` with :func:`shuffled_directions`."""
    return np.abs(cosines(shuffled_directions(pair, draws, seed), direction[None]))
