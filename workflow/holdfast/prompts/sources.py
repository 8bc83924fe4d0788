"""Prompt sets from packages, files and the hub, each with a checksum, and the proof that they are disjoint."""

import csv
import importlib.util
import json
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from holdfast.errors import HoldfastError, first_line
from holdfast.files import read_jsonl, sha256

MODALITIES = ("text", "image", "typographic")
TEXT_COLUMNS = ("text", "prompt", "instruction", "goal", "value")


def package_file(address: str) -> Path:
    """``NAME/inner/path`` inside the importable package NAME, without importing it.

    Raises HoldfastError when the package or the file is missing.
    """
    name, _, inner = address.partition("/")
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise HoldfastError("the package is not installed", f"package:{address}", f"pip install {name}")
    for folder in spec.submodule_search_locations:
        if (path := Path(folder) / inner).exists():
            return path
    raise HoldfastError(
        "the package holds no such file", f"package:{address}", "check the path and its version"
    )


def local_path(source: str) -> Path:
    """The file that a ``package:`` or ``file:`` source names; HoldfastError when it is missing."""
    scheme, _, address = source.partition(":")
    if scheme == "package":
        return package_file(address)
    if scheme != "file":
        raise HoldfastError("unknown kind of source", source, "use package:, file: or hub:")
    if not Path(address).is_file():
        raise HoldfastError("no such file", source, "give the path of an existing file")
    return Path(address)


def verified_path(source: str, checksum: str | None) -> Path:
    """``local_path`` after comparing its SHA-256 with ``checksum`` (when given)."""
    path = local_path(source)
    if checksum and (found := sha256(path)) != checksum:
        raise HoldfastError(
            f"its sha256 is {found}, the config says {checksum}",
            source,
            "get the named version or update sha256",
        )
    return path


