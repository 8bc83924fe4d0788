"""Scenes that hold a text: a note on a desk, a label on a bottle, a message on a phone.

A scene is drawn once for a pair; only the box of its decisive element, the text, differs between the halves.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from holdfast.errors import HoldfastError
from holdfast.pairs.drawing import SIDE, Box, Colour, draw_text, fitting_size, font

Draw = ImageDraw.ImageDraw

INK: Colour = (32, 32, 36)
WHITE: Colour = (252, 252, 250)
# Walls, desks and covers; which one a pair has is chosen by its name, the same for both halves.
GROUNDS: list[Colour] = [(196, 208, 216), (214, 204, 186), (190, 206, 188), (206, 194, 210), (216, 196, 190)]
ACCENTS: list[Colour] = [(38, 84, 124), (140, 62, 40), (52, 104, 66), (98, 60, 118), (120, 92, 24)]


@dataclass(frozen=True)
class Look:
    """The colours of one picture."""

    ground: Colour
    accent: Colour


@dataclass(frozen=True)
class Scene:
    """A drawing with room for a text.

    Attributes:
        paint: draws everything but the text.
        box: where the text stands, in pixels: left, top, right, bottom.
        face: the DejaVu font of the text.
        ink: the colour of the text.
        largest: largest height of a letter, in pixels.
        centred: whether the text stands in the middle of its box.
        below: lines under the text, part of what is drawn.
    """

    paint: Callable[[Draw, Look], None]
    box: Box
    face: str
    ink: Colour = INK
    largest: int = 44
    centred: bool = True
    below: Sequence[str] = ()


def look_of(pair: str) -> Look:
    """The colours of a pair, by its name: no seed, and no other pair, changes them."""
    digest = hashlib.sha256(pair.encode()).digest()
    return Look(GROUNDS[digest[0] % len(GROUNDS)], ACCENTS[digest[1] % len(ACCENTS)])


def render(name: str, pair: str, texts: Sequence[str]) -> list[Image.Image]:
    """One RGB picture of SIDE × SIDE pixels for each text, alike but for the text in the scene's box.

    Raises HoldfastError for an unknown scene and for a text that does not fit into it.
    """
    if name not in SCENES:
        raise HoldfastError(f"unknown scene {name}", pair, f"use one of {', '.join(SCENES)}")
    scene = SCENES[name]
    try:
        size = fitting_size(texts, scene.box, scene.face, scene.largest, len(scene.below))
    except HoldfastError as error:
        raise HoldfastError(error.what, f"{pair} ({name})", error.remedy) from None
    look = look_of(pair)
    pictures = []
    for text in texts:
        picture = Image.new("RGB", (SIDE, SIDE), look.ground)
        draw = ImageDraw.Draw(picture)
        scene.paint(draw, look)
        draw_text(
            draw,
            text,
            scene.box,
            scene.face,
            size,
            scene.ink,
            centred=scene.centred,
            below=scene.below,
        )
        pictures.append(picture)
    return pictures


def caption(
    draw: Draw, place: tuple[int, int], text: str, size: int, ink: Colour, face: str = "Sans"
) -> None:
    draw.text(place, text, fill=ink, font=font(face, size))


def lighter(colour: Colour, by: float) -> Colour:
    """The colour moved towards white by a fraction of the way."""
    red, green, blue = (round(part + (255 - part) * by) for part in colour)
    return red, green, blue


def sticky_note(draw: Draw, look: Look) -> None:
    draw.rectangle((0, 0, SIDE, 70), fill=lighter(look.accent, 0.55))
    draw.polygon([(84, 92), (448, 92), (448, 452), (84, 452)], fill=(150, 146, 130))
    draw.polygon([(72, 80), (436, 80), (436, 440), (72, 440)], fill=(250, 232, 120))
    draw.ellipse((244, 66, 268, 90), fill=(190, 40, 40))


def whiteboard(draw: Draw, look: Look) -> None:
    draw.rectangle((28, 44, 484, 420), fill=(140, 144, 150))
    draw.rectangle((40, 56, 472, 408), fill=WHITE)
    draw.rectangle((120, 420, 392, 436), fill=(110, 114, 120))
    for place, colour in ((150, look.accent), (220, (180, 40, 40)), (290, INK)):
        draw.rectangle((place, 412, place + 50, 422), fill=colour)


def chalkboard(draw: Draw, look: Look) -> None:
    draw.rectangle((24, 40, 488, 430), fill=(122, 84, 48))
    draw.rectangle((40, 56, 472, 414), fill=(38, 62, 52))
    draw.rectangle((60, 430, 200, 442), fill=look.accent)
    draw.rectangle((220, 432, 260, 440), fill=WHITE)


def phone_message(draw: Draw, look: Look) -> None:
    draw.rounded_rectangle((70, 12, 442, 500), radius=34, fill=(28, 28, 32))
    draw.rectangle((84, 50, 428, 462), fill=(238, 240, 244))
    draw.rectangle((84, 50, 428, 96), fill=look.accent)
    caption(draw, (100, 60), "Messages", 24, WHITE, "Sans-Bold")
    draw.rounded_rectangle((94, 108, 418, 410), radius=18, fill=WHITE, outline=(200, 204, 210), width=2)
    draw.rounded_rectangle((94, 422, 418, 452), radius=14, fill=WHITE, outline=(200, 204, 210), width=2)
    caption(draw, (106, 426), "Answer …", 18, (140, 144, 150))
    draw.ellipse((246, 470, 266, 490), outline=(110, 110, 118), width=3)


def computer_window(draw: Draw, look: Look) -> None:
    draw.rectangle((30, 40, 482, 440), fill=(60, 62, 68))
    draw.rectangle((44, 54, 468, 426), fill=WHITE)
    draw.rectangle((44, 54, 468, 92), fill=look.accent)
    caption(draw, (58, 62), "New request", 20, WHITE)
    for place in (380, 408, 436):
        draw.rectangle((place, 64, place + 18, 82), outline=WHITE, width=2)
    draw.rectangle((220, 440, 292, 476), fill=(84, 86, 92))
    draw.rectangle((160, 476, 352, 490), fill=(60, 62, 68))
    draw.rectangle((370, 384, 452, 414), fill=(226, 228, 232), outline=(150, 152, 158))
    caption(draw, (389, 388), "Send", 18, INK)


def form(draw: Draw, look: Look) -> None:
    draw.rectangle((46, 20, 466, 492), fill=WHITE, outline=(150, 150, 156), width=2)
    caption(draw, (70, 38), "REQUEST FORM", 28, look.accent, "Sans-Bold")
    for top, name in ((82, "Date"), (112, "Room")):
        caption(draw, (70, top), name, 18, INK)
        draw.line((150, top + 22, 440, top + 22), fill=(150, 150, 156), width=1)
    caption(draw, (70, 146), "What is requested:", 18, INK)
    draw.rectangle((64, 172, 448, 430), outline=look.accent, width=2)
    caption(draw, (70, 452), "Signature", 18, INK)
    draw.line((170, 474, 440, 474), fill=(150, 150, 156), width=1)


def poster(draw: Draw, look: Look) -> None:
    draw.rectangle((60, 30, 452, 482), fill=lighter(look.accent, 0.86))
    draw.rectangle((60, 30, 452, 96), fill=look.accent)
    caption(draw, (84, 44), "NOTICE BOARD", 32, WHITE, "Sans-Bold")
    draw.rectangle((60, 452, 452, 482), fill=look.accent)
    for corner in ((66, 36), (436, 36), (66, 466), (436, 466)):
        draw.ellipse((*corner, corner[0] + 10, corner[1] + 10), fill=(200, 200, 204))


def typed_letter(draw: Draw, look: Look) -> None:
    draw.rectangle((56, 24, 468, 496), fill=(150, 146, 140))
    draw.rectangle((48, 16, 460, 488), fill=WHITE)
    draw.rectangle((76, 40, 176, 50), fill=look.accent)
    caption(draw, (76, 66), "To whom it may concern,", 20, INK, "Serif")
    caption(draw, (76, 420), "Kind regards", 20, INK, "Serif")
    draw.line((76, 466, 210, 460), fill=look.accent, width=3)


def bottle_label(draw: Draw, look: Look) -> None:
    draw.rectangle((0, 440, SIDE, SIDE), fill=lighter(look.accent, 0.4))
    draw.rectangle((216, 14, 296, 60), fill=(60, 60, 64))
    draw.rectangle((226, 60, 286, 120), fill=(116, 150, 132))
    draw.rounded_rectangle((106, 110, 406, 478), radius=40, fill=(116, 150, 132))
    draw.rectangle((106, 190, 406, 410), fill=WHITE)
    draw.rectangle((106, 190, 406, 200), fill=look.accent)
    draw.rectangle((106, 400, 406, 410), fill=look.accent)


def shelf_tag(draw: Draw, look: Look) -> None:
    for top in (60, 168):
        draw.rectangle((0, top, SIDE, top + 18), fill=(120, 92, 62))
    for number in range(6):
        left = 20 + number * 82
        draw.rectangle((left, 82, left + 64, 168), fill=lighter(look.accent, 0.1 * number))
    draw.rectangle((40, 210, 472, 452), fill=(70, 70, 74))
    draw.rectangle((50, 220, 462, 442), fill=WHITE)
    draw.rectangle((50, 220, 462, 256), fill=look.accent)
    caption(draw, (64, 226), "Shelf 4", 20, WHITE, "Sans-Bold")
    for number in range(24):
        draw.rectangle((64 + number * 6, 414, 64 + number * 6 + (2 if number % 3 else 4), 436), fill=INK)


def parcel_label(draw: Draw, look: Look) -> None:
    draw.rectangle((30, 60, 482, 480), fill=(190, 150, 104))
    draw.rectangle((236, 60, 276, 480), fill=(210, 180, 140))
    draw.rectangle((70, 150, 442, 430), fill=WHITE, outline=(120, 120, 124), width=2)
    caption(draw, (86, 162), "CONTENTS", 22, look.accent, "Sans-Bold")
    draw.line((86, 194, 426, 194), fill=look.accent, width=2)
    for top in (100, 110, 120):
        draw.line((320, top, 450, top), fill=(110, 84, 52), width=3)


def book_cover(draw: Draw, look: Look) -> None:
    draw.rectangle((112, 34, 424, 486), fill=(90, 84, 76))
    draw.rectangle((100, 24, 412, 476), fill=look.accent)
    draw.rectangle((100, 24, 124, 476), fill=lighter(look.accent, 0.25))
    draw.rectangle((140, 60, 396, 440), fill=lighter(look.accent, 0.88))
    draw.rectangle((150, 70, 386, 430), outline=look.accent, width=2)


def door_sign(draw: Draw, look: Look) -> None:
    draw.rectangle((40, 0, 472, SIDE), fill=(164, 122, 84))
    draw.rectangle((60, 0, 452, SIDE), outline=(130, 94, 62), width=4)
    draw.ellipse((410, 420, 446, 456), fill=(200, 190, 150))
    draw.rectangle((90, 90, 422, 380), fill=WHITE, outline=look.accent, width=6)


def typographic(draw: Draw, look: Look) -> None:
    """A bare page in the manner of FigStep (Gong et al. 2023): nothing but the text and an empty list."""
    draw.rectangle((0, 0, SIDE, SIDE), fill=WHITE)


SCENES: dict[str, Scene] = {
    "sticky-note": Scene(sticky_note, (92, 100, 418, 428), "Sans-Oblique"),
    "whiteboard": Scene(whiteboard, (60, 72, 454, 394), "Sans-Oblique", ink=(24, 56, 130)),
    "chalkboard": Scene(chalkboard, (60, 76, 454, 398), "Sans", ink=(236, 240, 232)),
    "phone-message": Scene(phone_message, (108, 120, 406, 402), "Sans", largest=34, centred=False),
    "computer-window": Scene(computer_window, (62, 106, 452, 376), "SansMono", largest=32, centred=False),
    "form": Scene(form, (78, 182, 436, 422), "Sans-Oblique", ink=(24, 56, 130), largest=34, centred=False),
    "poster": Scene(poster, (80, 112, 432, 440), "Sans-Bold"),
    "typed-letter": Scene(typed_letter, (76, 108, 436, 404), "Serif", largest=32, centred=False),
    "bottle-label": Scene(bottle_label, (120, 208, 394, 394), "Serif-Bold", largest=48),
    "shelf-tag": Scene(shelf_tag, (64, 264, 450, 408), "Sans-Bold", largest=48),
    "parcel-label": Scene(parcel_label, (86, 204, 428, 420), "SansMono-Bold", largest=44),
    "book-cover": Scene(book_cover, (160, 84, 378, 416), "Serif-Bold", largest=40),
    "door-sign": Scene(door_sign, (108, 108, 404, 364), "Sans-Bold", largest=40),
    "typographic": Scene(
        typographic, (28, 28, 484, 484), "Sans-Bold", largest=44, centred=False, below=("1.", "2.", "3.")
    ),
}
