"""What a control takes from the finished method that it is matched to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from holdfast.errors import HoldfastError
from holdfast.files import read_json
from holdfast.records import Record, require


def matched_record(
    stage: str, recipe: Mapping[str, Any], path: Path | None, kind: type[Record]
) -> dict[str, Any] | None:
    """The ``STAGE.json`` of the method that a recipe is matched to; None where it is matched to none.

    Raises:
        HoldfastError: the recipe names a method and no file is given, or the reverse; the file is not that record.
    """
    name = f"{stage}.json"
    if bool(recipe.get("matched_to")) != bool(path):
        remedy = f"give the matched method and its {name}, or neither"
        raise HoldfastError("matched_to and --matched-to go together", stage, remedy)
    if path is None:
        return None
    record: dict[str, Any] = read_json(path)
    require(kind, record, str(path), f"give the {name} that holdfast {stage} wrote")
    return record
