"""Whole or not at all: files, folders, and what is never replaced."""

import os
import subprocess
import sys
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from holdfast.errors import HoldfastError
from holdfast.files import SCRATCH, apart, atomic_file, atomic_folder, on_scratch, read_json, read_jsonl


def fail_to_write(manager: AbstractContextManager[Path]) -> None:
    with manager as temporary:
        (temporary / "x" if temporary.is_dir() else temporary).write_text("half")
        raise RuntimeError


def test_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    for manager in (atomic_file(tmp_path / "a.txt"), atomic_folder(tmp_path / "b")):
        with pytest.raises(RuntimeError):
            fail_to_write(manager)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_folder_that_holdfast_wrote_is_replaced_and_no_other(tmp_path: Path) -> None:
    for text in ("one", "two"):
        with atomic_folder(tmp_path / "ours") as folder:
            (folder / "x").write_text(text)
    assert (tmp_path / "ours/x").read_text() == "two"
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/thesis.tex").write_text("years of work")
    with pytest.raises(HoldfastError, match="did not write"), atomic_folder(tmp_path / "theirs"):
        pass
    assert (tmp_path / "theirs/thesis.tex").read_text() == "years of work"


def test_output_is_never_its_own_input(tmp_path: Path) -> None:
    with pytest.raises(HoldfastError, match="its own input"):
        apart(tmp_path / "model", tmp_path / "model")
    with pytest.raises(HoldfastError, match="its own input"):
        apart(tmp_path, tmp_path / "model")
    apart(tmp_path / "out", tmp_path / "model")


def test_folder_of_a_killed_process_is_removed(tmp_path: Path) -> None:
    dead = tmp_path / ".out.999999999.tmp"
    elsewhere = tmp_path / f".out.{os.getpid()}.tmp"  # on another node, where it had this number
    for left in (dead, elsewhere):
        left.mkdir()
        (left / "left").touch()
    with atomic_folder(tmp_path / "out"):
        pass
    assert not dead.exists()
    assert not (tmp_path / "out/left").exists()


WRITES_AND_IS_KILLED = """
import os, sys
from pathlib import Path
from holdfast.files import atomic_folder, on_scratch
with atomic_folder(Path(sys.argv[1])) as folder, on_scratch(folder / "file") as path:
    path.write_bytes(bytes(1000))
    os.kill(os.getpid(), 9)
"""


def test_what_is_written_on_another_disk_arrives_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Path("/dev/shm")
    if not os.access(disk, os.W_OK) or disk.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system here")
    out = tmp_path / "out"
    with tempfile.TemporaryDirectory(dir=disk) as scratch:
        monkeypatch.setenv(SCRATCH, scratch)
        killed = subprocess.run([sys.executable, "-c", WRITES_AND_IS_KILLED, out], check=False)
        assert killed.returncode == -9
        assert not out.exists()
        assert os.listdir(scratch)
        with (
            pytest.raises(ZeroDivisionError),
            atomic_folder(out) as folder,
            on_scratch(folder / "file") as path,
        ):
            path.write_bytes(bytes(1 // 0))
        assert not os.listdir(scratch)  # nor what the killed process left
        with atomic_folder(out) as folder:
            with on_scratch(folder / "file") as path:
                assert path.parent.stat().st_dev == disk.stat().st_dev
                path.write_bytes(b"whole")
            assert (folder / "file").read_bytes() == b"whole"
        assert not os.listdir(scratch)
    assert os.listdir(tmp_path) == ["out"]
    with pytest.raises(HoldfastError, match="no folder to write into"), on_scratch(out / "file"):
        pass  # the disk is gone


def test_broken_json_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(HoldfastError, match=r"a\.jsonl:2"):
        read_jsonl(tmp_path / "a.jsonl")
    with pytest.raises(HoldfastError, match="no such file"):
        read_json(tmp_path / "none.json")
    for content, told in ((b"\xff\xfe", "not UTF-8 text"), (b"{", "not JSON")):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(HoldfastError, match=rf"a\.json: {told}"):
            read_json(tmp_path / "a.json")
    with pytest.raises(HoldfastError, match=r"cannot be read \(Is a directory\)"):
        read_json(tmp_path)
