"""Small scenes that the embedded vision-language model can read a word in, and the bare page that it learnt on.

It was shown words on bare pages only. Measured: elements that are pale, or whose edges lie on the edges of the tower's
patches, leave its reading alone; dark or fine ones are taken for shapes, and no word is read beside them.
"""

import random
from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw

from holdfast.embedded.vision.pictures import CELL, CELLS, SIDE, Colour, background, hand, rows, write

Draw = ImageDraw.ImageDraw
Box = tuple[int, int, int, int]
# What a scene draws with: the colours of its ground, of what holds the word, and of what else there is.
Paint = Callable[[Draw, Colour, Colour, Colour], None]

GROUNDS: list[Colour] = [(150, 170, 190), (190, 160, 130), (140, 175, 145), (180, 150, 180), (205, 150, 140)]
ACCENTS: list[Colour] = [(38, 84, 124), (140, 62, 40), (52, 104, 66), (98, 60, 118), (120, 92, 24)]
PALE, FAINT = 0.33, 0.2  # how far such a colour goes from the page's to the full one, of areas and of lines
REACH = 4  # pixels that letters may stand beyond their cells


def band(draw: Draw, first: int, last: int, colour: Colour, cells: tuple[int, int] = (0, CELLS)) -> None:
    """Fill rows of cells, ``first`` to ``last``, between two columns."""
    left, right = cells
    draw.rectangle((CELL * left, CELL * first, CELL * right - 1, CELL * (last + 1) - 1), fill=colour)


def board(draw: Draw, ground: Colour, paper: Colour, accent: Colour) -> None:
    band(draw, 0, 5, ground)
    band(draw, 2, 3, paper)


def screen(draw: Draw, ground: Colour, paper: Colour, accent: Colour) -> None:
    band(draw, 0, 0, accent)
    band(draw, 5, 5, ground)


def sign(draw: Draw, ground: Colour, paper: Colour, accent: Colour) -> None:
    band(draw, 0, 5, ground)
    band(draw, 1, 2, paper)
    band(draw, 3, 5, accent, (2, 4))


def shelf_tag(draw: Draw, ground: Colour, paper: Colour, accent: Colour) -> None:
    for column in range(0, CELLS, 2):
        band(draw, 0, 0, accent, (column, column + 1))
    band(draw, 1, 1, ground)


def note(draw: Draw, ground: Colour, paper: Colour, accent: Colour) -> None:
    line = mixed(paper, accent, FAINT / PALE)
    draw.rectangle((0, 2 * CELL - 4, SIDE - 1, 4 * CELL + 3), outline=line)


def page(draw: Draw, ground: Colour, paper: Colour, accent: Colour) -> None:
    """Nothing but the word, as in training."""


# Painter, and the rows of cells that a word may start in.
SCENES: dict[str, tuple[Paint, Sequence[int]]] = {
    "board": (board, (2,)),
    "screen": (screen, (2,)),
    "sign": (sign, (1,)),
    "shelf-tag": (shelf_tag, (3,)),
    "note": (note, (2,)),
    "page": (page, range(CELLS)),
}


def render(name: str, pair: str, words: Sequence[str]) -> tuple[list[Image.Image], Box]:
    """One RGB picture of 96 × 96 pixels for each word, alike but for the letters, and the box that these stand in.

    Colours, font, place and how each letter stands off its cell are drawn by the pair's name, the same for all words.
    """
    paint, starts = SCENES[name]
    draw = random.Random(f"embedded words {pair}")
    paper = background(draw)
    ground, accent = (mixed(paper, draw.choice(some), PALE) for some in (GROUNDS, ACCENTS))
    own, tall = hand(draw), max(rows(word) for word in words)
    row = draw.choice([start for start in starts if start + tall <= CELLS])
    pictures = []
    for word in words:
        picture = Image.new("RGB", (SIDE, SIDE), paper)
        paint(ImageDraw.Draw(picture), ground, paper, accent)
        write(picture, word, row, own, random.Random(f"letters {pair}"))
        pictures.append(picture)
    top, bottom = CELL * row - REACH, CELL * (row + tall) + REACH
    return pictures, (0, max(top, 0), SIDE, min(bottom, SIDE))


def mixed(colour: Colour, other: Colour, by: float) -> Colour:
    """The colour moved towards the other by a fraction of the way."""
    red, green, blue = (round(a + (b - a) * by) for a, b in zip(colour, other, strict=True))
    return red, green, blue
