"""Rendered pictures of 96 × 96 pixels: coloured shapes to count, and words drawn a letter in each patch.

Drawn by Pillow with the DejaVu fonts that matplotlib brings. The same draw gives the same picture.
"""

import functools
import math
import random
import string
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from holdfast.embedded.vision.vocabulary import COLOURS, COUNTS, HELD_OUT_PAIRS, SHAPES
from holdfast.prompts.sources import package_file

SIDE = 96  # pixels
CELL = 16  # pixels: one patch of the tower holds one letter
CELLS = SIDE // CELL  # in a row
PATCHES = CELLS * CELLS
JITTER = 2  # pixels that a letter may stand off the middle of its cell, either way
FINE = 3  # shapes are drawn so many times larger and averaged down, for smooth edges
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono-Bold", "DejaVuSerif")
SIZES = (12, 13, 14)  # of letters, pixels

Colour = tuple[int, int, int]
Point = tuple[float, float]


@dataclass(frozen=True)
class Scene:
    """``count`` (one to five) equal shapes of one colour."""

    shape: str
    colour: str
    count: str


def draw_scene(draw: random.Random, *, held_out: bool = False) -> Scene:
    """A scene by chance; its pair of shape and colour from those never drawn in training where ``held_out``."""
    pairs = [(s, c) for s in SHAPES for c in COLOURS if ((s, c) in HELD_OUT_PAIRS) == held_out]
    shape, colour = draw.choice(pairs)
    return Scene(shape, colour, draw.choice(COUNTS))


def scene_picture(scene: Scene, draw: random.Random) -> Image.Image:
    """An RGB picture; background, shade, size, places and turns by chance. No two shapes touch."""
    picture = Image.new("RGB", (SIDE * FINE, SIDE * FINE), background(draw))
    canvas = ImageDraw.Draw(picture)
    ink = _shade(COLOURS[scene.colour], draw, 16)
    third = SIDE / 3
    radius = draw.uniform(9.5, 14.0)
    slack = third / 2 - radius
    for cell in draw.sample(range(9), COUNTS.index(scene.count) + 1):
        x = third * (cell % 3 + 0.5) + draw.uniform(-slack, slack)
        y = third * (cell // 3 + 0.5) + draw.uniform(-slack, slack)
        _shape(canvas, scene.shape, (x * FINE, y * FINE), radius * FINE, ink, draw.uniform(-0.2, 0.2))
    return picture.reduce(FINE)


@dataclass(frozen=True)
class Hand:
    """How letters are written: the DejaVu font, its size in pixels, the colour."""

    font: str
    size: int
    ink: Colour


def hand(draw: random.Random) -> Hand:
    """A hand by chance."""
    font, size = draw.choice(FONTS), draw.choice(SIZES)
    return Hand(font, size, (draw.randrange(0, 100), draw.randrange(0, 100), draw.randrange(0, 100)))


def word_picture(word: str, draw: random.Random) -> tuple[Image.Image, list[int]]:
    """An RGB picture of a word of a to z, and what each patch holds: 0 for nothing, 1 to 26 for a letter, [36].

    One letter a cell from the left edge; the row where it starts by chance, longer words go on in the next row.

    Raises:
        ValueError: the word has no letter, more than 36, or another character.
    """
    if not 0 < len(word) <= PATCHES or set(word) - set(string.ascii_lowercase):
        raise ValueError(f"{word!r} cannot be drawn")
    picture = Image.new("RGB", (SIDE, SIDE), background(draw))
    own = hand(draw)
    row = draw.randrange(CELLS - rows(word) + 1)
    write(picture, word, row, own, draw)
    held = [0] * PATCHES
    for cell, letter in enumerate(word, CELLS * row):
        held[cell] = 1 + string.ascii_lowercase.index(letter)
    return picture, held


def rows(word: str) -> int:
    """How many rows of cells a word takes."""
    return -(-len(word) // CELLS)


def write(picture: Image.Image, word: str, row: int, own: Hand, draw: random.Random) -> None:
    """Write a word onto a picture from the first cell of a row on, each letter off its cell's middle by chance."""
    canvas, font = ImageDraw.Draw(picture), _font(own.font, own.size)
    for cell, letter in enumerate(word, CELLS * row):
        x = CELL * (cell % CELLS + 0.5) + draw.randint(-JITTER, JITTER)
        y = CELL * (cell // CELLS + 0.5) + draw.randint(-JITTER, JITTER)
        # Down from the middle of the cell, so that letters share a base line ("g" and "b" keep their parts).
        canvas.text((x, y + own.size * 0.36), letter, fill=own.ink, font=font, anchor="ms")


def blank_picture(draw: random.Random) -> Image.Image:
    """A background with nothing on it."""
    return Image.new("RGB", (SIDE, SIDE), background(draw))


def background(draw: random.Random) -> Colour:
    """A light colour by chance."""
    light = draw.randrange(205, 250)
    return _shade((light, light, light), draw, 6)


def _shade(colour: Colour, draw: random.Random, spread: int) -> Colour:
    r, g, b = (min(255, max(0, value + draw.randint(-spread, spread))) for value in colour)
    return r, g, b


@functools.cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    folder: Path = package_file("matplotlib/mpl-data/fonts/ttf")
    return ImageFont.truetype(str(folder / f"{name}.ttf"), size)


def _shape(
    canvas: ImageDraw.ImageDraw, shape: str, middle: Point, radius: float, ink: Colour, turn: float
) -> None:
    """One shape inside the circle of ``radius`` about ``middle``, turned by ``turn`` (radians)."""
    x, y = middle
    if shape in ("circle", "ring"):
        box = (x - radius, y - radius, x + radius, y + radius)
        if shape == "circle":
            canvas.ellipse(box, fill=ink)
        else:
            canvas.ellipse(box, outline=ink, width=round(radius * 0.36))
        return
    cos, sin = math.cos(turn), math.sin(turn)
    corners = [
        (x + radius * (a * cos - b * sin), y + radius * (a * sin + b * cos)) for a, b in _outline(shape)
    ]
    canvas.polygon(corners, fill=ink)


@functools.cache
def _outline(shape: str) -> tuple[Point, ...]:
    """Corners within the unit circle; y points down, as in pictures."""
    match shape:
        case "square":
            return _regular(4, math.pi / 4)
        case "diamond":  # narrower than a square on its corner
            return ((0, -1), (0.62, 0), (0, 1), (-0.62, 0))
        case "triangle":
            return _regular(3, -math.pi / 2)
        case "star":
            outer, inner = _regular(5, -math.pi / 2), _regular(5, -math.pi / 2 + math.pi / 5)
            return tuple(p for a, (u, v) in zip(outer, inner, strict=True) for p in (a, (0.42 * u, 0.42 * v)))
        case "cross":
            w = 0.3
            quarter = ((w, -0.95), (w, -w), (0.95, -w))
            return tuple(p for k in range(4) for p in _quarter_turns(quarter, k))
        case "heart":
            angles = [2 * math.pi * k / 40 for k in range(40)]
            return tuple((math.sin(t) ** 3 * 0.95, -_heart_height(t) / 17) for t in angles)
    raise ValueError(f"{shape!r} cannot be drawn")


def _heart_height(t: float) -> float:
    return 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)


def _regular(corners: int, first: float) -> tuple[Point, ...]:
    angles = [first + 2 * math.pi * k / corners for k in range(corners)]
    return tuple((math.cos(a), math.sin(a)) for a in angles)


def _quarter_turns(points: tuple[Point, ...], times: int) -> tuple[Point, ...]:
    for _ in range(times):
        points = tuple((-b, a) for a, b in points)
    return points
