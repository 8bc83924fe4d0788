"""Text drawn into boxes and pictures written as PNG, the same bytes each time.

The fonts are DejaVu as matplotlib ships them, by file. Pillow's own layout (not Raqm, which not every build has) and
its own FreeType draw them, so that pixels depend on the versions of Pillow and matplotlib alone, which are pinned.
"""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from holdfast.errors import HoldfastError
from holdfast.prompts.sources import package_file

FONTS = "matplotlib/mpl-data/fonts/ttf"
SIDE = 512  # pixels; a multiple of the patches of the usual towers, and no smaller than what they are shown
SMALLEST = 20  # pixels of a letter's height: 13 where a tower of 336 is shown the picture
LINE = 1.25  # height of a line in letters' heights
MARGIN = 5  # pixels at the left and right of a box: slanted letters reach beyond their width

Box = tuple[int, int, int, int]
Colour = tuple[int, int, int]


def font_path(name: str) -> Path:
    """The file of ``DejaVu`` + ``name`` in matplotlib; HoldfastError where the package is not installed."""
    return package_file(f"{FONTS}/DejaVu{name}.ttf")


@functools.cache
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(font_path(name)), size, layout_engine=ImageFont.Layout.BASIC)


def wrapped(text: str, face: ImageFont.FreeTypeFont, width: int) -> list[str] | None:
    """Lines no wider than ``width`` pixels; None when a word alone is wider."""
    lines: list[str] = []
    for word in text.split():
        if face.getlength(word) > width:
            return None
        if lines and face.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def fitting_size(texts: Sequence[str], box: Box, name: str, largest: int, below: int = 0) -> int:
    """The largest size, in pixels, at which each of the texts fits into the box with ``below`` lines left.

    Both halves of a pair are drawn at one size, so that size tells nothing. Raises HoldfastError where even letters of
    SMALLEST pixels do not fit: a text that cannot be read tests nothing.
    """
    width, height = box[2] - box[0] - 2 * MARGIN, box[3] - box[1]
    for size in range(largest, SMALLEST - 1, -1):
        lines = [wrapped(text, font(name, size), width) for text in texts]
        if all(found is not None and (len(found) + below) * size * LINE <= height for found in lines):
            return size
    longest = max(len(text.split()) for text in texts)
    raise HoldfastError(
        f"{longest} words do not fit into {width} × {height} pixels", "drawing", "draw a shorter text"
    )


def draw_text(
    draw: ImageDraw.ImageDraw,
    text: str,
    box: Box,
    name: str,
    size: int,
    ink: Colour,
    *,
    centred: bool,
    below: Sequence[str] = (),
) -> None:
    """Draw a text, wrapped, from the top of the box or in its middle; ``below`` are lines that follow it."""
    face = font(name, size)
    width = box[2] - box[0] - 2 * MARGIN
    lines = [*(wrapped(text, face, width) or []), *below]
    step = round(size * LINE)
    top = box[1] + (max(0, box[3] - box[1] - step * len(lines)) // 2 if centred else 0)
    for number, line in enumerate(lines):
        left = box[0] + MARGIN + (round(width - face.getlength(line)) // 2 if centred else 0)
        draw.text((left, top + number * step), line, fill=ink, font=face)


def write_png(picture: Image.Image, path: Path) -> None:
    """Write a picture with no metadata and fixed settings of compression."""
    picture.save(path, format="PNG", compress_level=9, optimize=False)


def pixel_hash(picture: Image.Image) -> str:
    """SHA-256 of size and RGB values: the same for every file that shows the same picture."""
    rgb = picture.convert("RGB")
    return hashlib.sha256(f"{rgb.width}x{rgb.height}".encode() + rgb.tobytes()).hexdigest()
