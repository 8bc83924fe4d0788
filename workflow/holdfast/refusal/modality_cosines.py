"""Cosines of directions found on different prompts of one model, or on the same prompts of two, beside their nulls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.refusal.comparison import (
    DRAWS,
    Kept,
    cosine_between,
    differ,
    everything,
    p_below,
    summary,
    used,
)
from holdfast.refusal.nulls import Pair, difference, random_cosines, shuffled_cosines, split_half_cosines

KINDS = ("harmful", "harmless")


@dataclass(frozen=True)
class Seen:
    """Block inputs of prompts of both kinds at one place.

    ``pair``: [prompt, d_model], harmful and harmless; ``contents``: a key of each prompt, the same for what says the
    same in another modality or is asked of another model; ``kept``: whether the direction is of it.
    """

    pair: Pair
    contents: tuple[list[str], list[str]]
    kept: Kept

    @property
    def used(self) -> Pair:
        return used(self.pair, self.kept)


def seen(pair: Pair, records: tuple[Sequence[Mapping[str, Any]], ...], kept: Kept | None = None) -> Seen:
    """``records``: those of the prompts, harmful and harmless."""
    harmful, harmless = map(contents, records)
    return Seen(pair, (harmful, harmless), kept or everything(pair))


def contents(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """A key of each record: its ``content``, numbered where several have one; its id where it names none."""
    keys: list[str] = []
    counts: dict[str, int] = {}
    for record in records:
        name = str(record.get("content") or record["id"])
        counts[name] = counts.get(name, 0) + 1
        keys.append(f"{name} {counts[name]}")
    return keys


def aligned(ours: Seen, theirs: Seen) -> tuple[Pair, Pair, tuple[Kept, Kept]]:
    """Both over the prompts of either, those of one content in one row, and which rows each is of.

    What is particular to prompts that both have seen is in both differences of means, and is known as shared noise by
    the rows in common. Rows that one does not have are 0 there, and not read.
    """
    sides: list[list[tuple[Tensor, Tensor]]] = [[], []]
    for kind in (0, 1):
        keys = dict.fromkeys([*ours.contents[kind], *theirs.contents[kind]])
        rows = {key: row for row, key in enumerate(keys)}
        for side, of in zip(sides, (ours, theirs), strict=True):
            x = of.pair[kind]
            whole, mask = torch.zeros(len(rows), x.shape[-1]), torch.zeros(len(rows), dtype=torch.bool)
            places = torch.tensor([rows[key] for key in of.contents[kind]])
            whole[places], mask[places] = x, of.kept[kind]
            side.append((whole, mask))
    (a, b), (c, d) = sides
    return (a[0], b[0]), (c[0], d[0]), ((a[1], b[1]), (c[1], d[1]))


def shuffled_products(
    a: Pair, b: Pair, kept: tuple[Kept, Kept], draws: int, seed: int
) -> tuple[float, Tensor]:
    """The inner product of two differences of means, and those over shuffled labels, float64 [draw].

    A prompt that both have seen has one label in both, shuffled or not, so that what prompts have in common is in the
    null as it is in the product. Shuffled within the prompts that both have, and within those that one alone has.

    Args:
        a, b, kept: as :func:`aligned` gives them.
    """
    harmful = torch.cat([torch.ones(len(a[0]), dtype=torch.bool), torch.zeros(len(a[1]), dtype=torch.bool)])
    masks = [torch.cat(of) for of in kept]
    labels = np.tile(harmful.numpy(), (draws + 1, 1))  # the first row stays as it is
    draw = np.random.default_rng(seed)
    for mine, other in ((True, True), (True, False), (False, True)):
        rows = np.flatnonzero(((masks[0] == mine) & (masks[1] == other)).numpy())
        labels[1:, rows] = draw.permuted(labels[1:, rows], axis=1)
    differences = []
    for pair, mask in zip((a, b), masks, strict=True):
        signs = torch.from_numpy(labels).double() * mask, (~torch.from_numpy(labels)).double() * mask
        weights = signs[0] / signs[0].sum(1, keepdim=True) - signs[1] / signs[1].sum(1, keepdim=True)
        differences.append(weights @ torch.cat(pair).double())
    products = (differences[0] * differences[1]).sum(-1)
    return float(products[0]), products[1:]


def beside(ours: Seen, theirs: Seen, seed: int, draws: int = DRAWS) -> dict[str, Any] | None:
    """The cosine of two differences of means with its interval, its nulls, and two p, one-sided.

    ``p_below``: that resampling prompts gives a cosine as low, by the split halves of whichever of the two agree less
    (:func:`holdfast.refusal.comparison.p_below`); ``p_chance``: that they agree by chance, the larger of two ranks (at
    least 1 / (draws + 1)): of the cosine among random directions', and of the inner product among
    :func:`shuffled_products`. The cosine of a shuffled direction would not do: where the kinds lie far apart, shuffles
    lean to the true direction or away from it; what tells them from it is that they are short. None where one of the
    two is no difference.
    """
    a, b = ours.used, theirs.used
    if not (differ(a) and differ(b)):
        return None
    pairs = aligned(ours, theirs)
    between = cosine_between(*pairs)
    halves, noisier = min(
        ((split_half_cosines(of, draws, seed), of) for of in (a, b)), key=lambda found: found[0].mean()
    )
    random = random_cosines(a, difference(a), draws, seed)
    product, shuffled = shuffled_products(*pairs, draws, seed)
    as_high = int((random >= between["value"]).sum()), int((shuffled >= product).sum())
    return {
        "cosine": between,
        "null_split_half": summary(halves),
        "null_random": summary(random),
        "null_shuffled": summary(shuffled_cosines(b, difference(a), draws, seed)),
        "p_below": p_below(float(between["value"]), halves, noisier),
        "p_chance": (1 + max(as_high)) / (1 + draws),
    }
