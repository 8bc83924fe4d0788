"""How much stages have to do, counted by hand from a study's numbers."""

from typing import Any

import pytest
from asked import CELL, OF_RULE, REFUSAL
from holdfast.cluster.sizes import Size, size_of
from holdfast.cluster.work import COUNTERS, Work, prompts
from holdfast.config import Study, load_study
from real_configs import LLAMA_2_7B, REAL

QUESTION, VERIFIED, NEW = 48, 16, 512  # tokens of a chat prompt, of an answer that verifies, of an answer
# Study L: 128 harmful and as many harmless prompts to learn on, 32 and 32 to validate on, 100 and 100 to answer.
TRAIN, VALIDATION, ASKED = 2 * 128, 2 * 32, 200
LAYERS = 32  # of Llama 2 7B
CANDIDATES = 6 * 26  # post-instruction tokens × layers without the last 20 %
EDITS = 5 * LAYERS * 3  # variants × layers × strengths
# Directions of a transfer: none, own, other's; of mediation: none, ablated, added ... and nulls.
TRIED = 2 * (2 + 3 * 8)
CONDITIONS = (4 + 2 * 5) + (2 + 5)
TASKS = (  # questions × choices × tokens of a question with a choice
    3270 * 2 * 140  # BoolQ
    + 277 * 2 * 90  # RTE
    + 10042 * 4 * 100  # HellaSwag
    + 1267 * 2 * 30  # WinoGrande
    + 1172 * 4 * 40  # ARC-challenge
    + 500 * 4 * 25  # OpenBookQA
)
WIKITEXT = 340_000  # tokens of its test set


@pytest.fixture(scope="module")
def study() -> Study:
    return load_study(REFUSAL)


@pytest.fixture(scope="module")
def size() -> Size:
    return size_of(LLAMA_2_7B)


