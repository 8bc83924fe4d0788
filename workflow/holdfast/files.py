"""Reading and writing files: whole or not at all."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from holdfast.errors import HoldfastError

# What a user can do about errors of the file system; all others are faults of the program.
REMEDIES = {
    errno.ENOSPC: "free space there, or write elsewhere, and run it again",
    errno.EDQUOT: "raise the quota or free space there, and run it again",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f), and run it again",
    errno.EROFS: "write elsewhere",
    errno.ENOTDIR: "write elsewhere",
    errno.EACCES: "get permission to write there, or write elsewhere",
}
SCRATCH = "HOLDFAST_SCRATCH"  # names the node's own disk in Slurm jobs, where the site file does
MARKER = ".holdfast"  # stands in every folder written here, so that no other is ever replaced


@contextlib.contextmanager
def told_in_one_line(path: Path) -> Iterator[None]:
    """Errors of the file system while ``path`` is written (no space, no permission) as a HoldfastError.

    safetensors has its own exception, whose text ends with the system's "(os error NUMBER)".
    """
    try:
        yield
    except HoldfastError:
        raise
    except Exception as error:
        told = re.search(r"\(os error (\d+)\)", str(error))
        number = error.errno if isinstance(error, OSError) else int(told[1]) if told else None
        if number not in REMEDIES:
            raise
        where = getattr(error, "filename", None) or path
        raise HoldfastError(os.strerror(number), str(where), REMEDIES[number]) from error


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it into place only if the block succeeds.

    Raises HoldfastError as :func:`refuse_folder`.
    """
    refuse_folder(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    _make_parent(path)
    with told_in_one_line(path):
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new temporary folder beside ``path``; it replaces ``path`` only if the block succeeds.

    Raises HoldfastError rather than replace a folder that was not written here.
    """
    if path.exists() and not path.is_dir():
        raise HoldfastError("is a file", str(path), "give a folder to write")
    if path.is_dir() and any(path.iterdir()) and not (path / MARKER).exists():
        raise HoldfastError(
            "holds files that Holdfast did not write", str(path), "give a new or empty folder"
        )
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    _make_parent(path)
    with told_in_one_line(path):
        remove_abandoned(path)
        # Of a process of this number on another node, or in a container that began again.
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir()
            (temporary / MARKER).touch()
            yield temporary
            _readable(temporary)
            if path.exists():
                shutil.rmtree(path)
            temporary.replace(path)
        except HoldfastError as error:  # by the time that it is read, the temporary name is gone
            where = error.where.replace(str(temporary), str(path))
            raise HoldfastError(error.what, where, error.remedy) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def on_scratch(path: Path) -> Iterator[Path]:
    """Yield where to write a file of an :func:`atomic_folder` that is written in pieces here and there: on the node's
    own disk, where one is named, from where it comes as a whole if the block succeeds; else ``path`` itself.

    Raises HoldfastError when the node's disk cannot be written.
    """
    scratch = os.environ.get(SCRATCH)
    if not scratch:
        yield path
        return
    if not os.access(scratch, os.W_OK):
        raise HoldfastError("no folder to write into", scratch, "correct scratch in the site file")
    name = f"holdfast-{os.uname().nodename}"  # processes are looked for on their own machine only
    remove_abandoned(Path(scratch, name))
    prefix, suffix = f".{name}.", f".{os.getpid()}.tmp"
    with told_in_one_line(path), tempfile.TemporaryDirectory(suffix, prefix, scratch) as folder:
        temporary = Path(folder, path.name)
        yield temporary
        shutil.move(temporary, path, copy_function=shutil.copyfile)


def _readable(folder: Path) -> None:
    """New files as the umask has them: safetensors makes its own for their owner alone, whoever is to serve them.

    Links to other folders' files stay as they are.
    """
    mask = os.umask(0)
    os.umask(mask)
    for file in folder.rglob("*.safetensors"):
        if file.stat().st_nlink == 1:
            file.chmod(0o666 & ~mask)


def refuse_folder(path: Path) -> None:
    """Raises HoldfastError when a folder stands where a file is to be written."""
    if path.is_dir():
        raise HoldfastError("is a folder", str(path), "give a file to write")


def _make_parent(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"its folder cannot be made ({error.strerror})"
        raise HoldfastError(what, str(path), "write elsewhere") from error


def remove_abandoned(path: Path) -> None:
    """Remove temporary folders for ``path`` whose process is gone (killed): they may be whole checkpoints."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        number = left.name.removesuffix(".tmp").rpartition(".")[2]
        if left.is_dir() and number.isdigit() and not Path("/proc", number).exists():
            shutil.rmtree(left, ignore_errors=True)


def apart(out: Path, *inputs: Path) -> None:
    """Raises HoldfastError when ``out`` is one of the inputs, holds one (writing it would destroy that) or lies in one
    (what is read would no longer be what was given).
    """
    for given in inputs:
        if out.resolve() == given.resolve() or out.resolve() in given.resolve().parents:
            raise HoldfastError(
                f"would replace its own input {given}", str(out), "give another output folder"
            )
        if given.resolve() in out.resolve().parents:
            raise HoldfastError(f"lies in its own input {given}", str(out), "give another output folder")


def write_text(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))


def read_json(path: Path) -> Any:
    """Raises HoldfastError when the file is missing, cannot be read or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise HoldfastError("no such file", str(path), "run the stage that writes it first") from None
    except OSError as error:
        raise HoldfastError(f"cannot be read ({error.strerror})", str(path), "give a file to read") from None
    except UnicodeDecodeError:
        raise HoldfastError("not UTF-8 text", str(path), "delete it and run its stage again") from None
    except json.JSONDecodeError as error:
        raise HoldfastError(f"not JSON ({error})", str(path), "delete it and run its stage again") from None


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Raises HoldfastError naming the line that is missing a closing brace or is not an object."""
    if not path.is_file():
        raise HoldfastError("no such file", str(path), "give an existing JSONL file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise HoldfastError("not UTF-8 text", str(path), "save it as UTF-8") from None
    records = []
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines(): texts may hold U+2028
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise HoldfastError(
                f"not JSON ({error})", f"{path}:{number}", "mend or delete the line"
            ) from None
        if not isinstance(record, dict):
            raise HoldfastError("not a JSON object", f"{path}:{number}", "write one {...} record a line")
        records.append(record)
    return records


def sha256(path: Path) -> str:
    """Checksum of a file, or of a folder's files and their relative names."""
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(str(file.relative_to(path)).encode())
            digest.update(bytes.fromhex(sha256(file)))
        return digest.hexdigest()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
