"""Dense against compressed: cosines of their directions, with intervals, beside what chance and the same model give.

Directions are differences of means d = mean harmful − mean harmless of block inputs. Both models saw the same
prompts, so intervals leave each prompt out of both at once (a paired jackknife).
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor
from tqdm import tqdm

from holdfast.errors import HoldfastError
from holdfast.files import atomic_file, write_json
from holdfast.prompts.sources import read_records
from holdfast.provenance import Recorder
from holdfast.refusal.activations import load_activations, refuse_other_activations
from holdfast.refusal.direction import Direction, load_direction, refuse_other_places
from holdfast.refusal.nulls import (
    Pair,
    cosines,
    difference,
    random_cosines,
    shuffled_cosines,
    split_half_cosines,
)
from holdfast.statistics import holm

DRAWS = 2000  # of every null at the sources
TABLE_DRAWS = 200  # at every position and layer
NEAR_ONE = 1 - 1e-12  # the largest cosine whose artanh is told from infinity

NULLS = ("split_half", "random", "shuffled")
MEASURES = (
    "cosine",
    "low",
    "high",
    *(f"{null}{bound}" for null in NULLS for bound in ("", "_low", "_high")),
    "p",
)

Kept = tuple[Tensor, Tensor]  # whether a direction is of each prompt, bool [prompt], harmful and harmless


def summary(values: np.ndarray) -> dict[str, float | int]:
    """Mean and the 2.5 % and 97.5 % quantiles."""
    low, high = np.quantile(values, [0.025, 0.975])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high), "n": len(values)}


def used(pair: Pair, kept: Kept) -> Pair:
    return pair[0][kept[0]], pair[1][kept[1]]


def error_product(x: Tensor, y: Tensor, of_x: Tensor, of_y: Tensor) -> tuple[Tensor, Tensor]:
    """What noise that two means over the same prompts share adds to their inner product, estimated without bias.

    E[(mean x − μ) · (mean y − ν)], from the prompts' scatter; also with each prompt left out, [prompt].

    Args:
        x, y: [prompt, d_model], float64.
        of_x, of_y: bool [prompt], the prompts that each mean is over.
    """
    both = of_x & of_y
    x, y = ((v - v[of].mean(0)) * of[:, None] for v, of in ((x, of_x), (y, of_y)))
    shift_x, shift_y = x / (of_x.sum() - 1), y / (of_y.sum() - 1)  # of the mean, when the prompt goes
    left = [of.sum() - of.long() for of in (of_x, of_y, both)]
    without = (
        (x * y).sum()
        - (x * y).sum(-1)
        + (shift_x * (y[both].sum(0) - y * both[:, None])).sum(-1)
        + (shift_y * (x[both].sum(0) - x * both[:, None])).sum(-1)
        + left[2] * (shift_x * shift_y).sum(-1)
    )
    degrees, degrees_left = (
        nx * ny - nx - ny + n for nx, ny, n in ((of_x.sum(), of_y.sum(), both.sum()), left)
    )
    return (x * y).sum() / degrees, without / degrees_left


def without_each(pair: Pair, kept: Kept) -> Pair:
    """Differences of means with each prompt left out, [prompt, d_model], harmful and harmless prompts."""
    found = []
    for x, of, sign in zip(pair, kept, (1, -1), strict=True):
        gone = (x.double() - x[of].double().mean(0)) * of[:, None] / (of.sum() - 1)
        found.append(difference(used(pair, kept)) - sign * gone)
    return found[0], found[1]


def inner_products(a: Pair, b: Pair, of_a: Kept, of_b: Kept) -> tuple[Tensor, Pair]:
    """The inner product of two differences of means, freed of the noise they share; also with each prompt left out."""
    noise = [
        error_product(x.double(), y.double(), of_x, of_y)
        for x, y, of_x, of_y in zip(a, b, of_a, of_b, strict=True)
    ]
    (harmful, harmless), left = noise, zip(without_each(a, of_a), without_each(b, of_b), strict=True)
    products = [(x * y).sum(-1) for x, y in left]
    whole = difference(used(a, of_a)) @ difference(used(b, of_b)) - harmful[0] - harmless[0]
    return whole, (products[0] - harmful[1] - harmless[0], products[1] - harmless[1] - harmful[0])


def jackknife_interval(ours: Pair, theirs: Pair, of_ours: Kept, of_theirs: Kept) -> tuple[float, float]:
    """The 95 % interval of the cosine that the two models' mean differences would have without sampling noise.

    Sampling noise lengthens both differences of means, in a wide model by much, and draws their plain cosine towards
    that of the noise; resampling adds the same noise once more. So the inner product and both squared lengths are
    estimated without bias first, and the delete-one jackknife over prompts (Efron & Stein 1981, Ann. Statist. 9:586;
    both kinds added up, each prompt left out of both models) gives the spread of their quotient, with Student's t.
    Within −1..1, all of it where a difference of means cannot be told from noise.
    """
    whole, left = zip(
        *(
            inner_products(*pairs)
            for pairs in (
                (ours, theirs, of_ours, of_theirs),
                (ours, ours, of_ours, of_ours),
                (theirs, theirs, of_theirs, of_theirs),
            )
        ),
        strict=True,
    )
    value = float(whole[0] / (whole[1] * whole[2]).sqrt())
    variance, freedom = 0.0, -2
    for number in (0, 1):
        counts = of_ours[number] | of_theirs[number]
        product, ours_squared, theirs_squared = (kind[number][counts] for kind in left)
        # NaN where a squared length comes out below 0.
        again = product / (ours_squared.sqrt() * theirs_squared.sqrt())
        n = len(again)
        variance += float((n - 1) * again.var(correction=0))
        freedom += n
    if not (whole[1] > 0 and whole[2] > 0 and math.isfinite(value) and math.isfinite(variance)):
        return -1.0, 1.0
    half = float(stats.t.ppf(0.975, freedom)) * math.sqrt(variance)
    return max(-1.0, min(1.0, value - half)), max(-1.0, min(1.0, value + half))


def cosine_between(ours: Pair, theirs: Pair, kept: tuple[Kept, Kept] | None = None) -> dict[str, float | int]:
    """The cosine of two differences of means over the same prompts, their number, and its interval.

    The interval is :func:`jackknife_interval`'s, stretched to the cosine itself where noise has drawn that out of it.

    ``kept``: which of the prompts each is of, where a filter left some out.
    """
    ours_kept, theirs_kept = kept or (everything(ours), everything(theirs))
    value = float(cosines(difference(used(ours, ours_kept)), difference(used(theirs, theirs_kept))))
    low, high = jackknife_interval(ours, theirs, ours_kept, theirs_kept)
    either = sum(int((a | b).sum()) for a, b in zip(ours_kept, theirs_kept, strict=True))
    return {"value": value, "n": either, "low": min(low, value), "high": max(high, value)}


def everything(pair: Pair) -> Kept:
    harmful, harmless = (torch.ones(len(x), dtype=torch.bool) for x in pair)
    return harmful, harmless


def beside_nulls(
    ours: Pair, theirs: Pair, draws: int, seed: int, kept: tuple[Kept, Kept] | None
) -> tuple[dict[str, Any], np.ndarray]:
    """The cosine of two differences of means with its interval and the nulls; and the split halves' cosines [draw]."""
    between = cosine_between(ours, theirs, kept)
    if kept:
        ours, theirs = used(ours, kept[0]), used(theirs, kept[1])
    halves = split_half_cosines(ours, draws, seed)
    return {
        "cosine": between,
        "null_split_half": summary(halves),
        "null_random": summary(random_cosines(ours, difference(ours), draws, seed)),
        "null_shuffled": summary(shuffled_cosines(theirs, difference(ours), draws, seed)),
    }, halves


