"""What is brought from the Hugging Face Hub before a study runs: whole, compared with its checksums, and recorded.

The workflow's jobs run with the hub switched off and find all this in the hub client's own cache (``HF_HOME``), which
must lie where they see it. A token is taken from the environment (``HF_TOKEN``) by that client alone, and stands in no
record.
"""

import hashlib
import json
import os
import re
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
    folder = snapshot(recipe["source"])
    files = {
        str(file.relative_to(folder)): verified(file, recipe["source"])
        for file in sorted(p for p in folder.rglob("*") if p.is_file())
    }
    recorder.write(out, revision=folder.name, files=files)


def verified(file: Path, source: str) -> dict[str, Any]:
    """``{bytes, sha256}`` of a file of a snapshot.

    The client names the content by its ETag, which is the SHA-256 of a large file and the Git blob's SHA-1 of a small
    one, but compares sizes alone.

    Raises HoldfastError, having removed the file, when it is not what its name says.
    """
    blob = file.resolve()
    found = sha256(blob)
    wrong = blob.name != found if re.fullmatch("[0-9a-f]{64}", blob.name) else False
    if re.fullmatch("[0-9a-f]{40}", blob.name):
        wrong = git_blob(blob) != blob.name
    if wrong:
        file.unlink()
        blob.unlink(missing_ok=True)
        raise HoldfastError(f"{file.name} has another checksum than the hub says", source, "run it again")
    return {"bytes": blob.stat().st_size, "sha256": found}


def git_blob(path: Path) -> str:
    """Git's name of a file's content."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


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
