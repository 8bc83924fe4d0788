"""Asking Slurm, and what must be right before jobs go to it. Read by the Snakefile: light imports only."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from holdfast.errors import HoldfastError

COMMANDS = ("sbatch", "squeue", "scancel", "scontrol", "sinfo", "srun")
ANSWER = 60  # seconds in which Slurm answers
NO_ACCOUNTING = "accounting_storage/none"


def prepare(profile: Path) -> None:
    """Look for Slurm, and hide ``sacct`` where there is no accounting database behind it.

    Raises HoldfastError where commands are missing or the controller does not answer: the Slurm plugin would tell
    that as the failure of every job.
    """
    find_commands()
    if settings(slurm("scontrol", "show", "config")).get("AccountingStorageType") == NO_ACCOUNTING:
        os.environ["PATH"] = os.pathsep.join([str(profile / "without-accounting"), os.environ["PATH"]])


def find_commands() -> None:
    """Raises HoldfastError where Slurm's commands are not on PATH."""
    if missing := [name for name in COMMANDS if shutil.which(name) is None]:
        raise HoldfastError(
            f"not found: {', '.join(missing)}",
            "Slurm",
            "run on a login node, or load the module that has Slurm",
        )


def slurm(*command: str, timeout: float = ANSWER) -> str:
    """What a Slurm command prints. Raises HoldfastError where it is missing, fails or does not answer."""
    try:
        # What administrators write (reasons, comments) may be in any encoding.
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", check=True, timeout=timeout
        )
    except FileNotFoundError:
        what = "not found"
    except OSError as error:
        what = f"cannot be run ({error.strerror})"
    except subprocess.TimeoutExpired:
        what = f"no answer in {timeout:.0f} s"
    except subprocess.CalledProcessError as error:
        said = [line for line in error.stderr.strip().splitlines() if "Exited with exit code" not in line]
        what = said[-1] if said else f"exit code {error.returncode}"
    else:
        return done.stdout
    raise HoldfastError(what, command[0], "try it by hand, or ask the cluster's administrators")


def settings(text: str) -> dict[str, str]:
    """``scontrol show config``, one ``Key = value`` a line."""
    lines = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, _, value in lines}


def records(text: str) -> list[dict[str, str]]:
    """``scontrol show … --oneliner``: ``Key=value`` after ``Key=value``, where values may hold blanks."""
    return [
        dict(re.findall(r"(\w+)=(.*?)(?=\s+\w+=|\s*$)", line)) for line in text.splitlines() if "=" in line
    ]