def compared(
    ours: Pair, theirs: Pair, draws: int, seed: int, kept: tuple[Kept, Kept] | None = None
) -> dict[str, Any]:
    """The cosine of two differences of means with its interval, the nulls, and p that resampling the dense model's
    prompts alone gives a cosine as low (split halves, one-sided; at least 1 / (draws + 1)).

    Args:
        ours, theirs: the dense and the compressed model's block inputs of the same prompts, each at its source.
        kept: as of :func:`cosine_between`; the nulls are of the same prompts.
    """
    found, halves = beside_nulls(ours, theirs, draws, seed, kept)
    return found | {"p": float((1 + (halves <= found["cosine"]["value"]).sum()) / (1 + draws))}


def halves_error(pair: Pair) -> float:
    """Standard error, over samples of prompts, of Fisher's z of the cosine that split halves have on average.

    Splits of one sample all have its means; how far those lie from other samples' they do not show. On average halves
    have the cosine s / (s + 2 v): s the squared length of the difference of means freed of noise, v the noise's own
    (twice as much in half of the prompts). The delete-one jackknife of its artanh, both kinds added up.
    """
    kept = everything(pair)
    _, lengths = inner_products(pair, pair, kept, kept)
    variance = 0.0
    for length, left in zip(lengths, without_each(pair, kept), strict=True):
        noise = (left * left).sum(-1) - length
        z = (length / (length + 2 * noise)).clamp(-NEAR_ONE, NEAR_ONE).atanh()
        variance += float((len(z) - 1) * z.var(correction=0))
    return math.sqrt(variance)


