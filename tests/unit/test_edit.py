"""The edit stage and the comparison, on a model whose refusal direction is known."""

from pathlib import Path
from typing import Any

import pytest
import torch
from holdfast.architectures import decoder_layers, writer
from holdfast.checkpoints import load_model
from holdfast.errors import HoldfastError
from holdfast.refusal.activations import cache_activations
from holdfast.refusal.aird import rank_one
from holdfast.refusal.comparison import compare, random_cosines, split_half_cosines
from holdfast.refusal.direction import find_direction
from holdfast.refusal.edit import edit_checkpoint, edited
from holdfast.refusal.interventions import random_unit
from planted import RECIPE, files
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def study(
    planted_dir: tuple[Path, torch.Tensor], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder, _ = planted_dir
    root = tmp_path_factory.mktemp("study")
    made = files(root) | {
        "dense": folder,
        "activations": root / "activations",
        "direction": root / "direction",
    }
    cache_activations(folder, made["activations"], made["harmful_train"], made["harmless_train"], {})
    find_direction(
        folder,
        made["direction"],
        made["activations"],
        made["harmful_validation"],
        made["harmless_validation"],
        RECIPE,
    )
    return made


def run_edit(
    study: dict[str, Path], out: Path, recipe: dict[str, Any], matched_to: Path | None = None
) -> dict[str, Any]:
    return edit_checkpoint(
        study["dense"], out, dense=study["dense"], direction_dir=study["direction"],
        own_direction_dir=study["direction"], harmful=study["harmful_validation"],
        harmless=study["harmless_validation"], harmless_train=study["harmless_train"], recipe=recipe,
        matched_to=matched_to,
    )  # fmt: skip


BASE = {"edit": "aird", "matrices": ["o_proj", "down_proj"], "direction": "dense", "requantize": False}


@pytest.mark.parametrize("variant", ["amplify", "centred", "null-space"])
def test_alpha_zero_is_bit_identical(study: dict[str, Path], tmp_path: Path, variant: str) -> None:
    run_edit(study, tmp_path / "out", {**BASE, "variant": variant, "layer": 3, "alpha": 0})
    for file in study["dense"].glob("*.safetensors"):
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
        assert (tmp_path / "out" / file.name).stat().st_ino == file.stat().st_ino


def test_edit_changes_only_its_matrices_and_equals_the_edit_in_memory(
    study: dict[str, Path], tmp_path: Path
) -> None:
    about = run_edit(study, tmp_path / "out", {**BASE, "variant": "amplify", "layer": "source", "alpha": 1.5})
    before, after = (load_file(f / "model.safetensors") for f in (study["dense"], tmp_path / "out"))
    layer = about["layers"][0]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"model.layers.{layer}.{m}.weight" for m in ("self_attn.o_proj", "mlp.down_proj")}
    r = load_file(study["direction"] / "direction.safetensors")["direction"]
    for name in changed:
        assert torch.allclose(r @ after[name], 2.5 * (r @ before[name]), atol=1e-4)
    assert not (tmp_path / "out" / "provenance.json").samefile(study["direction"] / "provenance.json")


def test_search_keeps_to_the_kl_bound_and_records_its_trace(study: dict[str, Path], tmp_path: Path) -> None:
    recipe = {
        **BASE, "variant": "amplify", "layer": "search", "alpha": "search",
        "search": {"layers": [1, 2, 3], "alphas": [0.5, 4.0], "max_kl": 0.5},
    }  # fmt: skip
    about = run_edit(study, tmp_path / "out", recipe)
    assert len(about["trace"]) == 1 + 6
    allowed = [row for row in about["trace"][1:] if row["kl"] <= 0.5]
    assert all(row["refusal_score"] is None for row in about["trace"][1:] if row["kl"] > 0.5)
    best = max(allowed, key=lambda row: row["refusal_score"])
    assert (about["layers"], about["alpha"]) == (best["layers"], best["alpha"])

    control = {"edit": "aird", "direction": "random", "matched_to": "aird", "seed": 7}
    matched = run_edit(study, tmp_path / "control", control, tmp_path / "out" / "edit.json")
    assert {k: matched[k] for k in ("layers", "alpha", "variant")} == {
        k: about[k] for k in ("layers", "alpha", "variant")
    }
    assert matched["direction"] == "random"


def test_search_that_finds_nothing_edits_nothing(study: dict[str, Path], tmp_path: Path) -> None:
    recipe = {
        **BASE, "variant": "amplify", "layer": "search", "alpha": 1.0, "search": {"layers": [1, 2], "max_kl": -1.0}
    }  # fmt: skip
    about = run_edit(study, tmp_path / "out", recipe)
    assert about["layers"] == []
    assert about["alpha"] == 0
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        study["dense"] / "model.safetensors"
    ).read_bytes()


def test_layer_that_does_not_exist_is_one_line(study: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(HoldfastError, match="layer 40 does not exist"):
        run_edit(study, tmp_path / "out", {**BASE, "variant": "amplify", "layer": 40, "alpha": 1.0})
    assert not (tmp_path / "out").exists()


def test_edit_in_memory_is_undone_bit_for_bit(study: dict[str, Path]) -> None:
    model = load_model(study["dense"])
    linear = writer(decoder_layers(model)[2], "o_proj")
    before = linear.weight.detach().clone()
    edit = rank_one("amplify", before, random_unit(torch.zeros(64), 1), 3.0)
    with edited(model, {(2, "o_proj"): edit}, study["dense"]):
        assert not torch.equal(writer(decoder_layers(model)[2], "o_proj").weight, before)
    assert torch.equal(writer(decoder_layers(model)[2], "o_proj").weight, before)


def test_comparison_with_itself_is_one_and_nulls_are_what_they_should_be(study: dict[str, Path]) -> None:
    folder = study["direction"].parent
    result = compare(folder, folder, folder / "comparison.json", seed=0)
    assert result["cosine"] == pytest.approx(1.0)
    assert result["null_split_half"]["mean"] > 0.9  # a strong planted direction survives halving
    # The plant dominates the covariance too, so random directions drawn with it agree a lot: why the null is shown.
    assert result["null_random"]["mean"] < result["null_split_half"]["mean"]


def test_nulls_of_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(60, 200, generator=generator) for _ in range(2)]
    assert abs(split_half_cosines(noise[0], noise[1], 0).mean()) < 0.1
    # isotropic noise: E|cos| = sqrt(2 / (pi d))
    found = random_cosines(noise[0], noise[1], random_unit(torch.zeros(200), 1), 0).mean()
    assert found == pytest.approx((2 / (torch.pi * 118)) ** 0.5, rel=0.5)
