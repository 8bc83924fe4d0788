"""The folder beside the output that holds finished steps, so that an interrupted repair goes on where it stopped."""

import contextlib
import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from holdfast.errors import HoldfastError
from holdfast.files import MARKER, apart, read_json, told_in_one_line, write_json

REPORT = "repair.json"  # in the output: the numbers; tells that a folder is a repair's
ASKED = "asked.json"
ORIGIN = "origin.json"  # how the compressed model was made


def refuse_foreign(out: Path, *inputs: Path) -> None:
    """HoldfastError unless ``out`` is free, empty, or an earlier repair's, and apart from the inputs."""
    apart(out, *inputs)
    if out.exists() and not out.is_dir():
        raise HoldfastError("is a file", str(out), "give a folder to write")
    if out.is_dir() and any(out.iterdir()) and not (out / REPORT).is_file():
        raise HoldfastError("is there and no repair's output", str(out), "give a new or empty folder")


@contextlib.contextmanager
def work_folder(out: Path, asked: dict[str, Any]) -> Iterator[tuple[Path, bool]]:
    """``OUT.work``, locked, and whether it holds steps of the same request; those of another are removed.

    Raises:
        HoldfastError: another repair is writing there, or it holds other files.
    """
    folder = out.with_name(f"{out.name}.work")
    if folder.exists() and (
        not folder.is_dir() or (any(folder.iterdir()) and not (folder / MARKER).exists())
    ):
        raise HoldfastError("holds files that Holdfast did not write", str(folder), "give another output")
    with told_in_one_line(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARKER).touch()
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise HoldfastError("another repair is using it", str(folder), "wait for it") from None
        same = (folder / ASKED).is_file() and read_json(folder / ASKED) == asked
        if not same:
            for left in folder.iterdir():
                if left.is_dir():
                    shutil.rmtree(left)
                elif left.name not in (MARKER, ".lock"):
                    left.unlink()
            write_json(folder / ASKED, asked)
        yield folder, same
