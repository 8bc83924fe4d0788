"""The benchmark's own data: which row of which public set is each harmful half, and the benign half's own text.

A harmful half is a reference: the set, the row's number or name, and the SHA-256 of the row's text. The text itself is
read from a package, a file or the hub when the benchmark is built, and is known by that checksum wherever it stands.
"""

import csv
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.errors import HoldfastError
from holdfast.files import read_json, read_jsonl
from holdfast.prompts.sources import hub_rows, read_rows, verified_path

DATA = Path(__file__).parent / "data"
# The counts of VLMSafe-420 (study V, arXiv 2603.25035), and of its categories.
COUNTS = {"text": 226, "image": 150, "typographic": 44}
CATEGORIES = 38


@dataclass(frozen=True)
class Pair:
    """One pair as the data files have it.

    Attributes:
        id: name of the pair, its modality first.
        modality: ``text``, ``image`` or ``typographic``.
        category: the safety category, of this project's own taxonomy.
        set: name of the set that the harmful half is read from (``data/sources.json``).
        row: the row's number (from 0) or name there.
        sha256: checksum of the row's text, without blanks around it.
        changed: what the benign half has another of.
        benign: the benign text; of an image pair what is drawn in the place of the row's words.
        question: what is asked about the picture, the same of both halves; empty of text pairs.
        scene: the scene that is drawn; empty of text pairs.
        span: the words [start, stop) of the row that are drawn; None for all.
    """

    id: str
    modality: str
    category: str
    set: str
    row: str
    sha256: str
    changed: str
    benign: str
    question: str = ""
    scene: str = ""
    span: tuple[int, int] | None = None

    def harmful(self, text: str) -> str:
        """What of the row's text belongs to the harmful half."""
        return " ".join(text.split()[slice(*self.span)]) if self.span else text


def read_pairs(modalities: Iterable[str] = COUNTS) -> list[Pair]:
    """The pairs of these modalities, in the order of the data files: packaged sources first, categories in turn."""
    return [
        Pair(
            **{**record, "modality": modality, "span": tuple(span) if (span := record.get("span")) else None}
        )
        for modality in COUNTS
        if modality in modalities
        for record in read_jsonl(DATA / f"{modality}.jsonl")
    ]


def read_sources() -> dict[str, dict[str, Any]]:
    """The sets by name: ``title``, ``licence``, ``file`` and its ``sha256``; ``source`` of those a package carries."""
    return dict(read_json(DATA / "sources.json"))


def checksum(text: str) -> str:
    """SHA-256 of a row's text, without blanks around it."""
    return hashlib.sha256(text.strip().encode()).hexdigest()


def texts_by_checksum(recipe: Mapping[str, Any]) -> dict[str, str]:
    """Every text of a set by its checksum: of ``column``, or of any column, for sets name their columns freely.

    Args:
        recipe: ``source`` (package:, file: or hub:) and, optionally, ``sha256``, ``column``, ``split``, ``config``.

    Raises:
        HoldfastError: the source is missing, changed or unreadable, or has no such column.
    """
    source, column = recipe["source"], recipe.get("column")
    if source.startswith("hub:"):
        rows = hub_rows(source, recipe.get("split"), recipe.get("config"))
    else:
        path = verified_path(source, recipe.get("sha256"))
        rows = commented_csv(path) if path.suffix == ".csv" else read_rows(path)
    if column and not any(column in row for row in rows):
        raise HoldfastError(f"has no column {column}", source, "name the column that holds the prompts")
    return {
        checksum(value): value.strip()
        for row in rows
        for name, value in row.items()
        if isinstance(value, str) and (column is None or name == column)
    }


def commented_csv(path: Path) -> list[dict[str, Any]]:
    """Rows of a CSV file whose first lines may be remarks that begin with ``#``, as PyRIT's are."""
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            lines = stream.readlines()
        first = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
        return list(csv.DictReader(lines[first:]))
    except (UnicodeDecodeError, csv.Error) as error:
        reason = str(error).splitlines()[0]
        raise HoldfastError(f"not readable ({reason})", str(path), "mend the file") from None
