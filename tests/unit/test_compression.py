"""The stage compress: what it records, what it calibrates on, what it refuses, and published checkpoints."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gptq_checkpoints import auto_gptq_checkpoint
from holdfast.architectures import decoder_linears
from holdfast.checkpoints import load_model, load_tokenizer
from holdfast.compression import compress
from holdfast.compression.calibration import sequences
from holdfast.config.by_hand import validated
from holdfast.edited_checkpoints import edited_copy
from holdfast.errors import HoldfastError
from holdfast.files import read_json, sha256, write_json
from holdfast.model_folders import settings
from holdfast.sources import fetch
from holdfast.weight_statistics import weight_statistics
from safetensors.torch import load_file, save_file
from tiny import TEXTS, tiny_llama, tiny_llava

RECIPES = {
    "magnitude": {"prune": "magnitude", "sparsity": 0.3},
    "wanda": {"prune": "wanda", "pattern": "2:4", "samples": 6, "tokens": 24},
    "rtn": {"quantize": "rtn", "bits": 3, "group_size": 32},
    "gptq": {"quantize": "gptq", "bits": 3, "group_size": 32, "samples": 24, "tokens": 64},
    "int8": {"quantize": "llm-int8", "version": 2},
}


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_llama(tmp_path_factory.mktemp("tiny") / "dense")
    (folder / "holdfast.json").write_text('{"system_prompt": "Be kind."}')
    return folder


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calibration") / "calibration.jsonl"
    records = [
        {"id": str(i), "text": " ".join(TEXTS[(i + j) % len(TEXTS)] for j in range(4))} for i in range(24)
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


@pytest.fixture(scope="module")
def compressed(dense: Path, calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("compressed")
    for name, recipe in RECIPES.items():
        compress(dense, folder / name, recipe, calibration)
    return {"dense": dense, **{name: folder / name for name in RECIPES}}


# ---- records


def test_every_folder_is_complete_and_says_how_it_was_made(
    compressed: dict[str, Path], calibration: Path
) -> None:
    for name, recipe in RECIPES.items():
        folder = compressed[name]
        assert settings(folder)["system_prompt"] == "Be kind."
        assert load_tokenizer(folder).chat_template == load_tokenizer(compressed["dense"]).chat_template
        assert (folder / "generation_config.json").is_file()
        record = read_json(folder / "provenance.json")
        assert record["recipe"].items() >= {k: v for k, v in recipe.items() if v is not None}.items()
        # All that is needed to make it again, defaults included; nothing that was not used.
        assert ({"samples", "tokens", "seed"} <= set(record["recipe"])) == ("samples" in recipe)
        assert (record.get("calibration", {}).get("sha256") == sha256(calibration)) == ("samples" in recipe)
        assert record["bytes"] == sum(f.stat().st_size for f in folder.glob("*.safetensors"))
        assert record["weights"] == {f.name: sha256(f) for f in folder.glob("*.safetensors")}
        assert record["seconds"] > 0
        assert record["peak_memory_bytes"] > record["bytes"]
        assert {"torch", "transformers", "llmcompressor", "bitsandbytes"} <= set(record["packages"])


def test_the_record_holds_what_each_matrix_achieved(compressed: dict[str, Path]) -> None:
    linears = decoder_linears(load_model(compressed["dense"]))
    for name, share in (("magnitude", 0.7), ("wanda", 0.5)):
        record = read_json(compressed[name] / "provenance.json")
        pruned = decoder_linears(load_model(compressed[name]))
        assert set(record["modules"]) == set(linears)
        for module, about in record["modules"].items():
            weight = pruned[module].weight
            assert about == {"bits_per_weight": 32, "density": int(weight.count_nonzero()) / weight.numel()}
        assert record["density"] == pytest.approx(share, abs=0.001)
        assert record["bits_per_weight"] == 32
    # 3 bits, a float32 scale for every 32 weights, and the shape of each module as two int64.
    record = read_json(compressed["rtn"] / "provenance.json")
    assert record["density"] is None
    for module, about in record["modules"].items():
        assert about["bits_per_weight"] == pytest.approx(3 + 1 + 128 / linears[module].weight.numel())
    assert 8 < read_json(compressed["int8"] / "provenance.json")["bits_per_weight"] < 9


def test_statistics_of_an_edited_copy_read_only_what_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_llama(tmp_path / "dense", max_shard_size="200KB")
    # The record of a checkpoint in several shards, as a large model's is.
    shutil.copytree(source, tmp_path / "several")
    write_json(tmp_path / "several/provenance.json", weight_statistics(tmp_path / "several"))
    name = "model.layers.2.mlp.down_proj.weight"
    weight = load_model(source).get_parameter(name).detach().clone()
    weight[0] = 0
    edited_copy(tmp_path / "several", tmp_path / "copy", {name: weight})
    read: list[str] = []
    real = sha256
    monkeypatch.setattr(
        "holdfast.weight_statistics.sha256", lambda path: read.append(path.name) or real(path)
    )
    about = weight_statistics(tmp_path / "copy", source=tmp_path / "several")
    assert len(read) == 1 < len(list(source.glob("*.safetensors")))
    monkeypatch.undo()
    (changed,) = read
    added = about.pop("added_bytes")
    assert added >= (tmp_path / "copy" / changed).stat().st_size
    assert added < about["bytes"]
    assert about == weight_statistics(tmp_path / "copy")
    assert about["modules"][name.removesuffix(".weight")]["density"] < 1


def test_compression_is_reproducible(compressed: dict[str, Path], calibration: Path, tmp_path: Path) -> None:
    compress(compressed["dense"], tmp_path / "again", RECIPES["wanda"], calibration)
    weights = [read_json(f / "provenance.json")["weights"] for f in (compressed["wanda"], tmp_path / "again")]
    assert weights[0] == weights[1]


# ---- published checkpoints


@pytest.mark.parametrize("name", ["rtn", "wanda"])
def test_a_published_checkpoint_is_brought_as_it_is(
    compressed: dict[str, Path], tmp_path: Path, calibration: Path, name: str
) -> None:
    published = tmp_path / "published"
    shutil.copytree(compressed[name], published)
    (published / "holdfast.json").unlink()
    (published / "tokenizer_config.json").write_text("{}")
    compress(compressed["dense"], tmp_path / "out", {"source": f"path:{published}"}, calibration)
    for shard in published.glob("*.safetensors"):
        assert (tmp_path / "out" / shard.name).samefile(shard)
    ours, theirs = load_model(tmp_path / "out"), load_model(compressed[name])
    ids = torch.arange(5, 45)[None]
    assert torch.equal(ours(ids).logits, theirs(ids).logits)
    # Asked the same tokens as the dense model.
    assert settings(tmp_path / "out")["system_prompt"] == "Be kind."
    assert load_tokenizer(tmp_path / "out").chat_template
    record, original = (read_json(f / "provenance.json") for f in (tmp_path / "out", compressed[name]))
    for key in ("density", "bits_per_weight", "modules", "weights"):
        assert record[key] == original[key]


def as_autogptq_published(dense: Path, folder: Path, **about: object) -> Path:
    """One file named after its settings, which stand in a file of their own."""
    made = auto_gptq_checkpoint(dense, folder)
    config = read_json(made / "config.json")
    settings = config.pop("quantization_config") | about
    del settings["quant_method"]
    (made / "config.json").write_text(json.dumps(config))
    (made / "quantize_config.json").write_text(json.dumps(settings))
    (made / "model.safetensors.index.json").unlink()
    (shard,) = made.glob("*.safetensors")
    shard.rename(made / "gptq_model-4bit-32g.safetensors")
    return made


def test_an_old_auto_gptq_checkpoint_is_brought(dense: Path, tmp_path: Path) -> None:
    made = auto_gptq_checkpoint(dense, tmp_path / "made")
    old = as_autogptq_published(dense, tmp_path / "old")
    compress(dense, tmp_path / "out", {"source": f"path:{old}"})
    ids = torch.arange(5, 45)[None]
    assert torch.equal(load_model(tmp_path / "out")(ids).logits, load_model(made)(ids).logits)


def test_a_published_layout_that_cannot_be_read_is_refused_where_it_lies(dense: Path, tmp_path: Path) -> None:
    old = as_autogptq_published(dense, tmp_path / "old", checkpoint_format="marlin")
    with pytest.raises(HoldfastError, match=r"weights in the layout marlin") as error:
        compress(dense, tmp_path / "out", {"source": f"path:{old}"})
    assert error.value.where == str(old)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_model_is_refused(dense: Path, tmp_path: Path, calibration: Path) -> None:
    other = tiny_llama(tmp_path / "other", layers=3)
    with pytest.raises(HoldfastError, match=r"layers\.3\S* is missing there and \(64,\) in the dense model"):
        compress(dense, tmp_path / "out", {"source": f"path:{other}"}, calibration)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*"))


def test_a_published_checkpoint_is_not_replaced_by_its_copy(dense: Path, tmp_path: Path) -> None:
    compress(dense, tmp_path / "out", RECIPES["magnitude"])
    before = read_json(tmp_path / "out/provenance.json")
    options = [str(dense), str(tmp_path / "out"), "--recipe", json.dumps({"source": f"path:{tmp_path}/out"})]
    run = subprocess.run(
        [sys.executable, "-m", "holdfast", "compress", *options], capture_output=True, text=True, check=False
    )
    assert (run.returncode, len(run.stderr.splitlines())) == (2, 1), run.stderr
    assert "would replace its own input" in run.stderr
    assert read_json(tmp_path / "out/provenance.json") == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nothing_that_is_not_finite_is_ever_saved(
    dense: Path, tmp_path: Path, calibration: Path, value: float
) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    bad = Path(shutil.copytree(dense, tmp_path / "bad"))
    tensors = load_file(bad / "model.safetensors")
    tensors[name][2, 3] = value
    save_file(tensors, bad / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(HoldfastError, match=f"{name} holds NaN or infinite values") as error:
        fetch({"source": f"path:{bad}"}, tmp_path / "out")
    assert error.value.where == f"path:{bad}, model.safetensors"
    with pytest.raises(HoldfastError, match=f"{name} holds NaN or infinite values"):
        compress(dense, tmp_path / "out", {"source": f"path:{bad}"}, calibration)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("requantize", [False, True])
def test_an_edit_that_overflows_where_it_is_stored_is_refused(
    dense: Path, tmp_path: Path, requantize: bool
) -> None:
    fetch({"source": f"path:{dense}", "dtype": "float16"}, tmp_path / "half")
    compress(tmp_path / "half", tmp_path / "w4", {"quantize": "rtn", "bits": 4, "group_size": 32})
    name = "model.layers.1.mlp.down_proj.weight"
    weight = torch.full((64, 128), 2e6)
    for source in ("half", "w4"):
        with pytest.raises(HoldfastError, match=r"down_proj\S* holds NaN or infinite values"):
            edited_copy(tmp_path / source, tmp_path / "copy", {name: weight}, requantize)
        assert not (tmp_path / "copy").exists()


def test_the_record_covers_the_parts_that_were_compressed(tmp_path: Path) -> None:
    model = tiny_llava(tmp_path / "llava")
    compress(model, tmp_path / "pruned", {"prune": "magnitude", "sparsity": 0.5, "parts": ["vision"]})
    record = read_json(tmp_path / "pruned/provenance.json")
    densities = {name: about["density"] for name, about in record["modules"].items()}
    vision = {name: share for name, share in densities.items() if "vision" in name}
    assert vision
    assert all(share == pytest.approx(0.5, abs=0.01) for share in vision.values())
    assert all(share > 0.99 for name, share in densities.items() if name not in vision)
    assert 0.5 < record["density"] < 1


# ---- calibration


def test_calibration_sequences_are_drawn_by_the_seed(dense: Path, calibration: Path) -> None:
    tokenizer = load_tokenizer(dense)
    draws = [sequences(calibration, tokenizer, samples=5, tokens=16, seed=seed) for seed in (0, 0, 1)]
    assert [d.tolist() for d in draws[0]] == [d.tolist() for d in draws[1]]
    assert [d.tolist() for d in draws[0]] != [d.tolist() for d in draws[2]]
    assert len(draws[0]) == 5
    assert all(d.shape == (1, 16) and d.dtype == torch.int64 for d in draws[0])
    assert len(sequences(calibration, tokenizer, samples=99, tokens=16, seed=0)) == 24


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("", "no calibration records"),
        ('{"id": "a", "text": "long enough"}\n{"id": "b"}\n', "record 2: record without text"),
        ('{"id": "a", "text": 3}\n', "without text"),
        ('{"text": "a"}\n', "two tokens"),
    ],
)
def test_bad_calibration_files_are_told_in_one_line(
    dense: Path, tmp_path: Path, content: str, what: str
) -> None:
    path = tmp_path / "calibration.jsonl"
    path.write_text(content)
    with pytest.raises(HoldfastError, match=what) as error:
        compress(dense, tmp_path / "out", {"prune": "wanda", "sparsity": 0.5}, path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


# ---- recipes


@pytest.mark.parametrize(
    ("recipe", "what"),
    [
        ({}, "--recipe, prune: missing; add it"),
        ({"prune": "wanda", "quantize": "rtn"}, "--recipe, sparsity: missing"),
        ({"prune": "random", "sparsity": 0.5}, "'random' is not known; choose from: magnitude"),
        ({"prune": "wanda", "sparsity": 1}, "1 is out of range"),
        ({"prune": "wanda", "sparsity": 0.5, "bits": 4}, "--recipe, bits: unknown key"),
        ({"quantize": "gptq", "bits": 4}, "group_size: gptq needs it"),
        ({"quantize": "gptq", "bits": True, "group_size": 32}, "True is not a whole number"),
        ({"quantize": "llm-int8", "bits": 8}, "bits: llm-int8 has none"),
        ({"prune": "magnitude", "sparsity": 0.5, "samples": 0}, "samples: 0 is out of range"),
    ],
)
def test_bad_recipes_are_told_in_one_line(recipe: dict[str, object], what: str) -> None:
    with pytest.raises(HoldfastError, match=what) as error:
        validated("compress", recipe)
    assert "\n" not in str(error.value)


def test_a_quantized_model_is_not_compressed_again(
    compressed: dict[str, Path], tmp_path: Path, calibration: Path
) -> None:
    with pytest.raises(HoldfastError, match="quantized already"):
        compress(compressed["rtn"], tmp_path / "out", RECIPES["magnitude"], calibration)


def test_backends_are_imported_only_when_used() -> None:
    lazy = "{'llmcompressor', 'bitsandbytes', 'compressed_tensors', 'peft'}"
    code = f"import sys, holdfast.compression, holdfast.sources; print({lazy} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
