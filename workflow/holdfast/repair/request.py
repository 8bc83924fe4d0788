"""What a repair was asked for: models, prompts, and how to tell that it was asked the same before."""

import importlib.metadata
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from holdfast.config import sources
from holdfast.config.sources import BadValueError
from holdfast.errors import HoldfastError
from holdfast.files import sha256
from holdfast.prompts.overlap import normalised
from holdfast.prompts.sources import package_file, read_prompts
from holdfast.provenance import package_versions
from holdfast.versions import STAGE_VERSIONS

ROLES = ("train", "validation", "test")
SIZES = {"train": 128, "validation": 32, "test": 100}  # of each kind, where there are as many
FEWEST = 20  # prompts of a file of one's own
# As in config/demo.yaml: 520 harmful behaviours, with the checksum of the file that they are read from.
ADVBENCH = {
    "source": "package:pyrit/datasets/seed_datasets/local/adv_bench.prompt",
    "sha256": "ccf76355d0d661bcf81f57f70baa1db9299da8aa9352f39b3672cf3da560d3e0",
}
ROWS = {"train": "100:228", "validation": "228:260", "test": "0:100"}
HARMLESS = {"source": "package:holdfast/data/harmless.jsonl"}


@dataclass(frozen=True)
class Request:
    """What the command line says, checked: see :func:`request`."""

    compressed: str
    dense: str
    adapter: str | None
    harmful: str | None
    harmless: str | None
    quick: bool
    seed: int


def request(
    compressed: str,
    dense: str,
    adapter: str | None,
    harmful: Path | None,
    harmless: Path | None,
    quick: bool,
    seed: int,
) -> Request:
    """Folders become ``path:`` sources; everything named is looked for, nothing is downloaded.

    Raises:
        HoldfastError: no such source, or one that cannot be read here.
    """
    return Request(
        model_source(compressed, sources.CHECKPOINT, "MODEL_OR_FOLDER"),
        model_source(dense, sources.MODEL, "--dense"),
        None if adapter is None else model_source(adapter, sources.ADAPTER, "--adapter"),
        None if harmful is None else str(harmful),
        None if harmless is None else str(harmless),
        quick,
        seed,
    )


def model_source(given: str, schemes: sources.Schemes, where: str) -> str:
    """``hub:…``, ``package:…`` and ``path:…`` as they are, a folder's path as ``path:FOLDER``."""
    source = given if given.partition(":")[0] in sources.MODEL else f"path:{given}"
    try:
        return sources.checked(schemes)(source)
    except BadValueError as error:
        raise HoldfastError(error.what, where, error.remedy) from None


def asked(request: Request) -> dict[str, Any]:
    """What finished steps depend on: the arguments, the files behind them, packages and stages.

    Weight files are known by size and time of change (a checksum of each is in the steps' own records), all others
    by checksum.
    """
    files: dict[str, Any] = {}
    for source in filter(None, (request.compressed, request.dense, request.adapter)):
        kind, _, place = source.partition(":")
        if kind == "package":
            files[source] = _package(place)
        elif kind == "path":
            files[source] = _folder(Path(place).expanduser())
    for file in filter(None, (request.harmful, request.harmless)):
        if not Path(file).is_file():
            raise HoldfastError("no such file", file, "give an existing file of prompts")
        files[file] = sha256(Path(file))
    return {
        "request": asdict(request),
        "files": files,
        "packages": package_versions(),
        "stages": STAGE_VERSIONS,
    }


def _package(place: str) -> Any:
    if "/" in place:
        return _folder(package_file(place))
    return importlib.metadata.version(place)


def _folder(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for file in sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")):
        about = file.stat()
        small = about.st_size < 1 << 20
        found[file.name] = sha256(file) if small else [about.st_size, about.st_mtime_ns]
    return found


def prompt_sets(request: Request) -> dict[str, list[dict[str, Any]]]:
    """Records of the six sets, ``harmful_train`` … ``harmless_test``; no text stands in two of one kind.

    By default 128 train, 32 validation and 100 test prompts of each kind: AdvBench's rows as config/demo.yaml has them,
    the packaged harmless ones by their split. A file of one's own is shuffled by the seed, without repeated texts, and
    split in the same proportions.

    Raises:
        HoldfastError: a file that cannot be read, has another checksum, or holds fewer than FEWEST prompts.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for kind, file in (("harmful", request.harmful), ("harmless", request.harmless)):
        if file is not None:
            records = read_prompts({"source": f"file:{file}", "label": kind})
            found |= {f"{kind}_{role}": some for role, some in split(records, request.seed, file).items()}
            continue
        for role in ROLES:
            found[f"{kind}_{role}"] = read_prompts(packaged(kind, role))
    return found


def packaged(kind: str, role: str) -> dict[str, Any]:
    """Recipe of a default set, for ``holdfast prompts`` too."""
    chosen: Mapping[str, Any] = (
        {**ADVBENCH, "rows": ROWS[role]}
        if kind == "harmful"
        else {**HARMLESS, "where": {"split": role}, "limit": SIZES[role]}
    )
    return {**chosen, "label": kind}


def split(records: list[dict[str, Any]], seed: int, where: str) -> dict[str, list[dict[str, Any]]]:
    """Disjoint train, validation and test records, SIZES of them or as many in proportion."""
    distinct = list({normalised(r["text"]): r for r in records if r["text"]}.values())
    if len(distinct) < FEWEST:
        what = f"holds {len(distinct)} different prompts"
        raise HoldfastError(what, where, f"give at least {FEWEST}, better {sum(SIZES.values())}")
    random.Random(seed).shuffle(distinct)
    share = min(1.0, len(distinct) / sum(SIZES.values()))
    found: dict[str, list[dict[str, Any]]] = {}
    start = 0
    for role in ROLES:
        stop = start + int(SIZES[role] * share)
        found[role], start = distinct[start:stop], stop
    return found
