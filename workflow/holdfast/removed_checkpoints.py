"""Checkpoints whose weights were removed (``keep_checkpoints: false``): what is kept of them, and how they come back.

The records stay, so that tables read them and nothing counts as undone. A stage that is given such a checkpoint has it
made again first, by the command that made it, and takes it only if every weight file has the checksum that it had.
"""

import fcntl
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from holdfast.checkout import ENVIRONMENTS
from holdfast.errors import HoldfastError
from holdfast.files import MARKER, read_json, write_json

KEPT = {MARKER, "provenance.json", "edit.json", "steer.json", "tuning.json", "config.json", "removed.json"}
REMOVED = ".removed"  # stands in a folder whose weights are gone, and is what its restorers lock
MAKERS = {"compress", "edit", "instruct", "steer", "recalibrate", "tune"}  # holdfast MAKER MODEL OUT …


def remove(folder: Path) -> None:
    """Remove a checkpoint's files but its records, and write ``removed.json``: ``{files: {name: bytes}, command}``.

    Nothing is removed, and ``files`` is empty, where the record does not say by which command it was made.
    """
    command = _command(read_json(folder / "provenance.json"), folder)
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name not in KEPT | {REMOVED}]
    sizes = {str(p.relative_to(folder)): p.stat().st_size for p in files} if command else {}
    if command:
        (folder / REMOVED).touch()  # first: from here on its users make it again
        for file in files:
            file.unlink()
    write_json(folder / "removed.json", {"files": sizes, "command": command})


def restore(folder: Path) -> None:
    """Make a checkpoint again whose weights were removed; of several that ask at once, one does it.

    Raises:
        HoldfastError: it cannot be made, or has other weights than those that were measured.
    """
    marker = folder / REMOVED
    try:
        stream = marker.open("r+")  # to be written to: NFS locks nothing that is not
    except (FileNotFoundError, NotADirectoryError):
        return
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        if marker.exists():
            _make(folder)
            (folder / "removed.json").unlink(missing_ok=True)
            marker.unlink()


def _make(folder: Path) -> None:
    before = read_json(folder / "provenance.json")
    command = _command(before, folder)
    if not command:
        what = "its weights were removed, and its record does not say how it was made from here"
        remedy = "start where the study was run; or remove the folder and run the workflow again"
        raise HoldfastError(what, str(folder), remedy)
    scratch = folder.with_name(f".{folder.name}.restored")
    shutil.rmtree(scratch, ignore_errors=True)
    program, stage, model, _, *options = command
    try:
        made = subprocess.run([*_program(program), stage, model, str(scratch), *options], check=False)
        if made.returncode:
            what = f"its weights were removed, and making it again failed (exit {made.returncode})"
            raise HoldfastError(what, str(folder), "mend what the lines above say, and run it again")
        if read_json(scratch / "provenance.json")["weights"] != before.get("weights"):
            what = "made again, it has other weights than what was measured (this machine rounds otherwise)"
            remedy = f"remove {folder / 'provenance.json'} to measure it anew, or keep_checkpoints: true"
            raise HoldfastError(what, str(folder), remedy)
        for file in [p for p in scratch.rglob("*") if p.is_file() and p.name not in KEPT]:
            target = folder / file.relative_to(scratch)
            target.parent.mkdir(exist_ok=True)
            file.replace(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _program(recorded: str) -> list[str]:
    """What made it: another environment's command, or the core's, which comes first on PATH in the others."""
    if "/" in recorded:
        return [recorded]
    if ".environments" in Path(sys.prefix).parts and (core := shutil.which("holdfast")):
        return [core]
    return [sys.executable, "-m", "holdfast"]


def _command(provenance: Any, folder: Path) -> Sequence[str] | None:
    """The command that wrote ``folder``, as its record has it; None of any other, which is never run."""
    command = provenance.get("command") if isinstance(provenance, dict) else None
    if not isinstance(command, list) or len(command) < 4 or not all(isinstance(a, str) for a in command):
        return None
    program, stage, _, out = command[:4]
    known = (program == "holdfast" or _of_environment(Path(program))) and stage in MAKERS
    return command if known and Path(out).resolve() == folder.resolve() else None


def _of_environment(program: Path) -> bool:
    """Whether it is ``.environments/NAME/bin/holdfast`` of this checkout: one from elsewhere may be any program."""
    if len(program.parts) < 4:
        return False
    *_, environment, folder, name = program.parts
    inside = program.parents[2].resolve() == ENVIRONMENTS.resolve()
    return inside and environment != ".." and (folder, name) == ("bin", "holdfast")
