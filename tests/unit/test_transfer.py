"""One model's direction inside the other: a copy of the model, and one whose direction is turned."""

from pathlib import Path
from typing import Any

import pytest
import torch
from holdfast.architectures import decoder_layers
from holdfast.checkpoints import load_model, load_tokenizer
from holdfast.errors import HoldfastError
from holdfast.files import read_json, write_json
from holdfast.model_folders import settings
from holdfast.prompts.sources import read_records
from holdfast.refusal.activations import cache_activations, load_activations
from holdfast.refusal.direction import find_direction, load_direction
from holdfast.refusal.interventions import ablated, added
from holdfast.refusal.score_check import load_score
from holdfast.refusal.transfer import WAYS, null_differences, summarised, transfer
from holdfast.statistics import p_beyond
from planted import RECIPE, files, planted_llama
from safetensors.torch import load_file, save_file

NULLS = 4


def measured(folder: Path, made: dict[str, Path], ablation: str) -> Path:
    """``activations/`` and ``direction/`` beside ``folder/checkpoint``."""
    train = made["harmful_train"], made["harmless_train"]
    cache_activations(folder / "checkpoint", folder / "activations", *train, {})
    find_direction(
        folder / "checkpoint",
        folder / "direction",
        folder / "activations",
        made["harmful_validation"],
        made["harmless_validation"],
        {**RECIPE, "positions": [-1], "layers": [2, 3], "ablation": ablation},
    )
    return folder


