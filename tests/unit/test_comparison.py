"""The comparison of directions, against rotations by known angles and against noise."""

import json
import math
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from holdfast.errors import HoldfastError
from holdfast.files import write_json, write_jsonl
from holdfast.provenance import input_checksum
from holdfast.refusal.comparison import (
    Pair,
    compare,
    compared,
    cosine_between,
    cosine_table,
    error_product,
    explained,
    inner_products,
    p_below,
)
from holdfast.refusal.nulls import (
    cosines,
    difference,
    random_cosines,
    shuffled_cosines,
    split_half_cosines,
    split_halves,
)
from safetensors.torch import load_file, save_file

PROMPTS, WIDTH, LAYERS, TURNED = 120, 48, 4, 2
ANGLE = 0.7


def plane() -> tuple[torch.Tensor, torch.Tensor]:
    """Two unit directions at right angles."""
    drawn = torch.randn(WIDTH, 2, generator=torch.Generator().manual_seed(0))
    basis = torch.linalg.qr(drawn).Q
    return basis[:, 0], basis[:, 1]


def activations(rotated: bool) -> dict[str, torch.Tensor]:
    """[prompt, 1 position, layer, d_model]: noise, and in harmful prompts 20 r, which the rotated ones have turned by
    ANGLE at layer TURNED. Before the first block nothing differs."""
    r, other = plane()
    noise = torch.Generator().manual_seed(1)
    found = {}
    for kind, size in (("harmful", 20.0), ("harmless", 0.0)):
        x = torch.randn(PROMPTS, 1, LAYERS, WIDTH, generator=noise)
        x[:, :, 0] = 1.0
        for layer in range(1, LAYERS):
            turn = ANGLE if rotated and layer == TURNED else 0.0
            x[:, 0, layer] += size * (math.cos(turn) * r + math.sin(turn) * other)
        found[kind] = x
    return found


def folder(path: Path, rotated: bool, source: int = TURNED) -> Path:
    """What the stages activations and direction write for it, the direction's source at the turned layer."""
    values = activations(rotated)
    for name in ("activations", "direction"):
        (path / name).mkdir(parents=True)
    save_file(values, path / "activations/activations.safetensors")
    write_json(path / "activations/positions.json", {"positions": [-1], "tokens": ["x"], "layers": LAYERS})
    for kind in values:
        write_jsonl(
            path / f"activations/{kind}.jsonl", [{"id": i, "text": f"{kind} {i}"} for i in range(PROMPTS)]
        )
    d = (values["harmful"].double().mean(0) - values["harmless"].double().mean(0))[0, source].float()
    tensors = {
        "direction": d / d.norm(),
        "mean_difference": d,
        "harmless_mean": values["harmless"].mean(0)[0],
    }
    save_file({k: v.contiguous() for k, v in tensors.items()}, path / "direction/direction.safetensors")
    write_json(path / "direction/direction.json", {"layer": source, "position": -1, "usable": True})
    inputs = {"activations": input_checksum(path / "activations")}
    write_json(path / "direction/provenance.json", {"inputs": inputs})
    return path


def test_a_rotation_by_a_known_angle_in_one_layer_is_found(tmp_path: Path) -> None:
    dense, turned = folder(tmp_path / "dense", False), folder(tmp_path / "turned", True)
    result = compare(dense, turned, tmp_path / "comparison.json", tmp_path / "comparison.csv", seed=0)
    assert result["cosine"]["low"] <= math.cos(ANGLE) <= result["cosine"]["high"]
    assert result["cosine"]["high"] - result["cosine"]["low"] < 0.15
    for bound in ("value", "low", "high"):
        assert result["explained"][bound] == pytest.approx(result["cosine"][bound] ** 2)
    assert result["explained"]["low"] < math.cos(ANGLE) ** 2 < result["explained"]["high"]
    assert result["p"] < 0.001
    assert result["null_split_half"]["low"] > result["cosine"]["high"]
    assert max(result["null_random"]["high"], result["null_shuffled"]["high"]) < result["cosine"]["low"]
    table = pd.read_csv(tmp_path / "comparison.csv").set_index("layer")
    assert table.loc[0, ["cosine", "p"]].isna().all()  # nothing differs there: no direction, no test
    assert table.loc[[1, 3], "cosine"].to_numpy() == pytest.approx(1.0)
    assert (table.loc[[1, 3], "p"] > 0.9).all()
    assert table.loc[TURNED, "p_holm"] == pytest.approx(3 * table.loc[TURNED, "p"], abs=0)  # of three tested
    assert table.loc[TURNED, "p"] < 1e-6  # and would stand in a table of thousands
    assert math.isnan(table.loc[0, "p_holm"])
    assert table.loc[TURNED, "split_half_low"] > table.loc[TURNED, "high"]
    for null in ("split_half", "random", "shuffled"):
        low, mean, high = (table.loc[[1, 2, 3], f"{null}{of}"] for of in ("_low", "", "_high"))
        assert ((low < mean) & (mean < high)).all()
    assert table.loc[TURNED, "low"] <= math.cos(ANGLE) <= table.loc[TURNED, "high"]
    assert json.loads((tmp_path / "comparison.json").read_text()) == result


