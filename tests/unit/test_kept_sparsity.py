"""``keep_sparsity``: what was pruned stays pruned, and the rest writes what the whole edit writes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from holdfast.architectures import decoder_layers, writer
from holdfast.checkpoints import load_model, load_tokenizer
from holdfast.compression import compress
from holdfast.edited_checkpoints import read_weight
from holdfast.files import read_json
from holdfast.methods.aird import RankOne, rank_one
from holdfast.methods.edit import edit_checkpoint
from holdfast.methods.edit_candidates import matrix_inputs
from holdfast.methods.kept_sparsity import COMPONENTS, RIDGE, kept
from holdfast.refusal.interventions import random_unit
from planted import SETTINGS, prompts, studied

ROWS, WIDTH = 24, 160


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def pruned() -> torch.Tensor:
    """Half of the weights zero, one row all of them, one none."""
    weight = drawn(ROWS, WIDTH, seed=0).float()
    weight[drawn(ROWS, WIDTH, seed=1) > 0] = 0
    weight[3] = 0
    weight[4] = 1
    return weight


@pytest.fixture
def inputs() -> torch.Tensor:
    """With a mean and with a few strong directions, as a model's are."""
    return 2 + drawn(200, 12, seed=2) @ drawn(12, WIDTH, seed=3) + 0.1 * drawn(200, WIDTH, seed=4)


@pytest.fixture
def update(pruned: torch.Tensor) -> RankOne:
    return rank_one("amplify", pruned, random_unit(torch.zeros(ROWS), 5)).scaled(4.0)


def test_zeros_stay_zeros_and_all_else_may_move(
    pruned: torch.Tensor, inputs: torch.Tensor, update: RankOne
) -> None:
    after = kept(pruned, [update], inputs)[0].applied(pruned)
    assert torch.equal(after == 0, pruned == 0)
    assert (after != pruned).sum() > 0.9 * (pruned != 0).sum()
    assert after.dtype == pruned.dtype


def test_it_writes_nearly_what_the_whole_update_writes(
    pruned: torch.Tensor, inputs: torch.Tensor, update: RankOne
) -> None:
    whole = torch.outer(update.left, update.right)
    cut = whole * (pruned != 0)
    ours = kept(pruned, [update], inputs)[0].applied(pruned.double()) - pruned
    errors = [((change - whole) @ inputs.T)[pruned.any(1)].square().sum().item() for change in (cut, ours)]
    assert errors[1] < 0.01 * errors[0]


def test_a_row_is_the_formula(pruned: torch.Tensor, update: RankOne) -> None:
    """Against the formula written down for one row, with as many inputs as components."""
    x = drawn(COMPONENTS, WIDTH, seed=6)
    row, ridge = 7, RIDGE * (x @ x.T).diagonal().mean()
    target, left = update.left[row] * update.right, pruned[row] != 0
    gram = x[:, left] @ x[:, left].T + ridge * torch.eye(COMPONENTS, dtype=torch.float64)
    correction = x[:, left].T @ torch.linalg.solve(gram, x @ (target * ~left))
    after = kept(pruned, [update], x)[0].applied(pruned.double())[row]
    assert torch.allclose(after[left], pruned[row, left] + target[left] + correction, atol=1e-8)


def test_a_mask_of_ones_gives_the_whole_update(inputs: torch.Tensor) -> None:
    weight = drawn(ROWS, WIDTH, seed=7).float()
    update = rank_one("amplify", weight, random_unit(torch.zeros(ROWS), 5))
    assert torch.equal(kept(weight, [update], inputs)[0].applied(weight), update.applied(weight))


def test_it_is_linear_in_the_strength_and_alike_alone_and_in_company(
    pruned: torch.Tensor, inputs: torch.Tensor, update: RankOne
) -> None:
    other = rank_one("realign", pruned, update.left.float(), own_direction=random_unit(torch.zeros(ROWS), 8))
    both = kept(pruned, [other, update], inputs)
    alone = kept(pruned, [update.scaled(3.0)], inputs)[0]
    assert torch.allclose(both[1].scaled(3.0).applied(pruned), alone.applied(pruned), atol=1e-5)
    assert torch.equal(
        both[0].applied(pruned) == 0, pruned == 0
    )  # `realign` has another left vector than the rest


# ---- the stage

BASE = {
    **{"edit": "aird", "variant": "centred", "matrices": ["o_proj", "down_proj"], "direction": "dense"},
    **{"layer": 2, "alpha": 4.0, "requantize": False},
}
NAMES = [f"model.layers.2.{name}.weight" for name in ("self_attn.o_proj", "mlp.down_proj")]


@pytest.fixture(scope="module")
def study(
    planted_dir: tuple[Path, torch.Tensor], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder, _ = planted_dir
    root = tmp_path_factory.mktemp("study")
    compress(folder, root / "pruned", {"prune": "magnitude", "pattern": "2:4"}, None)
    return studied(folder, root) | {"dense": folder, "pruned": root / "pruned"}


def run_edit(study: dict[str, Path], model: Path, out: Path, **changed: Any) -> dict[str, Any]:
    return edit_checkpoint(
        model, out, dense=study["dense"], direction_dir=study["direction"], own_direction_dir=study["direction"],
        harmful=study["harmful_validation"], harmless=study["harmless_validation"],
        harmful_train=study["harmful_train"], harmless_train=study["harmless_train"], recipe=BASE | changed,
    )  # fmt: skip


def test_two_of_four_stays_two_of_four(study: dict[str, Path], tmp_path: Path) -> None:
    run_edit(study, study["pruned"], tmp_path / "kept", keep_sparsity=True)
    run_edit(study, study["pruned"], tmp_path / "whole", keep_sparsity=False)
    before, after, whole = (
        read_json(folder / "provenance.json")["density"]
        for folder in (study["pruned"], tmp_path / "kept", tmp_path / "whole")
    )
    assert (before, after) == (0.5, 0.5)
    assert whole > 0.52  # two matrices of 42 are full
    for name in NAMES:
        old, new = read_weight(study["pruned"], name), read_weight(tmp_path / "kept", name)
        assert not torch.equal(old, new)
        assert ((new.view(-1, 4) != 0).sum(-1) <= 2).all()


def test_the_kept_edit_writes_what_the_whole_one_does_on_new_prompts(
    study: dict[str, Path], tmp_path: Path
) -> None:
    run_edit(study, study["pruned"], tmp_path / "kept", keep_sparsity=True)
    run_edit(study, study["pruned"], tmp_path / "whole", keep_sparsity=False)
    model = load_model(study["pruned"])
    key = (2, "down_proj")
    found = matrix_inputs(model, load_tokenizer(study["dense"]), prompts("harmful", 12, 300), SETTINGS, [key])
    old = writer(decoder_layers(model)[2], "down_proj").weight.detach()
    ours, whole = (read_weight(tmp_path / name, NAMES[1]) - old for name in ("kept", "whole"))
    errors = [((change - whole) @ found[key].T).square().mean() for change in (ours, whole * (old != 0))]
    assert errors[0] < 0.5 * errors[1]


def test_on_a_dense_checkpoint_it_is_the_same_edit(study: dict[str, Path], tmp_path: Path) -> None:
    for name, keeps in (("kept", True), ("whole", False)):
        run_edit(study, study["dense"], tmp_path / name, keep_sparsity=keeps)
    for name in NAMES:
        assert torch.equal(read_weight(tmp_path / "kept", name), read_weight(tmp_path / "whole", name))
