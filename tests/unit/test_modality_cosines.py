"""Two directions of unequal noise beside each other: every number recomputed, with the sample it has to be of."""

import numpy as np
import pytest
import torch
from holdfast.refusal.comparison import cosine_between, p_below, summary
from holdfast.refusal.modality_cosines import Seen, beside, seen, shuffled_products
from holdfast.refusal.nulls import Pair, random_cosines, shuffled_cosines, split_half_cosines

N, WIDTH, DRAWS, SEED = 24, 16, 200, 3
LEFT_OUT = 4  # prompts of each kind that no direction is of: far away, so that one that counts would show
SHARED = N - 6  # contents that both have


def sample(noise: float, tilt: float, first: int, seed: int) -> tuple[Seen, Pair]:
    """Gaussian block inputs of both kinds, apart along a tilted axis, and those of the prompts that are kept.

    ``first``: number of the first prompt, whose content is called so.
    """
    generator = torch.Generator().manual_seed(seed)
    axis = torch.zeros(WIDTH)
    axis[0], axis[1] = 1.0, tilt
    keep = torch.arange(N) >= LEFT_OUT
    kinds = []
    for sign in (1, -1):
        x = noise * torch.randn(N, WIDTH, generator=generator) + sign * axis
        x[:LEFT_OUT] += 50 * torch.randn(LEFT_OUT, WIDTH, generator=generator)
        kinds.append(x)
    pair = (kinds[0], kinds[1])
    records = [{"id": f"{kind}-{first + i}"} for kind in ("harmful", "harmless") for i in range(N)]
    return seen(pair, (records[:N], records[N:]), (keep, keep)), (pair[0][keep], pair[1][keep])


def side_by_side(ours: Seen, theirs: Seen) -> tuple[list[Pair], list[Pair]]:
    """Both over all contents, row by row, and which rows each is of: contents are numbers, theirs begin later."""
    rows = N + N - SHARED
    whole, kept = [], []
    for of, first in ((ours, 0), (theirs, N - SHARED)):
        filled = [torch.zeros(rows, WIDTH), torch.zeros(rows, WIDTH)]
        masks = [torch.zeros(rows, dtype=torch.bool), torch.zeros(rows, dtype=torch.bool)]
        for kind in (0, 1):
            filled[kind][first : first + N] = of.pair[kind]
            masks[kind][first + LEFT_OUT : first + N] = True
        whole.append((filled[0], filled[1]))
        kept.append((masks[0], masks[1]))
    return whole, kept


@pytest.mark.parametrize("noisier", [0, 1])
def test_every_number_is_of_the_right_sample(noisier: int) -> None:
    noise = [0.6, 0.6]
    noise[noisier] = 1.3
    (ours, a), (theirs, b) = sample(noise[0], 0.0, 0, 1), sample(noise[1], 1.5, N - SHARED, 2)
    found = beside(ours, theirs, SEED, DRAWS)
    assert found is not None
    d = [(x.double().mean(0) - y.double().mean(0)) for x, y in (a, b)]
    cosine = float(d[0] @ d[1] / (d[0].norm() * d[1].norm()))
    whole, kept = side_by_side(ours, theirs)
    between = cosine_between(whole[0], whole[1], (kept[0], kept[1]))
    assert found["cosine"]["value"] == pytest.approx(cosine)
    assert found["cosine"] == pytest.approx(between)
    assert found["cosine"]["n"] == 2 * (2 * (N - LEFT_OUT) - (SHARED - LEFT_OUT))

    halves = [split_half_cosines(of, DRAWS, SEED) for of in (a, b)]
    assert halves[noisier].mean() < halves[1 - noisier].mean() - 0.05
    assert found["null_split_half"] == pytest.approx(summary(halves[noisier]))
    p = [p_below(cosine, halves[noisier], of) for of in (a, b)]
    assert p[0] != pytest.approx(p[1], rel=0.02)
    assert 0 < p[noisier] < 1
    assert found["p_below"] == pytest.approx(p[noisier])

    random, shuffled = random_cosines(a, d[0], DRAWS, SEED), shuffled_cosines(b, d[0], DRAWS, SEED)
    assert found["null_random"] == pytest.approx(summary(random))
    assert found["null_shuffled"] == pytest.approx(summary(shuffled))
    product, products = shuffled_products(whole[0], whole[1], (kept[0], kept[1]), DRAWS, SEED)
    assert product == pytest.approx(float(d[0] @ d[1]))
    as_high = [int(np.sum(random >= cosine)), int((products >= product).sum())]
    assert as_high[0] != as_high[1]
    assert found["p_chance"] == pytest.approx((1 + max(as_high)) / (1 + DRAWS))
