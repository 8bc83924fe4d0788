"""Where a model's config.json is read from before its weights are there. Light imports: every cluster job does this.

In this order: what the study says (billion_parameters), the checkpoint fetched by an earlier run, a folder or the
embedded package, the results folder (``.configs/``, where one read from the Hub is kept), the Hugging Face cache, and
on the submit host the Hub: this one file, never the weights.
"""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from holdfast.cluster.sizes import Size, guessed, size_of
from holdfast.config import DENSE, Study
from holdfast.config.recipes import download_name
from holdfast.embedded.conversion import CONFIG
from holdfast.errors import HoldfastError, first_line
from holdfast.files import read_json, write_json
from holdfast.hub import SWITCHES, USERS, switch_back

KEPT = ".configs"
CONNECTING = 3  # seconds to find out that there is no network; the hub's client would try for half a minute
REMEDY = "state billion_parameters of the model in the study, or fetch it first"


class Sizes:
    """Sizes of a study's models and judges, each looked for once.

    Args:
        results: the study's results folder.
        reach: whether the Hub may be asked: only where people wait for it, and never in a cluster's jobs.
        say: told in one line each what could not be found out.
    """

    def __init__(self, study: Study, results: Path, reach: bool, say: Callable[[str], None]) -> None:
        self.study, self.results, self.reach, self.say = study, results, reach, say
        self._found: dict[tuple[str, str], Size | None] = {}

    def of(self, kind: str, name: str) -> Size | None:
        """None where nothing tells it yet. ``kind``: models or judges."""
        if (kind, name) not in self._found:
            try:
                self._found[kind, name] = self._size(kind, name)
            except HoldfastError as error:
                self.say(f"size of {name} not known before it is fetched: {error}")
                self._found[kind, name] = None
        return self._found[kind, name]

    def _size(self, kind: str, name: str) -> Size | None:
        of_model = kind == "models"
        section: Any = (self.study.models if of_model else self.study.evaluate.judge_models)[name]
        if section.billion_parameters is not None:
            return guessed(section.billion_parameters * 1e9, section.dtype or "bfloat16")
        fetched = (
            self.results / (f"{name}/{DENSE}" if of_model else f"judges/{name}") / "checkpoint/config.json"
        )
        scheme, _, place = str(section.source).partition(":")
        if scheme == "path":
            file: Path | None = Path(place).expanduser() / "config.json"
        elif fetched.is_file():
            file = fetched
        elif scheme == "package":
            return size_of(CONFIG)
        else:
            file = self._from_hub(place)
        if file is None:
            return None
        config = read_json(file)
        return size_of(config if isinstance(config, dict) else {}, str(file))

    def _from_hub(self, place: str) -> Path | None:
        """``config.json`` of ``ORG/NAME@REVISION``, kept beside the results; None where the Hub may not be asked."""
        kept = self.results / KEPT / f"{download_name(place)}.json"
        if kept.is_file():
            return kept
        repository, _, revision = place.partition("@")
        file = cached(repository, revision)
        if file is None and self.reach:
            file = self._downloaded(repository, revision)
        if file is None:
            return None
        try:
            write_json(kept, json.loads(file.read_text(encoding="utf-8")))
        except (
            OSError,
            ValueError,
            HoldfastError,
        ):  # a results folder that cannot be written is told by its jobs
            return file
        return kept

    def _downloaded(self, repository: str, revision: str) -> Path | None:
        if not reachable():
            self.reach = False  # said once for all models
            self.say(f"hub: cannot be reached, so sizes are not known before models are fetched; {REMEDY}")
            return None
        try:
            return Path(downloader()(repository, "config.json", revision=revision))
        except Exception as error:  # the client raises its own, httpx's and the file system's errors
            what = f"its config.json cannot be fetched ({type(error).__name__}: {first_line(error)})"
            raise HoldfastError(what, f"hub:{repository}@{revision}", REMEDY) from error


def cached(repository: str, revision: str) -> Path | None:
    """``config.json`` in the Hugging Face cache, without the hub's client, which takes longer to import than all else
    here: folders ``models--ORG--NAME`` with ``refs/BRANCH`` and ``snapshots/COMMIT``."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
    folder = hub / f"models--{repository.replace('/', '--')}"
    try:
        commit = (folder / "refs" / revision).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        commit = revision
    file = folder / "snapshots" / commit / "config.json"
    return file if file.is_file() else None


def downloader() -> Callable[..., str]:
    """The hub's client. It reads its switches once, when it is imported: as the user set them, not as the workflow does
    for its jobs."""
    for_jobs = {name: os.environ[name] for name in SWITCHES if name in os.environ}
    switch_back()
    from huggingface_hub import hf_hub_download

    os.environ.update(for_jobs)
    return hf_hub_download


def reachable() -> bool:
    """Whether the Hub may and can be asked, found out in seconds."""
    off = os.environ.get(USERS, os.environ.get(SWITCHES[0], ""))
    if off.upper() in {"1", "ON", "YES", "TRUE"}:
        return False
    if getproxies():
        return True  # the proxy's to say
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    port = endpoint.port or (80 if endpoint.scheme == "http" else 443)
    try:
        with socket.create_connection((endpoint.hostname or "", port), timeout=CONNECTING):
            return True
    except OSError:
        return False
