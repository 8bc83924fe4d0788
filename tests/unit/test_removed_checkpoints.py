"""Checkpoints without their weights: what stays, and what a stage that is given one does."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from holdfast.checkout import ENVIRONMENTS
from holdfast.errors import HoldfastError
from holdfast.files import read_json, write_json
from holdfast.removed_checkpoints import remove, restore
from tiny import tiny_llama

RECIPES = {"compress": {"prune": "magnitude", "sparsity": 0.5}, "instruct": {"system_prompt": "Be safe."}}
PROMPT = json.dumps({"id": "p", "text": "hello"}) + "\n"


def holdfast(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "holdfast", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


def made(folder: Path, stage: str, source: str, out: str) -> Path:
    done = holdfast(folder, stage, source, out, "--recipe", json.dumps(RECIPES[stage]))
    assert done.returncode == 0, done.stderr
    return folder / out


def contents(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob("*")
        if p.is_file()
    }


@pytest.fixture
def pruned(tmp_path: Path) -> Path:
    tiny_llama(tmp_path / "dense")
    return made(tmp_path, "compress", "dense", "pruned/checkpoint")


def test_the_records_stay_and_a_stage_makes_the_weights_again(tmp_path: Path, pruned: Path) -> None:
    edited = made(tmp_path, "instruct", "pruned/checkpoint", "pruned/prompted/checkpoint")
    before = {folder: contents(folder) for folder in (pruned, edited)}
    old = {folder: (folder / "provenance.json").stat().st_mtime_ns for folder in before}
    for folder in ("pruned/prompted/checkpoint", "pruned/checkpoint"):
        assert holdfast(tmp_path, "discard", folder).returncode == 0
    record = read_json(pruned / "removed.json")
    assert record["files"]["model.safetensors"] == (tmp_path / "dense/model.safetensors").stat().st_size
    kept = {".holdfast", ".removed", "config.json", "provenance.json", "removed.json"}
    assert set(contents(pruned)) == set(contents(edited)) == kept

    (tmp_path / "attack.jsonl").write_text(PROMPT)
    recipe = json.dumps({"max_new_tokens": 2})
    done = holdfast(
        *(tmp_path, "generate", "pruned/prompted/checkpoint", "answers"),
        *("--prompts", "attack.jsonl", "--recipe", recipe),
    )
    assert done.returncode == 0, done.stderr
    # The edited one is made from the compressed one, which is made again too; both are as they were.
    assert {folder: contents(folder) for folder in before} == before
    assert {folder: (folder / "provenance.json").stat().st_mtime_ns for folder in before} == old
    assert sorted(p.name for p in (tmp_path / "pruned").iterdir()) == ["checkpoint", "prompted"]


def test_removing_twice_removes_once(tmp_path: Path, pruned: Path) -> None:
    before = contents(pruned)
    remove_from(tmp_path, pruned)
    (pruned / "removed.json").unlink()  # as Snakemake does before it runs a rule again
    remove_from(tmp_path, pruned)
    restore_from(tmp_path, pruned)
    assert contents(pruned) == before


def remove_from(folder: Path, checkpoint: Path) -> None:
    assert holdfast(folder, "discard", str(checkpoint.relative_to(folder))).returncode == 0


def restore_from(folder: Path, checkpoint: Path) -> None:
    here = Path.cwd()
    os.chdir(folder)
    try:
        restore(checkpoint.relative_to(folder))
    finally:
        os.chdir(here)


def test_other_weights_than_those_measured_are_refused(tmp_path: Path, pruned: Path) -> None:
    remove_from(tmp_path, pruned)
    record = read_json(pruned / "provenance.json")
    record["weights"]["model.safetensors"] = "0" * 64
    write_json(pruned / "provenance.json", record)
    with pytest.raises(HoldfastError, match="other weights than what was measured"):
        restore_from(tmp_path, pruned)
    assert not (pruned / "model.safetensors").exists()
    assert (pruned / ".removed").exists()
    assert not list(pruned.parent.glob(".checkpoint*"))


def test_elsewhere_it_says_where_to_start(
    tmp_path: Path, pruned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command has the paths of the folder that it was run in."""
    remove_from(tmp_path, pruned)
    monkeypatch.chdir(pruned)
    with pytest.raises(HoldfastError, match="made from here; start where the study was run"):
        restore(Path())
    assert (pruned / ".removed").exists()


def test_a_failure_to_make_it_is_told(tmp_path: Path, pruned: Path) -> None:
    remove_from(tmp_path, pruned)
    (tmp_path / "dense/model.safetensors").unlink()
    done = holdfast(
        tmp_path, "instruct", "pruned/checkpoint", "out", "--recipe", json.dumps(RECIPES["instruct"])
    )
    assert done.returncode == 2
    assert "no safetensors weights" in done.stderr
    assert "making it again failed (exit 2)" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        None,
        ["holdfast", "compress", "dense"],
        ["holdfast", "compress", "dense", "elsewhere"],
        ["/bin/sh", "compress", "dense", "checkpoint"],
        ["holdfast", "repair", "dense", "checkpoint"],
        # Not of this checkout: a checkpoint from elsewhere could bring its own.
        ["checkpoint/.environments/x/bin/holdfast", "compress", "dense", "checkpoint"],
        [".environments/x/bin/holdfast", "compress", "dense", "checkpoint"],
        [f"{ENVIRONMENTS}/../bin/holdfast", "compress", "dense", "checkpoint"],
        [f"{ENVIRONMENTS}/gptqmodel/bin/python", "compress", "dense", "checkpoint"],
        ["compress", 5, "dense", "checkpoint"],
    ],
)
def test_nothing_is_removed_whose_making_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str] | None
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("checkpoint").mkdir()
    Path("checkpoint/model.safetensors").write_text("weights")
    write_json(Path("checkpoint/provenance.json"), {"command": command})
    remove(Path("checkpoint"))
    assert Path("checkpoint/model.safetensors").exists()
    assert read_json(Path("checkpoint/removed.json")) == {"files": {}, "command": None}
    restore(Path("checkpoint"))


def test_a_command_of_an_environment_of_this_checkout_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("checkpoint").mkdir()
    Path("checkpoint/model.safetensors").write_text("weights")
    program = os.path.relpath(ENVIRONMENTS / "gptqmodel/bin/holdfast")
    command = [program, "compress", "dense", "checkpoint"]
    write_json(Path("checkpoint/provenance.json"), {"command": command})
    remove(Path("checkpoint"))
    assert not Path("checkpoint/model.safetensors").exists()
    assert read_json(Path("checkpoint/removed.json")) == {
        "files": {"model.safetensors": 7},
        "command": command,
    }


@pytest.mark.parametrize("record", ["[]", '"text"', "{}"])
def test_a_record_that_is_none_makes_nothing(tmp_path: Path, record: str) -> None:
    (tmp_path / "provenance.json").write_text(record)
    (tmp_path / ".removed").touch()
    with pytest.raises(HoldfastError, match="its record does not say how it was made"):
        restore(tmp_path)


def test_several_that_ask_at_once_make_it_once(tmp_path: Path, pruned: Path) -> None:
    before = contents(pruned)
    remove_from(tmp_path, pruned)
    code = (
        "import sys; from pathlib import Path; from holdfast.removed_checkpoints import restore;"
        " restore(Path('pruned/checkpoint')); print(Path('pruned/checkpoint/model.safetensors').exists())"
    )
    asking = [
        subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate()[0].split()[-1] for process in asking] == ["True", "True"]
    assert contents(pruned) == before