@pytest.mark.parametrize(
    ("stage", "names", "tokens", "answers"),
    [
        ("activations", {}, TRAIN * QUESTION, 0),
        (
            "direction",
            {},
            VALIDATION * (5 * QUESTION + VERIFIED + CANDIDATES * 8) + 2 * TRAIN * QUESTION,
            VALIDATION,
        ),
        ("transfer", {}, TRIED * VALIDATION * QUESTION, 0),
        ("mediate", {}, CONDITIONS * 100 * (QUESTION + 64), CONDITIONS * 100),
        ("mediate", {"compression": "dense"}, 14 * 100 * (QUESTION + 64), 14 * 100),
        (
            "edit",
            {},
            128 * QUESTION + VALIDATION * (2 * QUESTION + EDITS * 8 + 5 * (QUESTION + VERIFIED)),
            5 * VALIDATION,
        ),
        ("edit", {"method": "random-edit"}, 128 * QUESTION, 0),
        ("steer", {}, 4 * VALIDATION * (2 * QUESTION + VERIFIED), 4 * VALIDATION),
        ("steer", {"method": "steer-random"}, 0, 0),
        ("compress", {}, 2 * 128 * 2048, 0),
        ("compress", {"compression": "rtn-w4"}, 0, 0),
        ("recalibrate", {}, 2 * 128 * 2048, 0),
        ("tune", {}, 3 * 50 * 8 * (QUESTION + NEW), 0),
        ("training_answers", {}, TRAIN * (QUESTION + NEW), TRAIN),
        ("generate", {}, ASKED * (QUESTION + NEW), ASKED),
        ("attack", {"attack": "opening"}, 100 * (QUESTION + NEW), 100),
        ("attack", {"attack": "drawn"}, 5 * 100 * (QUESTION + NEW), 5 * 100),
        ("attack", {"attack": "system-prompt-on"}, 100 * (QUESTION + 28 // 4 + NEW), 100),
        ("borderline", {}, 250 * (QUESTION + NEW), 250),
        ("ability", {}, TASKS + WIKITEXT, 0),
        ("judge_by_model", {}, ASKED * (QUESTION + NEW + 400 + 20), ASKED),
        ("judge_attack_by_model", {}, 5 * 100 * (QUESTION + NEW + 400 + 20), 5 * 100),
        ("fetch", {}, 0, 0),
        ("instruct", {}, 0, 0),
    ],
)
def test_the_work_of_study_l(
    stage: str, names: dict[str, str], tokens: int, answers: int, study: Study, size: Size
) -> None:
    work = COUNTERS[stage](study, OF_RULE.get(stage, CELL) | names, size)
    assert (work.tokens, work.answers) == (tokens, answers)


def test_the_longest_sequences_of_study_l(study: Study, size: Size) -> None:
    longest = {"ability": 2048, "generate": QUESTION + NEW, "tune": QUESTION + NEW, "compress": 2048}
    longest |= {
        "judge_by_model": QUESTION + NEW + 400 + 20,
        "mediate": QUESTION + 64,
        "activations": QUESTION,
    }
    found = {stage: COUNTERS[stage](study, OF_RULE.get(stage, CELL), size).context for stage in longest}
    assert found == longest


def evaluated(study: Study, section: str, **changes: Any) -> Study:
    """The study with other settings of an evaluation."""
    changed = getattr(study.evaluate, section).model_copy(update=changes)
    return study.model_copy(update={"evaluate": study.evaluate.model_copy(update={section: changed})})


def test_fewer_questions_and_another_window_of_text_are_counted(study: Study, size: Size) -> None:
    few = evaluated(study, "zero_shot", limit=10)
    assert COUNTERS["ability"](few, CELL, size).tokens - WIKITEXT == 10 * (280 + 180 + 400 + 60 + 160 + 100)
    own = evaluated(study, "perplexity", window="model", windows=10)
    work = COUNTERS["ability"](own, CELL, size)
    assert (work.tokens, work.context) == (TASKS + 10 * 4096, 4096)


@pytest.mark.parametrize(
    ("selected", "number"),
    [
        ({"rows": "100:228"}, 128),
        ({"rows": ":30", "limit": 20}, 20),
        ({"rows": "10:30", "limit": 100}, 20),
        ({"rows": "10:"}, 250),
        ({"rows": "-20:-10"}, 250),
        ({"limit": 70}, 70),
        ({}, 250),
    ],
)
def test_prompts_are_as_many_as_the_study_selects(selected: Any, number: int, study: Study) -> None:
    attack = study.prompts.attack.model_copy(update={"rows": None, "limit": None} | selected)
    changed = study.model_copy(update={"prompts": study.prompts.model_copy(update={"attack": attack})})
    assert prompts(changed, "attack") == number


PICTURE = 24 * 24  # tokens of LLaVA 1.5's pictures
IMAGES = 2 * (150 + 44)  # halves of VLMSafe-420's pairs that have one
PAIRS = IMAGES + 2 * 226


@pytest.fixture(scope="module")
def vision() -> Study:
    """Study V: 256 new tokens, 500 questions about images, directions learnt on 128 prompts of each kind and tried with
    8 nulls of either kind on 32 pairs of each modality."""
    return load_study(REFUSAL.with_name("vision.yaml"))


@pytest.fixture(scope="module")
def llava() -> Size:
    return size_of(REAL["llava-1.5-7b"][1])


@pytest.mark.parametrize(
    ("stage", "shown", "images", "new_tokens"),
    [
        ("answer_pairs", PAIRS, IMAGES, 256),
        ("answer_visual", 500, 500, 256),
        ("image_use", 4 * IMAGES, 4 * IMAGES, 0),
        ("modalities", 2 * 3 * (128 + 19 * 32), 2 * 2 * (128 + 19 * 32), 0),
    ],
)
def test_tokens_of_images_count(
    stage: str, shown: int, images: int, new_tokens: int, vision: Study, llava: Size
) -> None:
    work = COUNTERS[stage](vision, {"model": "llava-1.5-7b"}, llava)
    assert work.tokens == shown * (QUESTION + new_tokens) + images * PICTURE
    assert work.context == QUESTION + PICTURE + new_tokens
    assert work.answers == (shown if new_tokens else 0)


def test_pairs_are_as_many_as_the_study_takes(vision: Study, llava: Size) -> None:
    def work(**pairs: Any) -> Work:
        assert vision.pairs
        section = vision.pairs.model_copy(update=pairs)
        return COUNTERS["answer_pairs"](vision.model_copy(update={"pairs": section}), {}, llava)

    assert work(limit=100).answers == 2 * (100 + 100 + 44)
    assert work(modality=["text"]).answers == 2 * 226
    assert work(modality=["text"]).context == QUESTION + 256
