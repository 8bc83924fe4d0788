"""One run of a study at a time, also where a killed or interrupted one left jobs in Slurm's queue.

A run holds a lock on ``results/STUDY/.lock`` that dies with its process, and writes into it who it is. The next run
reads there what the last one submitted, cancels what is left of that and waits until it is gone. A job that starts
after its run is over (submitted in the moment of the kill, or queued again) finds another name there and ends. So
there are never two writers, and running the same command again is always right.

Read by the Snakefile, and so by every cluster job: light imports only.
"""

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from holdfast.cluster.commands import slurm
from holdfast.errors import HoldfastError
from holdfast.files import told_in_one_line
from holdfast.records import Record

LOCK = ".lock"
RUN = "HOLDFAST_RUN"  # the run's name, in the environment of its jobs
GONE = 600  # seconds in which cancelled jobs are gone


class Run(Record):
    """Who writes into a study: the name of its Slurm jobs (None without Slurm), and its process."""

    slurm: str | None
    host: str
    pid: int


def claim(folder: Path, run: str | None, say: Callable[[str], None]) -> IO[str]:
    """The study's lock, held as long as the returned stream is open.

    ``run`` is the name of this run's Slurm jobs, None for a run without Slurm. Raises HoldfastError where another run
    holds the lock, where the file system has no locks, and where jobs of an earlier run cannot be ended.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise HoldfastError(
            f"cannot be written ({error.strerror})", str(folder), "run in a folder of your own"
        ) from None
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = recorded(folder)
        who = f" (process {holder.pid} on {holder.host})" if holder else ""
        raise HoldfastError(f"another run is using it{who}", str(folder), "wait for it") from None
    except OSError as error:
        raise HoldfastError(
            f"its file system has no locks ({error.strerror})",
            str(folder),
            "mount it with them, or work elsewhere",
        ) from None
    if (last := recorded(folder)) and last.slurm:
        end_jobs(last.slurm, folder, say)
    with told_in_one_line(folder / LOCK):
        stream.truncate(0)
        stream.write(Run(slurm=run, host=socket.gethostname(), pid=os.getpid()).model_dump_json())
        stream.flush()
        os.fsync(stream.fileno())
    return stream


def release(stream: IO[str], folder: Path, run: str | None) -> None:
    """After a run's last job.

    After Ctrl-C its jobs are being cancelled, and nothing has waited for that: as long as Slurm has one, or does not
    say, its name stays for the next run to ask.
    """
    with contextlib.suppress(HoldfastError):
        if not run or not queued(run, folder):
            stream.truncate(0)
    stream.close()


def recorded(folder: Path) -> Run | None:
    """What the last run wrote about itself; None where it ended in order, or was killed before it had written it."""
    with contextlib.suppress(OSError, ValueError):
        return Run.model_validate_json((folder / LOCK).read_text(encoding="utf-8"))
    return None


def refuse_latecomer(folder: Path) -> None:
    """For a cluster job, before it does anything. Raises HoldfastError when its run is over."""
    run, now = os.environ.get(RUN), recorded(folder)
    if run and run != (now and now.slurm):
        raise HoldfastError(f"the run {run} is over", str(folder), "nothing: a later run does its work")


def end_jobs(run: str, folder: Path, say: Callable[[str], None]) -> None:
    """Cancel a run's jobs and wait until they are gone. Raises HoldfastError where that fails."""
    deadline = time.monotonic() + GONE
    cancelled: set[str] = set()
    while jobs := queued(run, folder):
        if fresh := sorted(jobs - cancelled):
            say(
                f"{folder}: {len(fresh)} Slurm jobs that an earlier run left are cancelled: {' '.join(fresh)}"
            )
            _slurm(folder, "scancel", *fresh)
            cancelled.update(fresh)
        if time.monotonic() > deadline:
            raise HoldfastError(
                f"cancelled jobs are not gone after {GONE} s: {' '.join(sorted(jobs))}",
                str(folder),
                "ask the cluster's administrators to end them, then run the same command again",
            )
        time.sleep(1)


def queued(run: str, folder: Path) -> set[str]:
    """A run's jobs that wait, run or are being ended."""
    return set(_slurm(folder, "squeue", "--noheader", f"--name={run}", "--format=%A").split())


def _slurm(folder: Path, *command: str) -> str:
    try:
        return slurm(*command)
    except HoldfastError as error:
        raise HoldfastError(
            f"Slurm jobs of an earlier run may still write here, and {error.where} cannot say ({error.what})",
            str(folder),
            f"run it where Slurm answers, or, once they are surely over, remove {folder / LOCK}",
        ) from None