def p_below(value: float, halves: np.ndarray, pair: Pair) -> float:
    """One-sided p that resampling the dense model's prompts gives a cosine as low, small enough for Holm over a table.

    A rank among few draws could not be. Fisher's z = artanh(cosine) is taken for normal about the split halves' mean,
    with their variance (a prediction, as in :func:`holdfast.statistics.p_beyond`) and the square of
    :func:`halves_error` added up; Student's t with n − 2 degrees of freedom. 1 where by the same measure the halves
    do not agree beyond noise: without a direction there is none to turn.

    Args:
        value: a cosine.
        halves: [draw] cosines of split halves of ``pair``, the dense model's block inputs.
    """
    z = np.arctanh(np.clip(halves, -NEAR_ONE, NEAR_ONE))
    error = math.sqrt(z.var(ddof=1) * (1 + 1 / len(z)) + halves_error(pair) ** 2)
    freedom = len(pair[0]) + len(pair[1]) - 2
    below = float(z.mean() - np.arctanh(np.clip(value, -NEAR_ONE, NEAR_ONE)))
    if not z.mean() > stats.t.ppf(0.975, freedom) * error:
        return 1.0
    # Without any scatter at all, rounding is all that a cosine can differ by.
    return float(stats.t.sf(below / max(error, 1e-6), freedom))


def at(activations: dict[str, Tensor], position: int, layer: int) -> Pair:
    return activations["harmful"][:, position, layer], activations["harmless"][:, position, layer]


def differ(pair: Pair) -> bool:
    """Whether the two kinds differ at all, beyond rounding."""
    return bool(difference(pair).norm() > 1e-9 * pair[1].double().mean(0).norm())


def kept_prompts(found: Direction, activations: dict[str, Tensor]) -> Kept:
    """The train prompts a direction is the difference of means over."""
    masks = []
    for kind in ("harmful", "harmless"):
        rows = (found.about.get("train_rows") or {}).get(kind)
        mask = torch.full((len(activations[kind]),), rows is None)
        mask[rows or []] = True
        masks.append(mask)
    return masks[0], masks[1]


def cosine_table(
    dense: dict[str, Tensor],
    compressed: dict[str, Tensor],
    seed: int,
    draws: int = TABLE_DRAWS,
    kept: tuple[Kept, Kept] | None = None,
) -> pd.DataFrame:
    """One row a position and layer: the cosine, its interval, the nulls, p as of :func:`p_below`, and p adjusted by
    Holm over the table (``p_holm``).

    NaN where a model has no difference of means (the template's own tokens before the first block).
    """
    _, positions, layers, _ = dense["harmful"].shape
    places = [(position, layer) for position in range(-positions, 0) for layer in range(layers)]
    rows = []
    for position, layer in tqdm(places, desc="cosines", unit="place", mininterval=2):
        pairs = at(dense, position, layer), at(compressed, position, layer)
        row = {"position": position, "layer": layer} | dict.fromkeys(MEASURES, math.nan)
        if all(differ(pair) for pair in pairs):
            found, halves = beside_nulls(*pairs, draws, seed, kept)
            between = found["cosine"]
            row |= {"cosine": between["value"], "low": between["low"], "high": between["high"]}
            for null in NULLS:
                band = found[f"null_{null}"]
                row |= {null: band["mean"], f"{null}_low": band["low"], f"{null}_high": band["high"]}
            ours = used(pairs[0], kept[0]) if kept else pairs[0]
            row["p"] = p_below(between["value"], halves, ours)
        rows.append(row)
    table = pd.DataFrame(rows, columns=["position", "layer", *MEASURES])
    return table.assign(p_holm=holm(list(table["p"])))


