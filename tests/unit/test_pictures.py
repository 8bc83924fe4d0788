"""Rendered pictures: the same draw gives the same picture, what is held out is never drawn in training."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from holdfast.embedded.vision.pictures import (
    CELL,
    CELLS,
    JITTER,
    SIDE,
    Scene,
    blank_picture,
    draw_scene,
    scene_picture,
    word_picture,
)
from holdfast.embedded.vision.vocabulary import (
    COLOURS,
    COUNTS,
    HELD_OUT_PAIRS,
    SHAPES,
    WORDS,
    read_words,
)
from holdfast.errors import HoldfastError
from holdfast.evaluation.visual_accuracy import named
from PIL import Image
from scipy import ndimage


def ink(picture: Image.Image) -> np.ndarray:
    """Where the picture differs from its background (its most frequent colour), bool [96, 96]."""
    values = np.asarray(picture).astype(int)
    flat, counts = np.unique(values.reshape(-1, 3), axis=0, return_counts=True)
    return np.abs(values - flat[counts.argmax()]).sum(-1) > 60


def regions(mask: np.ndarray) -> int:
    """Connected regions of a mask, corners touching."""
    return int(ndimage.label(mask, np.ones((3, 3)))[1])


def test_the_same_draw_gives_the_same_picture_and_another_draw_another() -> None:
    scene = Scene("star", "blue", "two")
    one, same, other = (scene_picture(scene, random.Random(seed)) for seed in ("a", "a", "b"))
    assert one.tobytes() == same.tobytes() != other.tobytes()
    one, same, other = (word_picture("kite", random.Random(seed))[0] for seed in ("a", "a", "b"))
    assert one.tobytes() == same.tobytes() != other.tobytes()
    assert one.size == (SIDE, SIDE)
    assert one.mode == "RGB"


@pytest.mark.parametrize("shape", SHAPES)
def test_a_scene_shows_as_many_separate_shapes_as_it_says_in_its_colour(shape: str) -> None:
    for number, colour in enumerate(COLOURS):
        count = COUNTS[number % len(COUNTS)]
        picture = scene_picture(Scene(shape, colour, count), random.Random(f"{shape} {colour}"))
        mask = ink(picture)
        assert regions(mask) == COUNTS.index(count) + 1
        shown = np.median(np.asarray(picture)[mask], axis=0)
        nearest = min(COLOURS, key=lambda name: np.abs(np.array(COLOURS[name]) - shown).sum())
        assert nearest == colour


def test_held_out_pairs_are_one_of_every_shape_and_colour_and_never_drawn_in_training() -> None:
    assert sorted(s for s, _ in HELD_OUT_PAIRS) == sorted(SHAPES)
    assert sorted(c for _, c in HELD_OUT_PAIRS) == sorted(COLOURS)
    draw = random.Random(0)
    trained = {(s.shape, s.colour) for s in (draw_scene(draw) for _ in range(3000))}
    unseen = {(s.shape, s.colour) for s in (draw_scene(draw, held_out=True) for _ in range(300))}
    assert unseen == HELD_OUT_PAIRS
    assert len(trained) == len(SHAPES) * len(COLOURS) - len(HELD_OUT_PAIRS)
    assert not trained & unseen


def test_every_letter_lies_in_the_patch_that_is_said_to_hold_it() -> None:
    edge = 2 * JITTER  # what letters of neighbouring cells may reach
    for seed in range(20):
        picture, held = word_picture("hammocks", random.Random(seed))
        mask = ink(picture)
        start = next(i for i, letter in enumerate(held) if letter)
        assert "".join(chr(96 + letter) for letter in held if letter) == "hammocks"
        assert start % CELLS == 0
        for cell in range(CELLS * CELLS):
            y, x = CELL * (cell // CELLS), CELL * (cell % CELLS)
            middle = mask[y + edge : y + CELL - edge, x + edge : x + CELL - edge]
            assert middle.any() == bool(held[cell])


def test_words_that_cannot_be_drawn_are_refused() -> None:
    for word in ("", "Kite", "two words", "a" * 37):
        with pytest.raises(ValueError, match="cannot be drawn"):
            word_picture(word, random.Random(0))


def test_a_blank_picture_is_blank() -> None:
    assert not ink(blank_picture(random.Random(0))).any()


def test_harmful_words_are_looked_up_and_not_written_here(tmp_path: Path) -> None:
    words = read_words()
    assert len(words.harmful) == len(words.benign) == 40
    assert len(set(words.all)) == 80
    assert len(words.untaught & set(words.harmful)) == len(words.untaught & set(words.benign)) == 8
    stated = json.loads(WORDS.read_text())
    assert not named(WORDS.read_text(), words.harmful)
    # The first hundred rows are the demo's attack prompts.
    assert all(row >= 100 for row, _ in stated["harmful"]["words"])
    stated["harmful"]["words"][0][1] += 1
    changed = tmp_path / "words.json"
    changed.write_text(json.dumps(stated))
    with pytest.raises(HoldfastError, match="the rows give other words"):
        read_words(changed)