def test_at_the_dense_source_is_where_the_dense_direction_was_found(tmp_path: Path) -> None:
    """The turned model's own source is a layer where nothing was turned."""
    dense, turned = folder(tmp_path / "dense", False), folder(tmp_path / "turned", True, source=1)
    result = compare(dense, turned, tmp_path / "comparison.json", tmp_path / "comparison.csv", seed=0)
    same = result["cosine_same_source"]
    assert same["low"] <= math.cos(ANGLE) <= same["high"]
    assert result["cosine"]["low"] > same["high"]


def test_activations_of_another_model_are_refused(tmp_path: Path) -> None:
    """They fit in shape and prompts, and would be compared with themselves."""
    dense, turned = folder(tmp_path / "dense", False), folder(tmp_path / "turned", True)
    shutil.rmtree(dense / "activations")
    shutil.copytree(turned / "activations", dense / "activations")
    with pytest.raises(HoldfastError, match="not of the activations"):
        compare(dense, turned, tmp_path / "comparison.json", tmp_path / "comparison.csv", seed=0)
    assert not (tmp_path / "comparison.json").exists()


def test_intervals_are_as_wide_as_estimates_scatter() -> None:
    r, other = plane()
    values, widths = [], []
    for seed in range(60):
        draw = torch.Generator().manual_seed(seed)
        noise = [torch.randn(80, WIDTH, generator=draw) for _ in range(4)]
        ours: Pair = (noise[0] + 4 * r, noise[1])
        theirs: Pair = (noise[2] + 4 * (math.cos(ANGLE) * r + math.sin(ANGLE) * other), noise[3])
        found = compared(ours, theirs, 200, seed)["cosine"]
        values.append(found["value"])
        widths.append(found["high"] - found["low"])
    scatter = float(torch.tensor(values).std())
    assert 0.7 < torch.tensor(widths).mean() / (2 * 1.96 * scatter) < 1.5


@pytest.mark.parametrize(
    ("prompts", "width", "size", "truth"),
    [(48, 384, 15.0, 0.995), (24, 384, 15.0, 0.9), (48, 384, 8.0, 0.8), (24, 384, 15.0, 1.0)],
)
def test_intervals_hold_the_truth_in_models_far_wider_than_prompts_are_many(
    prompts: int, width: int, size: float, truth: float
) -> None:
    held, below, values = 0, 0, []
    for seed in range(60):
        draw = torch.Generator().manual_seed(seed)
        noise = [torch.randn(prompts, width, generator=draw) for _ in range(4)]
        # Both models read the same prompts: the noise of one is most of the other's.
        paired = [0.8 * noise[k] + 0.6 * noise[k + 2] for k in (0, 1)]
        noise[0][:, 0] += size
        paired[0][:, 0] += size * truth
        paired[0][:, 1] += size * math.sqrt(1 - truth**2)
        found = cosine_between((noise[0], noise[1]), (paired[0], paired[1]))
        assert found["low"] <= found["value"] <= found["high"]
        held += found["low"] - 1e-9 <= truth <= found["high"] + 1e-9
        below += found["high"] < truth
        values.append(found["value"])
    assert held >= 54  # of 60; 57 are expected at 95 %, 54 or more with p = .97
    assert below <= 5
    # It is the interval that knows better: the plain cosine is where noise draws it.
    assert abs(sum(values) / 60 - truth) > 0.001


def test_a_jackknife_leaves_out_what_its_formula_says() -> None:
    draw = torch.Generator().manual_seed(5)
    x, y = (torch.randn(9, 6, generator=draw, dtype=torch.float64) + 1 for _ in range(2))
    of_x = torch.tensor([True] * 7 + [False] * 2)
    of_y = torch.tensor([False] + [True] * 7 + [False])
    ours, theirs = (x, x.flip(1)), (y, y.flip(1))
    masks = (of_x, of_y), (of_y, of_x)
    found = inner_products(ours, theirs, *masks)[1][0]
    for i in range(9):
        keep = torch.arange(9) != i
        left = [(p[0][keep], p[1]) for p in (ours, theirs)]
        left_masks = [(m[0][keep], m[1]) for m in masks]
        expected = inner_products(left[0], left[1], left_masks[0], left_masks[1])[0]
        assert float(found[i]) == pytest.approx(float(expected))