def explained(ours: Tensor, theirs: Tensor, between: Mapping[str, float | int]) -> dict[str, float | int]:
    """Share of the compressed direction's squared length that lies along the dense one: the cosine squared.

    Args:
        ours, theirs: the two directions [d_model], as they are used.
        between: their :func:`cosine_between`, whose interval is squared: where it holds 0, so does the share's.
    """
    value = float(cosines(ours, theirs)) ** 2
    squares = [between["low"] ** 2, between["high"] ** 2]
    low = 0.0 if between["low"] <= 0 <= between["high"] else min(squares)
    # Of directions in float32, the value may lie a rounding error outside.
    return {"value": value, "n": between["n"], "low": min(low, value), "high": max(*squares, value)}


def compare(dense: Path, compressed: Path, out: Path, table: Path, seed: int) -> dict[str, Any]:
    """Write ``out`` (JSON), the directions at their sources, and ``table`` (CSV), every position and layer.

    Args:
        dense, compressed: folders of a compression (``MODEL/COMPRESSION``) that hold ``direction/`` and
            ``activations/``.

    Raises:
        HoldfastError: the two were not cached on the same prompts; a direction that was found in other activations.
    """
    recorder = Recorder("compare", {"seed": seed})
    ours, theirs = load_direction(dense / "direction"), load_direction(compressed / "direction")
    for kind in ("harmful", "harmless"):
        asked = [
            [(r["text"], r.get("images")) for r in read_records(f / "activations" / f"{kind}.jsonl")]
            for f in (dense, compressed)
        ]
        if asked[0] != asked[1]:
            what = f"its {kind} prompts are not those of {dense}"
            raise HoldfastError(what, str(compressed / "activations"), "cache both on the same prompts")
        if len(asked[0]) < 2:
            what = f"one {kind} prompt, and an interval needs two or more"
            raise HoldfastError(what, str(dense / "activations"), "cache more prompts")
    for folder in (dense, compressed):
        refuse_other_activations(folder / "direction", folder / "activations")
    activations = [load_activations(folder / "activations")[0] for folder in (dense, compressed)]
    for folder, found in ((dense, ours), (compressed, theirs)):
        for of, cached in zip((dense, compressed), activations, strict=True):
            refuse_other_places(found, folder / "direction", cached, of / "activations")
    places = {"dense": ours, "compressed": theirs}
    pair = [at(a, d.position, d.layer) for a, d in zip(activations, (ours, theirs), strict=True)]
    at_dense_source = at(activations[1], ours.position, ours.layer)
    kept = kept_prompts(ours, activations[0]), kept_prompts(theirs, activations[1])
    at_sources = compared(pair[0], pair[1], DRAWS, seed, kept)
    result = at_sources | {
        "cosine_same_source": cosine_between(pair[0], at_dense_source, kept),
        "explained": explained(ours.unit, theirs.unit, at_sources["cosine"]),
        **{name: {"layer": d.layer, "position": d.position} for name, d in places.items()},
    }
    cosines_everywhere = cosine_table(activations[0], activations[1], seed, kept=kept)
    with atomic_file(table) as temporary:
        cosines_everywhere.to_csv(temporary, index=False)
        write_json(out, result)
    inputs = [folder / name for folder in (dense, compressed) for name in ("direction", "activations")]
    recorder.write(out.with_name(out.name + ".provenance.json"), inputs)
    return result
