"""Images of prompt records: files beside the JSONL, each known by its checksum.

A record may have ``images``: ``[{"file": "images/x.png", "sha256": "…"}]``, ``file`` relative to the folder of its
JSONL file. They stand before the text in the user's turn, in their order.
"""

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image, ImageOps

from holdfast.errors import HoldfastError, first_line
from holdfast.files import sha256
from holdfast.prompts.sources import read_records

# What Pillow raises on damaged files of one kind or another.
DAMAGED = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
REMEDY = "bring the images that the records name, or build the prompts again"


@dataclass(frozen=True)
class Picture:
    """An image file and its checksum."""

    path: Path
    sha256: str

    def load(self) -> Image.Image:
        """The image, RGB, turned as its EXIF data say.

        Raises:
            HoldfastError: the file is missing, is not the one named, or is no image that can be read.
        """
        if not self.path.is_file():
            raise HoldfastError("no such image", str(self.path), REMEDY)
        if (found := sha256(self.path)) != self.sha256:
            what = f"its sha256 is {found}, the record says {self.sha256}"
            raise HoldfastError(what, str(self.path), REMEDY)
        return read_image(self.path, str(self.path))


@dataclass(frozen=True)
class Pictured:
    """An instruction with images."""

    text: str
    pictures: tuple[Picture, ...]


Instruction: TypeAlias = str | Pictured


def pictures_of(record: Mapping[str, Any], folder: Path) -> tuple[Picture, ...]:
    """The images that a record of a JSONL file in ``folder`` names; not looked at yet.

    Raises:
        HoldfastError: ``images`` is no list of files with checksums, or a file is not relative to the folder.
    """
    found = []
    images = record.get("images") or []
    where = f"{folder}, record {record.get('id')}"
    remedy = 'write "images": [{"file": "images/x.png", "sha256": "…"}]'
    if not isinstance(images, list):
        raise HoldfastError("images is no list", where, remedy)
    for image in images:
        about = image if isinstance(image, dict) else {}
        file, checksum = str(about.get("file") or ""), str(about.get("sha256") or "")
        if not file or not re.fullmatch(r"[0-9a-f]{64}", checksum):
            raise HoldfastError("an image without file or sha256", where, remedy)
        if Path(file).is_absolute():
            raise HoldfastError(f"{file} is not relative to the folder of the records", where, remedy)
        found.append(Picture(folder / file, checksum))
    return tuple(found)


def load_images(record: Mapping[str, Any], folder: Path) -> list[Image.Image]:
    """A record's images, RGB, in their order; none of a record without. Errors as :class:`Picture` and
    :func:`pictures_of`."""
    return [picture.load() for picture in pictures_of(record, folder)]


def decoded(value: Mapping[str, Any], where: str) -> Image.Image:
    """The image of a hub data set's row, ``{"bytes", "path"}``. Errors as of :func:`read_image`."""
    content, path = value.get("bytes"), value.get("path")
    if isinstance(content, bytes):
        return read_image(io.BytesIO(content), where)
    if not isinstance(path, str):
        raise HoldfastError("holds no image", where, REMEDY)
    return read_image(path, where)


def read_image(file: Any, where: str) -> Image.Image:
    """An image, RGB, turned as its EXIF data say; HoldfastError when it cannot be read."""
    try:
        with Image.open(file) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except DAMAGED as error:
        what = f"cannot be read as an image ({first_line(error)})"
        raise HoldfastError(what, where, REMEDY) from None


def with_text(instruction: Instruction, text: str) -> Instruction:
    """The same images with another text."""
    return text if isinstance(instruction, str) else replace(instruction, text=text)


def text_of(instruction: Instruction) -> str:
    return instruction if isinstance(instruction, str) else instruction.text


def instruction(record: Mapping[str, Any], folder: Path) -> Instruction:
    """What the record asks. Errors as :func:`pictures_of`."""
    pictures = pictures_of(record, folder)
    return Pictured(record["text"], pictures) if pictures else str(record["text"])


def read_instructions(path: Path, model_dir: Path) -> list[Instruction]:
    """What the records of a JSONL file ask of a model, every image checked.

    Raises:
        HoldfastError: as :func:`holdfast.prompts.sources.read_records` and :func:`instructions`.
    """
    return instructions(read_records(path), path.parent, model_dir)


def instructions(records: Sequence[Mapping[str, Any]], folder: Path, model_dir: Path) -> list[Instruction]:
    """The same of records that were read already, from a file in ``folder``.

    Raises:
        HoldfastError: there are images and the checkpoint cannot be shown any, or is no chat model; as
            :func:`pictures_of` and :meth:`Picture.load`.
    """
    from holdfast.checkpoints import require_processor
    from holdfast.skeletons import answers_questions

    if answers_questions(model_dir):
        what = "an encoder-decoder that answers questions has no chat, and no refusal to look for"
        raise HoldfastError(what, str(model_dir), "generate answers with it, or use a chat model")
    found = [instruction(record, folder) for record in records]
    if any(isinstance(one, Pictured) for one in found):
        require_processor(model_dir)
    check_pictures(p for one in found if not isinstance(one, str) for p in one.pictures)
    return found


def check_pictures(pictures: Iterable[Picture]) -> None:
    """Raises HoldfastError for the first image that is missing, changed or damaged, each looked at once."""
    for picture in dict.fromkeys(pictures):
        picture.load()


def carried(records: Sequence[Mapping[str, Any]], folder: Path, out: Path) -> list[dict[str, Any]]:
    """Records for a JSONL file in another folder: their images linked to ``out/images``, named by checksum.

    Args:
        folder: of the file that the records are from.

    Raises:
        HoldfastError: as :func:`pictures_of` and :meth:`Picture.load`.
    """
    from holdfast.model_folders import link  # imports torch, which those who only read records do not need

    found = []
    for record in records:
        pictures = pictures_of(record, folder)
        images = []
        for picture in pictures:
            picture.load()
            name = f"images/{picture.sha256}{picture.path.suffix}"
            (out / "images").mkdir(parents=True, exist_ok=True)
            if not (out / name).exists():
                link(picture.path, out / name)
            images.append({"file": name, "sha256": picture.sha256})
        found.append({**record, **({"images": images} if images else {})})
    return found
