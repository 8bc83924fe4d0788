"""What is brought from the Hugging Face Hub before a study runs: whole, compared with its checksums, and recorded.

The workflow's jobs run with the hub switched off and find all this in the hub client's own cache (``HF_HOME``), which
must lie where they see it. A token is taken from the environment (``HF_TOKEN``) by that client alone, and stands in no
record.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast.errors import HoldfastError, first_line
from holdfast.files import sha256
from holdfast.provenance import Recorder

MODEL_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.py"]
SWITCHES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
USERS = (
    "HOLDFAST_OFFLINE"  # what the user's environment said of them before the workflow switched the hub off
)


def switch_back() -> None:
    """Give a command that downloads the user's own switches; to be called before the hub's client is imported."""
    if (said := os.environ.get(USERS)) is not None:
        os.environ.update(dict.fromkeys(SWITCHES, said))


def snapshot(source: str) -> Path:
    """The folder of a ``hub:ORG/NAME@REVISION`` model, whose own name is the commit; downloaded unless it is there.

    Raises:
        HoldfastError: it cannot be reached, or was never downloaded and the hub is switched off.
    """
    from huggingface_hub import constants, snapshot_download

    name, _, revision = source.removeprefix("hub:").partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=MODEL_FILES))
    except Exception as error:  # the hub client raises its own, httpx's and the file system's errors
        if constants.HF_HUB_OFFLINE:
            raise not_downloaded(source, {"source": source}) from error
        what = f"cannot be fetched ({type(error).__name__}: {first_line(error)})"
        remedy = "check name, revision, licence acceptance (HF_TOKEN) and network, or give path:FOLDER"
        raise HoldfastError(what, source, remedy) from error


def not_downloaded(what: str, recipe: Mapping[str, Any]) -> HoldfastError:
    """The error of a job that needs something from the hub while that is switched off."""
    return HoldfastError(
        "not downloaded, and the hub is switched off (HF_HUB_OFFLINE)",
        what,
        f"bring it where there is a network: holdfast download RECORD.json --recipe '{json.dumps(recipe)}'",
    )


def download(recipe: Mapping[str, Any], out: Path) -> None:
    """Bring a model, or the data of zero-shot tasks, into the hub client's cache, and write what it is into ``out``.

    Files that are there already stay; a connection that breaks is taken up again where it broke.

    Args:
        recipe: ``source`` (``hub:ORG/NAME@REVISION``) or ``tasks`` (names that the harness knows).

    Raises:
        HoldfastError: as :func:`snapshot`, or a file has another checksum than the hub says; it is removed.
    """
    recorder = Recorder("download", dict(recipe))
    if recipe.get("tasks"):
        recorder.write(out, tasks=download_tasks(recipe["tasks"]))
        return
    source = recipe["source"]
    folder = snapshot(source)
    brought = sorted(p for p in folder.rglob("*") if p.is_file())
    names = {file: file.readlink().name for file in brought if file.is_symlink()}
    if len(names) < len(brought):
        told = etags(source, folder.name)
        names = {file: told.get(file.relative_to(folder).as_posix(), "") for file in brought}
    files = {str(file.relative_to(folder)): verified(file, etag, source) for file, etag in names.items()}
    recorder.write(out, revision=folder.name, files=files)


def etags(source: str, commit: str) -> dict[str, str]:
    """What the hub says each file is: the SHA-256 of a large one, the Git blob's SHA-1 of a small one.

    The client names the content of its cache so as well, where the file system has symbolic links.

    Raises:
        HoldfastError: the hub does not say.
    """
    from huggingface_hub import HfApi

    name = source.removeprefix("hub:").partition("@")[0]
    try:
        files = HfApi().model_info(name, revision=commit, files_metadata=True).siblings or []
    except Exception as error:  # as in snapshot()
        what = f"its checksums cannot be asked of the hub ({type(error).__name__}: {first_line(error)})"
        remedy = "check the network, or keep HF_HOME where there are symbolic links"
        raise HoldfastError(what, source, remedy) from error
    return {file.rfilename: file.lfs.sha256 if file.lfs else file.blob_id or "" for file in files}


def verified(file: Path, etag: str, source: str) -> dict[str, Any]:
    """``{bytes, sha256}`` of a file of a snapshot; the client itself compares sizes alone.

    Raises HoldfastError, having removed the file, when it is not what the hub says.
    """
    content = file.resolve()
    found = sha256(content)
    # Weights are read once: their ETag is a SHA-256, and only small files' are Git's.
    if etag != (found if len(etag) == len(found) else git_blob(content)):
        # A first link names the content by its ETag; it may lead on, into a store that several caches share.
        link = [file.parent / file.readlink()] if file.is_symlink() else []
        for path in (content, *link, file):
            path.unlink(missing_ok=True)
        raise HoldfastError(f"{file.name} has another checksum than the hub says", source, "run it again")
    return {"bytes": content.stat().st_size, "sha256": found}


def git_blob(path: Path) -> str:
    """Git's name of a file's content."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def download_tasks(names: Sequence[str]) -> dict[str, Any]:
    """Bring the data of the harness's built-in tasks into the cache of ``datasets``.

    Returns ``{task: {dataset, files, splits}}``.

    ``files``: the address of every downloaded file, with its commit. ``splits``: rows, and checksums of the files that
    ``datasets`` made of them. The harness names no revision: two records tell whether two sites measured the same.
    """
    from lm_eval.tasks import TaskManager, get_task_dict

    try:
        found = get_task_dict(list(names), TaskManager())
    except Exception as error:  # the harness's, datasets' and the hub client's own
        what = f"cannot be fetched ({type(error).__name__}: {first_line(error)})"
        remedy = "check the names with `lm-eval ls tasks`, HF_TOKEN and network"
        raise HoldfastError(what, f"zero-shot tasks {', '.join(names)}", remedy) from error
    return {
        name: {
            "dataset": [task.DATASET_PATH, task.DATASET_NAME],
            "files": sorted(
                {url for split in task.dataset.values() for url in split.info.download_checksums or {}}
            ),
            "splits": {
                split: {
                    "rows": rows.num_rows,
                    "sha256": [sha256(Path(f["filename"])) for f in rows.cache_files],
                }
                for split, rows in task.dataset.items()
            },
        }
        for name, task in found.items()
    }
