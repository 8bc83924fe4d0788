"""The edit stage, on a model whose refusal direction is known."""

from pathlib import Path
from typing import Any

import pytest
import torch
from holdfast.architectures import decoder_layers, writer
from holdfast.checkpoints import load_model, load_tokenizer
from holdfast.compression import compress
from holdfast.errors import HoldfastError
from holdfast.files import write_jsonl
from holdfast.prompts.sources import read_records
from holdfast.refusal.activations import cache_activations
from holdfast.refusal.aird import rank_one
from holdfast.refusal.direction import find_direction, load_direction, load_score
from holdfast.refusal.edit import edit_checkpoint
from holdfast.refusal.edit_candidates import Candidate
from holdfast.refusal.edit_search import EditSearch, edited
from holdfast.refusal.interventions import random_unit
from holdfast.refusal.scores import first_answer_token, kl_divergence
from planted import RECIPE, SETTINGS, files
from safetensors.torch import load_file
from tiny import TEXTS


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
        study.get("compressed", study["dense"]), out, dense=study["dense"], direction_dir=study["direction"],
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
    for row in about["trace"][1:]:
        assert (row["refusal_score"] is None) == (row["kl"] > 0.5)
    whole = [row for row in about["trace"][1:] if row["refusal_score"] is not None and row["prompts"] == 12]
    best = max(whole, key=lambda row: row["refusal_score"])
    assert (about["layers"], about["alpha"]) == (best["layers"], best["alpha"])
    # The written checkpoint scores as the search said, in passes from the first layer on.
    model, tokenizer = load_model(tmp_path / "out"), load_tokenizer(tmp_path / "out")
    score = load_score(load_direction(study["direction"]).about, tokenizer, SETTINGS)
    texts = [record["text"] for record in read_records(study["harmful_validation"])]
    assert score(model, texts).mean().item() == pytest.approx(best["refusal_score"], abs=1e-4)
    assert best["refusal_score"] > about["trace"][0]["refusal_score"]

    control = {"edit": "aird", "direction": "random", "matched_to": "aird", "seed": 7}
    matched = run_edit(study, tmp_path / "control", control, tmp_path / "out" / "edit.json")
    assert {k: matched[k] for k in ("layers", "alpha", "variant")} == {
        k: about[k] for k in ("layers", "alpha", "variant")
    }
    assert matched["direction"] == "random"


def test_the_search_starts_where_the_edit_is_and_stops_at_the_winner(study: dict[str, Path]) -> None:
    model, tokenizer = load_model(study["dense"]), load_tokenizer(study["dense"])
    found = load_direction(study["direction"])
    score = load_score(found.about, tokenizer, SETTINGS)
    texts = {k: [r["text"] for r in read_records(study[f"{k}_validation"])] for k in ("harmful", "harmless")}
    candidates = []
    for layer in (1, 3):
        weight = writer(decoder_layers(model)[layer], "o_proj").weight
        edit = rank_one("amplify", weight, found.unit)
        candidates += [
            Candidate("amplify", [layer], a, {(layer, "o_proj"): edit.scaled(a)})
            for a in (0.5, 1.0, 2.0, 4.0)
        ]
    search = EditSearch(model, score, texts["harmful"], texts["harmless"], [1, 3], study["dense"], 50.0)
    for candidate in (candidates[0], candidates[-1]):
        for step in range(search.steps):
            kl, refusal = search.measure(candidate, step)
            rows = range(4 * step, 4 * step + 4)
            with edited(model, candidate.edits, study["dense"]):
                whole = score(model, [texts["harmful"][row] for row in rows])
                after = first_answer_token(
                    model, tokenizer, [texts["harmless"][row] for row in rows], SETTINGS
                )
            assert torch.allclose(refusal, whole, atol=1e-4)
            assert torch.allclose(kl, kl_divergence(search.before[step], after), atol=1e-4)
    best, trace = search.run(candidates)
    gains = []
    for candidate in candidates:
        with edited(model, candidate.edits, study["dense"]):
            gains.append(score(model, texts["harmful"]).mean().item())
    assert best == max(range(len(gains)), key=gains.__getitem__)
    assert sum(row["prompts"] for row in trace[1:]) < 12 * len(candidates)


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


def test_restore_is_refused_where_awq_has_rescaled_the_inputs(study: dict[str, Path], tmp_path: Path) -> None:
    compressed = tmp_path / "awq"
    recipe = {"quantize": "awq", "bits": 8, "group_size": 32, "samples": 4, "tokens": 16}
    calibration = tmp_path / "calibration.jsonl"
    write_jsonl(calibration, [{"text": " ".join(TEXTS)}] * 8)
    compress(study["dense"], compressed, recipe, calibration)
    with pytest.raises(HoldfastError, match="AWQ has rescaled what the edited matrices read"):
        run_edit(
            {**study, "compressed": compressed}, tmp_path / "out", {**BASE, "variant": "restore", "layer": 2}
        )
    assert not (tmp_path / "out").exists()


def test_edit_in_memory_is_undone_bit_for_bit(study: dict[str, Path]) -> None:
    model = load_model(study["dense"])
    linear = writer(decoder_layers(model)[2], "o_proj")
    before = linear.weight.detach().clone()
    edit = rank_one("amplify", before, random_unit(torch.zeros(64), 1)).scaled(3.0)
    with edited(model, {(2, "o_proj"): edit}, study["dense"]):
        assert not torch.equal(writer(decoder_layers(model)[2], "o_proj").weight, before)
    assert torch.equal(writer(decoder_layers(model)[2], "o_proj").weight, before)
