"""Pairs of a file that ``holdfast pairs`` wrote, their halves joined again."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

from holdfast.errors import HoldfastError
from holdfast.files import read_jsonl
from holdfast.records import Record, require

REMEDY = "run `holdfast pairs build` again, and `holdfast pairs check`"


class _Half(Record):
    id: str
    pair: str
    label: Literal["harmful", "benign"]
    modality: str
    category: str


class Joined(NamedTuple):
    """A pair: the records of its halves."""

    name: str
    harmful: dict[str, Any]
    benign: dict[str, Any]

    @property
    def modality(self) -> str:
        return str(self.harmful["modality"])

    @property
    def category(self) -> str:
        return str(self.harmful["category"])


def joined_pairs(path: Path) -> list[Joined]:
    """The pairs of a file, in its order.

    Raises:
        HoldfastError: a record lacks its pair, or a pair has not one half of each kind, alike in modality and category.
    """
    halves: dict[str, dict[str, dict[str, Any]]] = {}
    for number, record in enumerate(read_jsonl(path), 1):
        require(_Half, record, f"{path}, record {number}", REMEDY)
        both = halves.setdefault(record["pair"], {})
        if record["label"] in both:
            raise HoldfastError(f"pair {record['pair']} has two {record['label']} halves", str(path), REMEDY)
        both[record["label"]] = record
    found = []
    for name, both in halves.items():
        for label in ("harmful", "benign"):
            if label not in both:
                raise HoldfastError(f"pair {name} has no {label} half", str(path), REMEDY)
        harmful, benign = both["harmful"], both["benign"]
        if (harmful["modality"], harmful["category"]) != (benign["modality"], benign["category"]):
            what = f"the halves of pair {name} differ in modality or category"
            raise HoldfastError(what, str(path), REMEDY)
        found.append(Joined(name, harmful, benign))
    return found
