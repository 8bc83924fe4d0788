"""One run of a study at a time; what Slurm says is played by commands on PATH (a real one: tests/slurm)."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from holdfast.cluster.claim import RUN, claim, recorded, refuse_latecomer, release
from holdfast.errors import HoldfastError

HOLD = """
import sys, time
from pathlib import Path
from holdfast.cluster.claim import claim
claim_held = claim(Path(sys.argv[1]), sys.argv[2], print)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process with a claim on the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "study"), "holdfast_1"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def jobs_of(folder: Path) -> str | None:
    """The name of the Slurm jobs of the run that wrote its name there."""
    run = recorded(folder)
    assert run
    return run.slurm


def commands(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    folder.mkdir()
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_a_live_run_is_left_alone(other: subprocess.Popen[str], tmp_path: Path) -> None:
    with pytest.raises(
        HoldfastError, match=rf"another run is using it \(process {other.pid} on .*wait for it"
    ):
        claim(tmp_path / "study", None, print)
    assert jobs_of(tmp_path / "study") == "holdfast_1"


def test_jobs_of_a_killed_run_are_cancelled_and_waited_for(
    other: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other.kill()
    other.wait()
    queue = tmp_path / "queue"
    queue.write_text("11\n12\n")
    # A cancelled job is still there when it is asked for the first time.
    commands(
        tmp_path / "bin",
        monkeypatch,
        squeue=f'[ "$2" = --name=holdfast_1 ] || exit 1; /bin/cat {queue}; [ ! -e {queue}.cancelled ] || : > {queue}',
        scancel=f'echo "$@" >> {queue}.cancelled',
    )
    said: list[str] = []
    held = claim(tmp_path / "study", "holdfast_2", said.append)
    assert (tmp_path / "queue.cancelled").read_text() == "11 12\n"
    assert said == [f"{tmp_path}/study: 2 Slurm jobs that an earlier run left are cancelled: 11 12"]
    assert jobs_of(tmp_path / "study") == "holdfast_2"
    held.close()


def test_nothing_is_run_where_slurm_does_not_say_what_is_left(
    other: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other.kill()
    other.wait()
    commands(tmp_path / "bin", monkeypatch, squeue="echo 'Unable to contact slurm controller' >&2; exit 1")
    squeue = tmp_path / "bin/squeue"
    changes = {
        "Unable to contact slurm controller": lambda: squeue.chmod(0o644),
        "cannot be run .Permission denied": squeue.unlink,
        "not found": lambda: None,
    }
    for what, change in changes.items():
        with pytest.raises(HoldfastError, match=f"squeue cannot say .{what}"):
            claim(tmp_path / "study", None, print)
        change()
    assert jobs_of(tmp_path / "study") == "holdfast_1"


@pytest.mark.parametrize("left", [b"", b'{"slurm": "hold', b"[]", b'{"slurm": 5}', b"\xff\xfe"])
def test_a_name_that_is_not_whole_is_of_a_run_that_submitted_nothing(tmp_path: Path, left: bytes) -> None:
    """It is written before the first job is."""
    (tmp_path / ".lock").write_bytes(left)
    held = claim(tmp_path, "holdfast_2", print)
    with pytest.raises(HoldfastError, match=r"another run is using it \(process "):
        claim(tmp_path, "holdfast_3", print)
    held.close()
    assert jobs_of(tmp_path) == "holdfast_2"


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file")
    with pytest.raises(
        HoldfastError, match=r"cannot be written \(Not a directory\); run in a folder of your own"
    ):
        claim(tmp_path / "results/study", None, print)


def test_a_run_that_ended_leaves_nothing_to_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = tmp_path / "study"
    commands(tmp_path / "bin", monkeypatch, squeue='[ "$2" = --name=holdfast_1 ]')
    release(claim(study, "holdfast_1", print), study, "holdfast_1")
    assert recorded(study) is None
    (tmp_path / "bin/squeue").unlink()
    release(claim(study, None, print), study, None)
    claim(study, None, print).close()


@pytest.mark.parametrize("squeue", ["echo 11", "exit 1"])
def test_a_run_whose_jobs_may_still_be_there_leaves_its_name(
    squeue: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands(tmp_path / "bin", monkeypatch, squeue=squeue)
    release(claim(tmp_path / "study", "holdfast_1", print), tmp_path / "study", "holdfast_1")
    assert jobs_of(tmp_path / "study") == "holdfast_1"


def test_a_job_of_an_earlier_run_ends_before_it_does_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = claim(tmp_path / "study", "holdfast_2", print)
    refuse_latecomer(tmp_path / "study")
    monkeypatch.setenv(RUN, "holdfast_2")
    refuse_latecomer(tmp_path / "study")
    monkeypatch.setenv(RUN, "holdfast_1")
    with pytest.raises(HoldfastError, match="the run holdfast_1 is over"):
        refuse_latecomer(tmp_path / "study")
    held.close()
