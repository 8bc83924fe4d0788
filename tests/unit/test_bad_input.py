"""Checkpoints and disks that are not what they should be: one line, exit code 2, and nothing left behind."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from holdfast.files import sha256
from safetensors.torch import load_file, save_file
from tiny import TEXTS, tiny_llama, tiny_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

WANDA = {"prune": "wanda", "sparsity": 0.5, "samples": 2, "tokens": 16}


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "dense", max_shard_size="300KB")


@pytest.fixture
def broken(dense: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dense, tmp_path / "broken"))


@pytest.fixture
def calibration(tmp_path: Path) -> Path:
    path = tmp_path / "calibration.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte, of which the model fills more."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a small file system can only be mounted by root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def compress(model: Path, out: Path, recipe: dict[str, object], calibration: Path) -> str:
    """The one line that the command ends with."""
    command = [sys.executable, "-m", "holdfast", "compress", str(model), str(out)]
    command += ["--recipe", json.dumps(recipe), "--calibration", str(calibration)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 2, run.stderr
    assert "Traceback" not in run.stderr
    told = [line for line in run.stderr.splitlines() if line.startswith("holdfast: ")]
    assert len(told) == 1, run.stderr
    assert run.stderr.splitlines()[-1] == told[0]
    assert not out.exists()
    assert not [p for p in out.parent.iterdir() if p.name.startswith(f".{out.name}")]
    return told[0]


def test_a_truncated_shard_is_named(broken: Path, tmp_path: Path, calibration: Path) -> None:
    shard = sorted(broken.glob("*.safetensors"))[1]
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-1000])
    for recipe in ({"prune": "magnitude", "sparsity": 0.5}, {"quantize": "rtn", "bits": 4, "group_size": 32}):
        told = compress(broken, tmp_path / "out", recipe, calibration)
        assert shard.name in told
        assert f"it has {size - 1000} bytes where its header says {size}" in told


@pytest.mark.parametrize(
    "recipe",
    [
        {"prune": "magnitude", "sparsity": 0.5},
        WANDA,
        {"quantize": "rtn", "bits": 4, "group_size": 32},
        {"quantize": "gptq", "bits": 4, "group_size": 32, "samples": 2, "tokens": 16},
        {"quantize": "llm-int8"},
    ],
    ids=lambda recipe: recipe.get("prune") or recipe["quantize"],
)
def test_a_checkpoint_with_nan_is_refused_by_every_method(
    broken: Path, tmp_path: Path, calibration: Path, recipe: dict[str, object]
) -> None:
    for shard in broken.glob("*.safetensors"):
        tensors = load_file(shard)
        if weight := next((n for n in tensors if n.endswith("up_proj.weight")), None):
            tensors[weight][3, 5] = torch.nan
            save_file(tensors, shard, metadata={"format": "pt"})
            break
    told = compress(broken, tmp_path / "out", recipe, calibration)
    assert str(weight) in told
    assert "NaN" in told


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "[1]"),
        ("model.safetensors.index.json", "[]"),
        ("model.safetensors.index.json", '{"weight_map": 5}'),
    ],
)
def test_a_damaged_description_is_named(
    broken: Path, tmp_path: Path, calibration: Path, file: str, content: str
) -> None:
    (broken / file).write_text(content)
    told = compress(broken, tmp_path / "out", {"prune": "magnitude", "sparsity": 0.5}, calibration)
    assert file in told


def test_calibration_that_is_not_text(dense: Path, tmp_path: Path, calibration: Path) -> None:
    calibration.write_bytes(b'{"text": "\xff\xfe"}\n')
    assert "not UTF-8 text" in compress(dense, tmp_path / "out", WANDA, calibration)


def test_a_model_without_the_named_matrices(tmp_path: Path, calibration: Path) -> None:
    # GPT-2 has transposed Conv1D modules where others have linears.
    model = GPT2LMHeadModel(GPT2Config(vocab_size=500, n_embd=32, n_layer=2, n_head=2))
    model.save_pretrained(tmp_path / "gpt2")
    tiny_tokenizer().save_pretrained(tmp_path / "gpt2")
    told = compress(tmp_path / "gpt2", tmp_path / "out", {"prune": "magnitude", "sparsity": 0.5}, calibration)
    assert "no torch.nn.Linear in the block" in told


def test_a_pattern_that_does_not_divide_a_width(tmp_path: Path, calibration: Path) -> None:
    config = LlamaConfig(
        vocab_size=500, hidden_size=36, intermediate_size=50, num_hidden_layers=2, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "odd")
    tiny_tokenizer().save_pretrained(tmp_path / "odd")
    for method in ("magnitude", "wanda", "sparsegpt"):
        recipe = {"prune": method, "pattern": "2:4", "samples": 2, "tokens": 16}
        told = compress(tmp_path / "odd", tmp_path / "out", recipe, calibration)
        assert "model.layers.0.mlp.down_proj" in told
        assert "50" in told


@pytest.mark.parametrize(
    "recipe",
    [{"prune": "magnitude", "sparsity": 0.5}, {"quantize": "rtn", "bits": 8, "group_size": 32}, {"quantize": "nf4"}],
    ids=["dense tensors", "compressed-tensors", "bitsandbytes"],
)  # fmt: skip
def test_a_disk_that_fills_up(
    tmp_path: Path, small_disk: Path, calibration: Path, recipe: dict[str, object]
) -> None:
    model = tiny_llama(tmp_path / "large", hidden=256, layers=8)
    before = {f.name: sha256(f) for f in model.iterdir()}
    told = compress(model, small_disk / "out", recipe, calibration)
    assert "No space left on device" in told
    assert list(small_disk.iterdir()) == []
    assert {f.name: sha256(f) for f in model.iterdir()} == before
