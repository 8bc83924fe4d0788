"""The records of a pair: prompts, with images where the pair is seen."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from holdfast.files import sha256
from holdfast.pairs.drawing import write_png
from holdfast.pairs.references import COUNTS
from holdfast.pairs.scenes import SCENES, render

RECORDS = "pairs.jsonl"


def record_of(about: Mapping[str, Any], label: str, text: str) -> dict[str, Any]:
    """One half: ``about`` holds what both have (``pair``, ``modality``, ``category`` and others)."""
    return {"id": f"{about['pair']}-{label}", "text": text, "label": label, **about}


def drawn_halves(
    about: Mapping[str, Any], scene: str, question: str, texts: Mapping[str, str], folder: Path
) -> Iterator[dict[str, Any]]:
    """The halves of a drawn pair, texts by label; their pictures are written into ``folder/images``.

    Raises HoldfastError as :func:`holdfast.pairs.scenes.render`.
    """
    pictures = render(scene, about["pair"], list(texts.values()))
    yield from pictured_halves(about, scene, question, texts, pictures, SCENES[scene].box, folder)


def pictured_halves(
    about: Mapping[str, Any],
    scene: str,
    question: str,
    texts: Mapping[str, str],
    pictures: Sequence[Image.Image],
    box: Sequence[int],
    folder: Path,
) -> Iterator[dict[str, Any]]:
    """The halves of a drawn pair, texts by label, whose pictures are made; ``box`` is where the text stands in them."""
    for (label, text), picture in zip(texts.items(), pictures, strict=True):
        record = record_of(about, label, question)
        file = f"images/{record['id']}.png"
        write_png(picture, folder / file)
        images = [{"file": file, "sha256": sha256(folder / file)}]
        yield {**record, "images": images, "drawn": text, "scene": scene, "box": list(box)}


def counted(modalities: Iterable[str]) -> dict[str, int]:
    """How often each modality stands there, in the benchmark's order."""
    given = list(modalities)
    return {name: given.count(name) for name in COUNTS if name in given}