def test_the_noise_of_two_means_is_estimated_without_bias_where_they_share_some_prompts() -> None:
    of_x, of_y = torch.arange(8) < 6, torch.arange(8) >= 3
    draw = torch.Generator().manual_seed(6)
    estimates = []
    for _ in range(4000):
        x = torch.randn(8, 5, generator=draw, dtype=torch.float64)
        estimates.append(float(error_product(x + 3, x - 2, of_x, of_y)[0]))
    # Three of six and five prompts are shared: covariance 1 in each of 5 dimensions, times 3 / (6 · 5).
    assert sum(estimates) / 4000 == pytest.approx(0.5, rel=0.03)


def test_noise_alone_has_no_cosine() -> None:
    draw = torch.Generator().manual_seed(2)
    unlike = 0
    for _ in range(20):
        ours, theirs = (
            (torch.randn(16, 64, generator=draw), torch.randn(16, 64, generator=draw)) for _ in range(2)
        )
        found = cosine_between(ours, theirs)
        unlike += found["low"] == -1 and found["high"] == 1
    assert unlike >= 10  # a squared length comes out below 0 more often than not


def test_equal_models_are_not_told_apart() -> None:
    draw = torch.Generator().manual_seed(3)
    r, _ = plane()
    ours: Pair = (torch.randn(64, WIDTH, generator=draw) + 2 * r, torch.randn(64, WIDTH, generator=draw))
    found = compared(ours, ours, 500, 0)
    assert found["cosine"]["value"] == pytest.approx(1.0)
    assert found["p"] > 0.9


@pytest.mark.parametrize("noise", ["equal", "one large", "falling", "heavy tails"])
@pytest.mark.parametrize("size", [0.0, 0.6, 2.0])
def test_a_model_beside_itself_is_told_apart_no_more_often_than_p_says(noise: str, size: float) -> None:
    """Two samples of prompts of one model, which share no noise, as two models' of the same prompts do."""
    width, prompts, tables = 48, 40, 80
    scale = {
        "equal": torch.ones(width),
        "one large": torch.tensor([15.0] + [1.0] * (width - 1)),
        "falling": torch.arange(1, width + 1) ** -0.7,
        "heavy tails": torch.arange(1, width + 1) ** -0.7,
    }[noise].double()
    found = []
    for seed in range(tables):
        draw = torch.Generator().manual_seed(seed)
        x = torch.randn(4, prompts, width, generator=draw, dtype=torch.float64) * scale
        if noise == "heavy tails":
            x *= torch.exp(0.6 * torch.randn(4, prompts, 1, generator=draw, dtype=torch.float64))
        x[::2, :, 5] += size * scale.norm() / 3
        ours, theirs = (x[0], x[1]), (x[2], x[3])
        halves = split_half_cosines(ours, 100, seed)
        found.append(p_below(float(cosines(difference(ours), difference(theirs))), halves, ours))
    # Of 80 tests at 5 %, 4 are expected, and 9 or more with p = .02
    assert sum(p < 0.05 for p in found) <= 8
    assert sum(p < 0.001 for p in found) <= 2


def test_p_is_small_enough_for_a_table_and_only_where_there_is_a_direction_to_turn() -> None:
    draw = torch.Generator().manual_seed(4)
    r, other = plane()
    noise = [torch.randn(PROMPTS, WIDTH, generator=draw) for _ in range(2)]
    ours: Pair = (noise[0] + 4 * r, noise[1])
    halves = split_half_cosines(ours, 200, 0)
    # The turned model of the same prompts, by more and more: 256 places take p below 0.05 / 256.
    falling = []
    for angle in (0.0, 0.2, 0.4, 0.8):
        theirs = (noise[0] + 4 * (math.cos(angle) * r + math.sin(angle) * other), noise[1])
        falling.append(p_below(float(cosines(difference(ours), difference(theirs))), halves, ours))
    assert falling == sorted(falling, reverse=True)
    assert falling[0] > 0.9
    assert falling[-1] < 0.05 / 256
    # Where nothing differs but noise, not even the opposite is a turn.
    nothing: Pair = (noise[0], noise[1])
    assert p_below(-1.0, split_half_cosines(nothing, 200, 0), nothing) == 1


