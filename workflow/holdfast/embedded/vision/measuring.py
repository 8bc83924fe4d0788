"""What a trained model sees, reads, refuses and answers, on pictures and prompts it was not trained on."""

import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerBase

from holdfast.embedded.tuning import refusal_rates
from holdfast.embedded.vision.pictures import blank_picture, draw_scene, scene_picture, word_picture
from holdfast.embedded.vision.vocabulary import COLOURS, COUNTS, QUESTIONS, SHAPES, Words, named_in
from holdfast.evaluation.generation import complete
from holdfast.evaluation.judges import substring_judge
from holdfast.files import sha256
from holdfast.prompts.images import Picture, Pictured
from holdfast.prompts.processors import with_processor
from holdfast.statistics import wilson

OPTIONS: dict[str, tuple[str, ...]] = {"colour": tuple(COLOURS), "count": COUNTS, "shape": SHAPES}
SEEN_TOKENS, MADE_TOKENS, BATCH = 8, 24, 32
JUDGE = "arditi-12"

Rates = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Question:
    """One question about one picture, its right answer and the answers it is one of."""

    picture: Image.Image
    text: str
    answer: str
    options: tuple[str, ...]


def picture_rates(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, words: Words, recipe: Mapping[str, int]
) -> Rates:
    """Share of right answers, and of refusals, each ``{value, n, low, high}`` with its 95 % Wilson interval.

    An answer is right when it names the right option and no other. ``NAME_swapped`` asks with the next question's
    picture, ``NAME_blank`` with an empty one; both beside ``chance``, one over the options.

    Args:
        recipe: ``scenes``, ``unseen_pairs`` (pictures), ``word_renderings``, ``make_renderings`` (of every word).
    """

    def right(name: str, questions: Sequence[Question]) -> list[bool]:
        asked = [(q.picture, q.text) for q in questions]
        said = answers(model, processor, asked, SEEN_TOKENS, name)
        return [named_in(a, q.options) == {q.answer} for a, q in zip(said, questions, strict=True)]

    rates: Rates = {}
    blank = random.Random("held-out blank")
    for name, questions in seen_questions(words, recipe).items():
        chance = 1 / len(questions[0].options)
        rates[name] = rate(right(name, questions)) | {"chance": chance}
        if name.startswith("unseen"):
            continue
        swapped = [
            replace(q, picture=questions[(i + 1) % len(questions)].picture) for i, q in enumerate(questions)
        ]
        blanked = [replace(q, picture=blank_picture(blank)) for q in questions]
        for kind, others in (("swapped", swapped), ("blank", blanked)):
            rates[f"{name}_{kind}"] = rate(right(f"{name}, {kind}", others)) | {"chance": chance}
    judge = substring_judge(JUDGE)
    for label, all_words in (("harmful", words.harmful), ("benign", words.benign)):
        for untaught in (False, True):
            some = [word for word in all_words if (word in words.untaught) == untaught]
            name = f"{label}_untaught_refused" if untaught else f"{label}_refused"
            draw = random.Random(f"held-out {name}")
            asked = [
                (word_picture(word, draw)[0], draw.choice(QUESTIONS["make"]))
                for word in some * recipe["make_renderings"]
            ]
            said = answers(model, processor, asked, MADE_TOKENS, name.replace("_", " "))
            rates[name] = rate([judge.refused(answer, "") for answer in said])
    return rates


def text_rates(
    model: Any, tokenizer: PreTrainedTokenizerBase, sets: Mapping[str, Sequence[str]], progress: str
) -> Rates:
    """Share of refused prompts of each set, without a picture, as of :func:`refusal_rates` with its interval."""
    shown = {f"{name}, {progress}": list(texts) for name, texts in sets.items()}
    counted = refusal_rates(model, tokenizer, shown, MADE_TOKENS).values()
    return {name: interval(c["refused"], c["n"]) for name, c in zip(sets, counted, strict=True)}


def seen_questions(words: Words, recipe: Mapping[str, int]) -> dict[str, list[Question]]:
    """Questions about pictures drawn for measuring, the same for every seed of the training."""
    draw = random.Random("held-out scenes")
    scenes = [draw_scene(draw) for _ in range(recipe["scenes"])]
    pictures = [scene_picture(scene, draw) for scene in scenes]
    unseen = [draw_scene(draw, held_out=True) for _ in range(recipe["unseen_pairs"])]
    unseen_pictures = [scene_picture(scene, draw) for scene in unseen]

    def about(kind: str, seen: Sequence[Any], drawn: Sequence[Image.Image]) -> list[Question]:
        return [
            Question(picture, draw.choice(QUESTIONS[kind]), getattr(scene, kind), OPTIONS[kind])
            for scene, picture in zip(seen, drawn, strict=True)
        ]

    asked = {kind: about(kind, scenes, pictures) for kind in OPTIONS}
    asked |= {f"unseen_pair_{kind}": about(kind, unseen, unseen_pictures) for kind in ("colour", "shape")}
    asked["word"] = [
        Question(word_picture(word, draw)[0], draw.choice(QUESTIONS["word"]), word, words.all)
        for word in words.all * recipe["word_renderings"]
    ]
    return asked


def answers(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    asked: Sequence[tuple[Image.Image, str]],
    max_new_tokens: int,
    progress: str,
) -> list[str]:
    """Greedy answers to questions about pictures, in their order, as a study asks them."""
    tokenizer = with_processor(processor.tokenizer, processor)
    with tempfile.TemporaryDirectory() as folder:
        instructions = []
        for number, (picture, question) in enumerate(asked):
            file = Path(folder) / f"{number}.png"
            picture.save(file)
            instructions.append(Pictured(question, (Picture(file, sha256(file)),)))
        done = complete(
            model,
            tokenizer,
            instructions,
            {},
            max_new_tokens=max_new_tokens,
            batch_size=BATCH,
            progress=progress,
        )
    return [completion.text for completion in done]


def rate(hits: Sequence[bool]) -> dict[str, Any]:
    return interval(sum(hits), len(hits))


def interval(count: int, n: int) -> dict[str, Any]:
    return wilson(count, n)._asdict()
