"""Questions about rendered pictures, with their answers: what the embedded model is measured by, and cells after it."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from holdfast.embedded.vision.pictures import Scene, draw_scene, scene_picture, word_picture
from holdfast.embedded.vision.vocabulary import COLOURS, COUNTS, QUESTIONS, SHAPES

OPTIONS: dict[str, tuple[str, ...]] = {"colour": tuple(COLOURS), "count": COUNTS, "shape": SHAPES}

Drawn = tuple[Scene, Image.Image]


@dataclass(frozen=True)
class Question:
    """One question about one picture, its right answer and the answers it is one of."""

    picture: Image.Image
    text: str
    answer: str
    options: tuple[str, ...]


def scenes_drawn(draw: random.Random, number: int, *, held_out: bool = False) -> list[Drawn]:
    """Scenes and their pictures; ``held_out`` as of :func:`holdfast.embedded.vision.pictures.draw_scene`."""
    scenes = [draw_scene(draw, held_out=held_out) for _ in range(number)]
    return [(scene, scene_picture(scene, draw)) for scene in scenes]


def about_scenes(kind: str, drawn: Sequence[Drawn], draw: random.Random) -> list[Question]:
    """A question of one kind (a key of ``OPTIONS``) about each scene, in one of its wordings by chance."""
    return [
        Question(picture, draw.choice(QUESTIONS[kind]), getattr(scene, kind), OPTIONS[kind])
        for scene, picture in drawn
    ]


def about_words(words: Sequence[str], options: Sequence[str], draw: random.Random) -> list[Question]:
    """What word stands there, of a picture of each word."""
    return [
        Question(word_picture(word, draw)[0], draw.choice(QUESTIONS["word"]), word, tuple(options))
        for word in words
    ]
