"""Pairs side by side on a study's page: both halves as they were shown, and every cell's answers.

Halves and answers are untrusted text, which the template escapes; images are shown re-encoded, in the page itself.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from holdfast.files import read_jsonl
from holdfast.prompts.images import load_images
from holdfast.report.measures.pairs import read_pairs
from holdfast.report.samples import samples
from holdfast.report.wording import visible

OF_EACH_MODALITY = 2
SIDE = 320  # pixels of an image's longer side at most

Cell = tuple[str, str, str]


def pair_samples(results: Path, cells: Sequence[Cell], missing: set[Cell]) -> list[dict[str, Any]]:
    """The first pairs of each modality, the same for every cell; none in a study without pairs.

    Args:
        results: ``results/STUDY``.
        cells: (model, compression, method), in the page's order.
        missing: those whose files may be out of date; they have no answers here.

    Raises:
        HoldfastError: pairs, generations or verdicts are not as their format says, or an image is missing or changed.
    """
    file = results / "pairs/pairs.jsonl"
    if not file.is_file():
        return []
    records = {str(r["id"]): r for r in read_jsonl(file)}
    shown: dict[str, list[dict[str, Any]]] = {}
    said = {
        cell: {} if cell in missing else samples(results.joinpath(*cell, "pairs"), "pairs") for cell in cells
    }
    for pair in read_pairs(file):
        of_modality = shown.setdefault(pair.modality, [])
        if len(of_modality) < OF_EACH_MODALITY:
            about = {"modality": pair.modality, "category": pair.category}
            halves = {"harmful": pair.harmful, "benign": pair.benign}
            sides = [_half(label, records[i], file.parent, i, said) for label, i in halves.items()]
            of_modality.append(about | {"halves": sides})
    return [pair for of_modality in shown.values() for pair in of_modality]


def _half(
    label: str, record: Mapping[str, Any], folder: Path, name: str, said: Mapping[Cell, Mapping[str, Any]]
) -> dict[str, Any]:
    return {
        "label": label,
        "text": visible(str(record["text"])),
        "images": [_inline(image) for image in load_images(record, folder)],
        "answers": [(" / ".join(cell), of_cell[name]) for cell, of_cell in said.items() if name in of_cell],
    }


def _inline(image: Image.Image) -> str:
    """A ``data:`` address: the pixels alone, made smaller, without whatever else the file held."""
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