def suffix_text(path: Path) -> str:
    """The text that an attack's ``suffix`` adds; HoldfastError when the file holds none, or is not UTF-8."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise HoldfastError("not UTF-8 text", str(path), "save it as UTF-8") from None
    if not text:
        raise HoldfastError("holds no text", str(path), "write the suffix there, or leave it out")
    return text


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a .jsonl, .json, .csv, .txt (one prompt a line) or PyRIT .prompt/.yaml (``seeds``) file."""
    if path.suffix == ".jsonl":
        return read_jsonl(path)
    try:
        if path.suffix == ".csv":
            with path.open(encoding="utf-8", newline="") as stream:
                return list(csv.DictReader(stream))
        if path.suffix == ".txt":
            return [{"text": line} for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix in {".prompt", ".yaml", ".yml"}:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            content = content["seeds"] if isinstance(content, dict) and "seeds" in content else content
        else:
            raise HoldfastError(
                f"cannot read {path.suffix or 'a file without ending'}",
                str(path),
                "use .jsonl, .json, .csv, .txt or .prompt",
            )
    except (json.JSONDecodeError, yaml.YAMLError, csv.Error, UnicodeDecodeError) as error:
        raise HoldfastError(f"not readable ({first_line(error)})", str(path), "mend the file") from None
    if not isinstance(content, list):
        raise HoldfastError("does not hold a list of prompts", str(path), "give a list of texts or records")
    return [row if isinstance(row, dict) else {"text": str(row)} for row in content]


def hub_rows(source: str, split: str | None, config: str | None) -> list[dict[str, Any]]:
    """Rows of ``hub:ORG/NAME@REVISION`` through ``datasets``; HoldfastError when it cannot be reached.

    Images stay as they are kept, ``{"bytes", "path"}``: a data set of them does not fit into memory decoded
    (:func:`holdfast.prompts.images.decoded`).
    """
    from datasets import Image, load_dataset

    name, _, revision = source.removeprefix("hub:").partition("@")
    if not split:
        raise HoldfastError("a hub source needs a split", source, "add e.g. `split: test`")
    try:
        found = load_dataset(name, config, split=split, revision=revision or None)
        for column, feature in (found.features or {}).items():
            if isinstance(feature, Image):
                found = found.cast_column(column, Image(decode=False))
        return [dict(row) for row in found]
    except Exception as error:  # datasets raises many unrelated kinds; the user needs one line
        raise HoldfastError(
            f"cannot be loaded ({type(error).__name__}: {first_line(error)})",
            source,
            "check name, revision, token and network",
        ) from None


def text_column(rows: Sequence[Mapping[str, Any]], column: str | None, source: str) -> str:
    for name in [column] if column else TEXT_COLUMNS:
        if name in rows[0]:
            return name
    raise HoldfastError(
        f"no column {column or ' / '.join(TEXT_COLUMNS)} among {', '.join(rows[0])}",
        source,
        "name it with `column:`",
    )


def selected_rows(recipe: Mapping[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """The rows that a recipe selects of its source, with their numbers there; keys, order and errors as of
    :func:`read_prompts`."""
    source = recipe["source"]
    if source.startswith("hub:"):
        rows = hub_rows(source, recipe.get("split"), recipe.get("config"))
    else:
        rows = read_rows(verified_path(source, recipe.get("sha256")))
    numbered = list(enumerate(rows))
    if span := recipe.get("rows"):
        start, _, stop = span.partition(":")
        numbered = numbered[int(start or 0) : int(stop) if stop else None]
    for column, value in (recipe.get("where") or {}).items():
        numbered = [(i, row) for i, row in numbered if row.get(column) == value]
    if (limit := recipe.get("limit")) is not None:
        numbered = numbered[:limit]
    if (samples := recipe.get("samples")) is not None:
        numbered = random.Random(recipe.get("seed", 0)).sample(numbered, min(samples, len(numbered)))
    if not numbered:
        raise HoldfastError("selects no prompt", source, "check rows, where and limit against the file")
    return numbered


def files_named(recipe: Mapping[str, Any], column: str) -> list[str]:
    """The files that ``column`` of the selected rows names, from the folder of a source ``file:``, as far as they are
    there; none of other sources, nor of one that cannot be read: who asks the questions says what is wrong."""
    source = recipe.get("source")
    if not source or not source.startswith("file:"):
        return []
    try:
        named = [row.get(column) for _, row in selected_rows(recipe)]
    except HoldfastError:
        return []
    paths = {str(local_path(source).parent / name) for name in named if isinstance(name, str)}
    return sorted(path for path in paths if Path(path).is_file())


def read_prompts(recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The prompt set a recipe names, as records {id, text, label, category, source}; of a file of pairs (its rows have
    a ``modality``) with {pair, modality, images} too, and its own labels where the recipe has none.

    Recipe keys: ``source`` and, optionally, ``sha256``, ``column``, ``split``, ``config``, ``rows``
    ("start:stop"), ``where`` ({column: value}), ``limit``, ``label``, ``samples`` with ``seed`` (a draw
    without replacement). Rows are selected in the order rows → where → limit or samples. Raises
    HoldfastError for a missing or changed file, a missing column, or an empty selection.
    """
    source, numbered = recipe["source"], selected_rows(recipe)
    column = text_column([row for _, row in numbered], recipe.get("column"), source)
    return [
        {
            "id": str(row.get("id") or f"{source.rsplit('/', 1)[-1]}#{i}"),
            "text": str(row[column]).strip(),
            "label": recipe.get("label", "")
            or (row.get("label", "") if row.get("modality") in MODALITIES else ""),
            "category": category_of(row),
            "source": source,
            **of_pair(row),
        }
        for i, row in numbered
    ]


def of_pair(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row of a file of pairs says besides; nothing of any other row."""
    paired = row.get("modality") in MODALITIES
    return {key: row[key] for key in ("pair", "modality", "images") if paired and row.get(key)}


def read_records(path: Path) -> list[dict[str, Any]]:
    """Prompt records of a JSONL file; HoldfastError when there is none, or one lacks a text or repeats an id."""
    records = read_jsonl(path)
    if not records:
        raise HoldfastError("holds no prompt", str(path), 'write records with "id" and "text"')
    seen: set[str] = set()
    for number, record in enumerate(records, 1):
        if (
            not isinstance(record.get("text"), str)
            or not record["text"].strip()
            or not isinstance(record.get("id"), str | int)
        ):
            raise HoldfastError("record without id or text", f"{path}, record {number}", "give it both")
        if str(record["id"]) in seen:
            raise HoldfastError(f"id {record['id']} stands twice", str(path), "give every record its own id")
        seen.add(str(record["id"]))
    return records


def category_of(row: Mapping[str, Any]) -> str:
    value = row.get("category") or row.get("harm_categories") or ""
    return value if isinstance(value, str) else ", ".join(map(str, value))


def read_text(recipe: Mapping[str, Any]) -> str:
    """The running text that a recipe (``source``, ``sha256``; of a hub data set also split, config, column) names.

    WikiText as the pruning papers read it: the rows of the data set joined by blank lines. Its own raw file
    (``.raw``) is split into the same rows first, so that both give the same text; any other file is taken as it is.
    """
    source = recipe["source"]
    if source.startswith("hub:"):
        rows = hub_rows(source, recipe.get("split"), recipe.get("config"))
        column = text_column(rows, recipe.get("column"), source)
        return "\n\n".join(str(row[column]) for row in rows)
    path = verified_path(source, recipe.get("sha256"))
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise HoldfastError("not UTF-8 text", source, "give a plain text file") from None
    if path.suffix != ".raw":
        return text
    lines = re.findall(r"[^\n]*\n|[^\n]+", text)  # not splitlines(): texts may hold U+2028
    return "\n\n".join(line if line.strip() else "" for line in lines)
