"""The edit stage, on a model whose refusal direction is known."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from holdfast.architectures import decoder_layers, writer
from holdfast.checkpoints import load_model
from holdfast.compression import compress
from holdfast.errors import HoldfastError
from holdfast.methods.aird import VARIANTS, rank_one
from holdfast.methods.edit import edit_checkpoint
from holdfast.methods.edit_search import edited
from holdfast.refusal.interventions import random_unit
from planted import studied
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module")
def study(
    planted_dir: tuple[Path, torch.Tensor], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder, _ = planted_dir
    return studied(folder, tmp_path_factory.mktemp("study")) | {"dense": folder}


def run_edit(
    study: dict[str, Path], out: Path, recipe: dict[str, Any], matched_to: Path | None = None
) -> dict[str, Any]:
    return edit_checkpoint(
        study.get("compressed", study["dense"]), out, dense=study["dense"], direction_dir=study["direction"],
        own_direction_dir=study.get("own_direction", study["direction"]), harmful=study["harmful_validation"],
        harmless=study["harmless_validation"], harmful_train=study["harmful_train"],
        harmless_train=study["harmless_train"], recipe=recipe, matched_to=matched_to,
    )  # fmt: skip


BASE = {
    **{"edit": "aird", "matrices": ["o_proj", "down_proj"], "direction": "dense"},
    **{"keep_sparsity": False, "requantize": False},
}


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


@pytest.mark.parametrize("keep_sparsity", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_random_control_changes_every_matrix_as_much(
    study: dict[str, Path], tmp_path: Path, variant: str, keep_sparsity: bool
) -> None:
    """By Frobenius norm; a matched control, of a pruned model whose own direction is another than the dense one's."""
    compress(study["dense"], tmp_path / "pruned", {"prune": "magnitude", "sparsity": 0.3})
    own = tmp_path / "own"
    shutil.copytree(study["direction"], own)
    tensors = load_file(own / "direction.safetensors")
    unit = tensors["direction"] + random_unit(tensors["direction"], 9)
    save_file(tensors | {"direction": unit / unit.norm()}, own / "direction.safetensors")
    places = {**study, "compressed": tmp_path / "pruned", "own_direction": own}
    recipe = {**BASE, "variant": variant, "layer": [1, 2], "alpha": 2.0, "keep_sparsity": keep_sparsity}
    run_edit(places, tmp_path / "out", recipe)
    control = {"edit": "aird", "direction": "random", "matched_to": "aird", "seed": 7}
    run_edit(places, tmp_path / "control", control, tmp_path / "out/edit.json")
    before, after, random = (
        load_file(tmp_path / name / "model.safetensors") for name in ("pruned", "out", "control")
    )
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(changed) == 4
    assert changed == [name for name in before if not torch.equal(before[name], random[name])]
    for name in changed:
        ours, chance = after[name] - before[name], random[name] - before[name]
        assert chance.norm().item() == pytest.approx(ours.norm().item(), rel=1e-4)
        assert torch.cosine_similarity(ours.flatten(), chance.flatten(), dim=0).abs() < 0.9


def test_a_control_of_no_edit_is_none(study: dict[str, Path], tmp_path: Path) -> None:
    run_edit(study, tmp_path / "out", {**BASE, "variant": "amplify", "layer": 3, "alpha": 0})
    control = {"edit": "aird", "direction": "random", "matched_to": "aird", "seed": 7}
    about = run_edit(study, tmp_path / "control", control, tmp_path / "out/edit.json")
    assert (about["variant"], about["layers"], about["alpha"]) == (None, [], 0)
    for file in study["dense"].glob("*.safetensors"):
        assert (tmp_path / "control" / file.name).read_bytes() == file.read_bytes()


def test_layer_that_does_not_exist_is_one_line(study: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(HoldfastError, match="layer 40 does not exist"):
        run_edit(study, tmp_path / "out", {**BASE, "variant": "amplify", "layer": 40, "alpha": 1.0})
    assert not (tmp_path / "out").exists()


def test_edit_in_memory_is_undone_bit_for_bit(study: dict[str, Path]) -> None:
    model = load_model(study["dense"])
    linear = writer(decoder_layers(model)[2], "o_proj")
    before = linear.weight.detach().clone()
    edit = rank_one("amplify", before, random_unit(torch.zeros(64), 1)).scaled(3.0)
    with edited(model, {(2, "o_proj"): edit}, study["dense"]):
        assert not torch.equal(writer(decoder_layers(model)[2], "o_proj").weight, before)
    assert torch.equal(writer(decoder_layers(model)[2], "o_proj").weight, before)
