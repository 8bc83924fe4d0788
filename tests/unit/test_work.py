"""How much stages have to do, counted by hand from a study's numbers."""

from pathlib import Path

import pytest
from holdfast.cluster.sizes import Size, size_of
from holdfast.cluster.work import COUNTERS, Work
from holdfast.config import Study, load_study
from real_configs import REAL

VISION = Path(__file__).parents[2] / "config/vision.yaml"
QUESTION = 48  # tokens of a chat prompt
PICTURE = 24 * 24  # tokens of LLaVA 1.5's pictures
IMAGES = 2 * (150 + 44)  # halves of VLMSafe-420's pairs that have one
PAIRS = IMAGES + 2 * 226


@pytest.fixture(scope="module")
def vision() -> Study:
    """Study V: 256 new tokens, 500 questions about images, directions learnt on 128 prompts of each kind and tried with
    8 nulls of either kind on 32 pairs of each modality."""
    return load_study(VISION)


@pytest.fixture(scope="module")
def llava() -> Size:
    return size_of(REAL["llava-1.5-7b"][1])


@pytest.mark.parametrize(
    ("stage", "prompts", "images", "new_tokens"),
    [
        ("answer_pairs", PAIRS, IMAGES, 256),
        ("answer_visual", 500, 500, 256),
        ("image_use", 4 * IMAGES, 4 * IMAGES, 0),
        ("modalities", 2 * 3 * (128 + 19 * 32), 2 * 2 * (128 + 19 * 32), 0),
    ],
)
def test_tokens_of_images_count(
    stage: str, prompts: int, images: int, new_tokens: int, vision: Study, llava: Size
) -> None:
    work = COUNTERS[stage](vision, {"model": "llava-1.5-7b"}, llava)
    assert work.tokens == prompts * (QUESTION + new_tokens) + images * PICTURE
    assert work.context == QUESTION + PICTURE + new_tokens
    assert work.answers == (prompts if new_tokens else 0)


def test_pairs_are_as_many_as_the_study_takes(vision: Study, llava: Size) -> None:
    def work(**pairs: object) -> Work:
        section = vision.pairs.model_copy(update=pairs)  # type: ignore[union-attr]
        return COUNTERS["answer_pairs"](vision.model_copy(update={"pairs": section}), {}, llava)

    assert work(limit=100).answers == 2 * (100 + 100 + 44)
    assert work(modality=["text"]).answers == 2 * 226
    assert work(modality=["text"]).context == QUESTION + 256