def turned(source: Path, out: Path) -> Path:
    """The same model in another basis of its residual stream: what it does is unchanged, its direction is turned."""
    model, tokenizer = load_model(source), load_tokenizer(source)
    drawn = torch.randn(64, 64, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    q = torch.linalg.qr(drawn).Q.float()
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(model.get_input_embeddings().weight @ q)
        for block in decoder_layers(model):
            reads = [block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj]
            for linear in (*reads, block.mlp.gate_proj, block.mlp.up_proj):
                linear.weight.copy_(linear.weight @ q)
            for linear in (block.self_attn.o_proj, block.mlp.down_proj):
                linear.weight.copy_(q.T @ linear.weight)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("transfer")
    found = files(root)
    planted_llama(root / "dense/checkpoint")
    found["dense"] = measured(root / "dense", found, "plain")
    turned(root / "dense/checkpoint", root / "turned/checkpoint")
    found["turned"] = measured(root / "turned", found, "plain")
    return found


def run(made: dict[str, Path], compressed: Path, out: Path) -> dict[str, Any]:
    validation = made["harmful_validation"], made["harmless_validation"]
    return transfer(made["dense"], compressed, out, *validation, {"nulls": NULLS, "seed": 0})


def test_in_the_same_model_it_does_what_the_own_direction_does(made: dict[str, Path], tmp_path: Path) -> None:
    found = run(made, made["dense"], tmp_path / "transfer.json")
    assert read_json(tmp_path / "transfer.json") == found
    assert found["dense_in_compressed"] == found["compressed_in_dense"]
    about = load_direction(made["dense"] / "direction").about
    for measure, kind in (("bypass", "harmful"), ("induce", "harmless")):
        way = found["dense_in_compressed"][measure]
        assert way["other"] == way["own"]
        assert way["other_minus_own"] == {"value": 0, "n": 12, "low": 0, "high": 0}
        assert way["own"]["value"] == pytest.approx(about["chosen"][measure], abs=1e-4)  # as the sweep had it
        assert way["baseline"]["value"] == pytest.approx(about["baseline"][kind], abs=1e-4)
        assert way["own"]["low"] < way["own"]["value"] < way["own"]["high"]
        assert way["null"]["n"] == len(way["nulls"]) == NULLS
        # Half of the spread among harmful prompts is the planted direction's own, so some nulls act a little too.
        sign = -1 if measure == "bypass" else 1
        for null in ("", "_shuffled"):
            drawn = [sign * mean for mean in way[f"nulls{null}"]]
            assert len(drawn) == NULLS
            assert way[f"p{null}"] == pytest.approx(p_beyond(sign * way["other"]["value"], drawn))
        # Halves of the prompts find the planted direction again: the ceiling is what the own one does.
        ceiling = way["null_split_half"]
        assert ceiling["n"] == len(way["nulls_split_half"]) == NULLS
        effect = way["own"]["value"] - way["baseline"]["value"]
        assert ceiling["mean"] - way["baseline"]["value"] == pytest.approx(effect, rel=0.25)
        assert "p_split_half" not in way
    assert found["dense_in_compressed"]["bypass"]["other_effect"]["high"] < 0
    assert found["dense_in_compressed"]["induce"]["other_effect"]["low"] > 0


def test_a_turned_direction_does_not_transfer(made: dict[str, Path], tmp_path: Path) -> None:
    found = run(made, made["turned"], tmp_path / "transfer.json")
    same = run(made, made["dense"], tmp_path / "same.json")
    ours, theirs = (load_direction(made[name] / "direction").unit for name in ("dense", "turned"))
    assert abs(ours @ theirs) < 0.5
    for way in WAYS:
        for measure in ("bypass", "induce"):
            one, other = found[way][measure], same[way][measure]
            # The model is the same function: own scores are the dense model's. The other's direction does little.
            assert one["own"]["value"] == pytest.approx(other["own"]["value"], abs=0.02)
            assert abs(one["other_effect"]["value"]) < 0.5 * abs(one["own_effect"]["value"])
            assert one["p"] > other["p"]


def test_scores_are_those_of_whole_passes_one_by_one(made: dict[str, Path], tmp_path: Path) -> None:
    found = run(made, made["turned"], tmp_path / "transfer.json")["dense_in_compressed"]
    checkpoint = made["turned"] / "checkpoint"
    model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
    own, other = (load_direction(made[name] / "direction") for name in ("turned", "dense"))
    score = load_score(own.about, tokenizer, settings(checkpoint))
    harmful, harmless = (
        [r["text"] for r in read_records(made[f"{kind}_validation"])] for kind in ("harmful", "harmless")
    )
    for name, direction in (("own", own), ("other", other)):
        with ablated(model, direction.unit):
            assert found["bypass"][name]["value"] == pytest.approx(
                score(model, harmful).mean().item(), abs=1e-4
            )
        with added(model, direction.difference, direction.layer):
            whole = torch.stack([score(model, [text])[0] for text in harmless])
        assert found["induce"][name]["value"] == pytest.approx(whole.mean().item(), abs=1e-4)


def test_affine_ablation_puts_back_the_receivers_own_mean(made: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "checkpoint").symlink_to(made["dense"] / "checkpoint")
    measured(tmp_path, made, "affine")
    found = run({**made, "dense": tmp_path}, tmp_path, tmp_path / "transfer.json")["dense_in_compressed"]
    chosen = load_direction(tmp_path / "direction").about["chosen"]
    assert found["ablation"] == "affine"
    assert found["bypass"]["other"]["value"] == pytest.approx(chosen["bypass"], abs=1e-4)


def test_nulls_are_of_the_model_and_the_place_they_are_said_to_be(made: dict[str, Path]) -> None:
    """Of the giving model over shuffled labels, of the receiving one its covariance and its halves."""
    dense, other = (load_direction(made[name] / "direction") for name in ("dense", "turned"))
    found = null_differences(dense, other, made["dense"], made["turned"], 300, 0)
    assert {name: len(drawn) for name, drawn in found.items()} == {
        "random": 300, "shuffled": 300, "split_half": 300}  # fmt: skip
    for name, of in (("random", dense), ("shuffled", dense), ("split_half", other)):
        assert {layer for _, layer in found[name]} == {of.layer}
    drawn = {name: torch.stack([d for d, _ in of]).double() for name, of in found.items()}
    for name in ("random", "shuffled"):
        assert torch.allclose(drawn[name].norm(dim=-1), dense.difference.double().norm())
    # No label is known on average; half of the prompts know the direction, in the receiving model's own basis.
    assert drawn["shuffled"].mean(0).norm() < 0.25 * dense.difference.norm()
    assert float((drawn["split_half"].mean(0) - other.difference).norm() / other.difference.norm()) < 0.1
    # What prompts scatter along in one model's basis they do not in the other's.
    giver, receiver = (
        load_activations(made[name] / "activations")[0]["harmful"][:, -1, dense.layer].double()
        for name in ("dense", "turned")
    )
    for name, near, far in (("random", receiver, giver), ("shuffled", giver, receiver)):
        along = [torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh[0] for x in (near, far)]
        shares = [float((drawn[name] @ a).square().mean() / dense.difference.norm() ** 2) for a in along]
        assert shares[0] > 2 * shares[1]


def test_a_score_that_is_not_finite_says_nothing() -> None:
    fine, broken = torch.zeros(4), torch.tensor([0.0, torch.nan, 0.0, 0.0])
    nulls = {name: [fine, fine, fine] for name in ("random", "shuffled", "split_half")}
    found = summarised(fine, fine, broken, nulls, 1, 0)
    assert (found["p"], found["null"], found["other"]["value"], found["other"]["n"]) == (None, None, None, 4)
    assert (found["p_shuffled"], found["nulls_split_half"]) == (None, None)


def test_models_of_different_shapes_are_one_line(made: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "direction").mkdir()
    kept = load_file(made["dense"] / "direction/direction.safetensors")
    save_file({**kept, "harmless_mean": torch.zeros(3, 64)}, tmp_path / "direction/direction.safetensors")
    write_json(tmp_path / "direction/direction.json", load_direction(made["dense"] / "direction").about)
    with pytest.raises(HoldfastError, match="of a model of another shape than"):
        run(made, tmp_path, tmp_path / "transfer.json")
    assert not (tmp_path / "transfer.json").exists()