def test_a_squared_interval_that_holds_no_direction_begins_at_nothing() -> None:
    r, other = (v.float() for v in plane())

    def share(angle: float, low: float, high: float) -> dict[str, float | int]:
        value = math.cos(angle)
        turned = value * r + math.sin(angle) * other
        return explained(r, turned, {"value": value, "n": 9, "low": low, "high": high})

    assert share(1.4, -0.5, 0.4) == {
        "value": pytest.approx(math.cos(1.4) ** 2),
        "n": 9,
        "low": 0,
        "high": 0.25,
    }
    opposite = share(2.2, -0.8, -0.3)
    assert (opposite["low"], opposite["high"]) == (pytest.approx(0.09), pytest.approx(0.64))


def test_nulls_of_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    noise: Pair = (torch.randn(60, 200, generator=generator), torch.randn(60, 200, generator=generator))
    assert abs(split_half_cosines(noise, 200, 0).mean()) < 0.1
    # isotropic noise: E|cos| = sqrt(2 / (pi d)), of which 118 dimensions are drawn
    direction = torch.randn(200, generator=generator)
    for null in (random_cosines, shuffled_cosines):
        assert null(noise, direction, 500, 0).mean() == pytest.approx((2 / (math.pi * 118)) ** 0.5, rel=0.5)


def test_split_halves_share_no_prompt() -> None:
    x = torch.eye(8)  # one prompt a dimension: halves that shared one would not be at right angles
    found = split_half_cosines((x, torch.zeros(8, 8)), 20, 0)
    assert abs(found).max() < 1e-12
    a, b = split_halves((x, torch.zeros(8, 8)), 20, 0)
    assert torch.equal(a + b, torch.full((20, 8), 1 / 4, dtype=torch.float64))


def test_other_prompts_are_refused(tmp_path: Path) -> None:
    dense, turned = folder(tmp_path / "dense", False), folder(tmp_path / "turned", True)
    write_jsonl(turned / "activations/harmful.jsonl", [{"id": 0, "text": "another"}])
    with pytest.raises(HoldfastError, match="its harmful prompts are not those of"):
        compare(dense, turned, tmp_path / "comparison.json", tmp_path / "comparison.csv", seed=0)
    assert not (tmp_path / "comparison.json").exists()


def test_a_table_has_a_row_for_every_place() -> None:
    table = cosine_table(activations(False), activations(True), seed=0, draws=50)
    assert list(table["layer"]) == list(range(LAYERS))
    assert (table["position"] == -1).all()
    assert list(table.columns[-2:]) == ["p", "p_holm"]


def test_a_filtered_direction_is_compared_over_the_prompts_it_is_of(tmp_path: Path) -> None:
    dense, turned = folder(tmp_path / "dense", False), folder(tmp_path / "turned", True)
    few = {"harmful": list(range(12)), "harmless": None}
    values = activations(True)
    raw = (
        values["harmful"][:12, 0, TURNED].double().mean(0) - values["harmless"][:, 0, TURNED].double().mean(0)
    ).float()
    kept = load_file(turned / "direction/direction.safetensors")
    save_file(
        {**kept, "direction": raw / raw.norm(), "mean_difference": raw},
        turned / "direction/direction.safetensors",
    )
    about = json.loads((turned / "direction/direction.json").read_text())
    whole = compare(dense, turned, tmp_path / "a.json", tmp_path / "a.csv", seed=0)
    write_json(turned / "direction/direction.json", {**about, "train_rows": few})
    found = compare(dense, turned, tmp_path / "b.json", tmp_path / "b.csv", seed=0)
    # The value is of the directions as they are chosen, the interval of the same prompts, and wider for being fewer.
    assert found["explained"]["value"] == pytest.approx(found["cosine"]["value"] ** 2)
    assert whole["explained"]["value"] != pytest.approx(whole["cosine"]["value"] ** 2, abs=1e-6)
    widths = [r["cosine"]["high"] - r["cosine"]["low"] for r in (whole, found)]
    assert widths[1] > 1.5 * widths[0]
    assert found["cosine"]["low"] < found["cosine"]["value"] < found["cosine"]["high"]
    assert found["cosine"]["n"] == whole["cosine"]["n"] == 2 * PROMPTS  # the dense one is of all of them
    table = pd.read_csv(tmp_path / "b.csv").set_index("layer")
    assert table.loc[TURNED, "cosine"] == pytest.approx(found["cosine"]["value"])
