"""A data set where the hub's client looks for one: it takes a folder of that name for it."""

from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image


def given_hub(folder: Path, name: str, columns: dict[str, list[Any]], patch: pytest.MonkeyPatch) -> None:
    """``hub:NAME@…`` with the split ``test``, of these columns; pictures stand in the rows, as the hub keeps them."""
    data = datasets.Dataset.from_dict(columns)
    for column, values in columns.items():
        if any(isinstance(value, Image.Image) for value in values):
            data = data.cast_column(column, datasets.Image())
    (folder / name).mkdir(parents=True)
    data.to_parquet(str(folder / name / "test.parquet"))
    patch.chdir(folder)
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
