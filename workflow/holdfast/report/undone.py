"""What a run left undone, as the workflow tells it: cells whose results are missing, or out of date."""

import os
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from pydantic import Field

from holdfast.errors import HoldfastError
from holdfast.files import read_json
from holdfast.records import Record, require

Cell = tuple[str, str, str]
STOPPED = "stopped"  # stands where a stage does when none failed

MEASURES = {
    "missing[STAGE]": "results of the cell that are missing because STAGE failed ("
    f"{STOPPED}: because the run was stopped), a count; only of studies that are not finished",
}


class Job(Record):
    stage: str
    cell: Annotated[list[str], Field(min_length=3, max_length=3)] | None
    files: list[Annotated[str, Field(min_length=1)]]
    failed: list[str]


class Undone:
    """The jobs that a run should have finished and did not; ``files``: their outputs, below the results folder."""

    def __init__(self, jobs: Collection[Job] = ()) -> None:
        self.files = [Path(file) for job in jobs for file in job.files]
        self._missing: dict[Cell, Counter[str]] = {}
        for job in jobs:
            if job.cell:
                model, compression, method = job.cell
                counts = self._missing.setdefault((model, compression, method), Counter())
                counts.update(job.failed or [STOPPED])

    def missing(self, cell: Cell) -> dict[str, int]:
        """How many results the cell lacks, by the stage whose failure they are missing for."""
        return dict(sorted(self._missing.get(cell, Counter()).items()))


def read_undone(path: Path) -> Undone:
    """Raises HoldfastError when the file is missing or not what the workflow writes."""
    found = read_json(path)
    remedy = "run the workflow again, which writes it"
    if not isinstance(found, list):
        raise HoldfastError("not a list of jobs", str(path), remedy)
    for record in found:
        require(Job, record, str(path), remedy)
    return Undone([Job.model_validate(record) for record in found])


@contextmanager
def without(results: Path, files: Collection[Path]) -> Iterator[Path]:
    """The results folder without these files and folders in it, which may be out of date.

    Where any of them is there, a temporary folder of links to all others; the results themselves stay as they are.
    """
    hidden = {file for file in files if (results / file).exists()}
    if not hidden:
        yield results
        return
    with tempfile.TemporaryDirectory(prefix="holdfast-") as scratch:
        view = Path(scratch) / results.name
        _link(results, view, hidden)
        yield view


def _link(source: Path, view: Path, hidden: Collection[Path]) -> None:
    """Link what is in ``source`` into ``view``, entering only folders that hold something hidden."""
    view.mkdir()
    inner: dict[str, set[Path]] = {}
    for path in hidden:
        inner.setdefault(path.parts[0], set()).add(Path(*path.parts[1:]))
    for entry in os.scandir(source):
        below = inner.get(entry.name)
        if below is None:
            (view / entry.name).symlink_to(Path(entry.path).resolve())
        elif Path() not in below:
            _link(Path(entry.path), view / entry.name, below)
