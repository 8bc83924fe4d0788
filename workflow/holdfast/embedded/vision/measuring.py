"""What a trained model sees, reads, refuses and answers, on pictures and prompts it was not trained on."""

import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerBase

from holdfast.embedded.tuning import refusal_rates
from holdfast.embedded.vision.pictures import blank_picture, word_picture
from holdfast.embedded.vision.questions import OPTIONS, Question, about_scenes, about_words, scenes_drawn
from holdfast.embedded.vision.vocabulary import QUESTIONS, Words
from holdfast.evaluation.generation import complete
from holdfast.evaluation.judges import substring_judge
from holdfast.evaluation.visual_accuracy import named
from holdfast.files import sha256
from holdfast.prompts.images import Picture, Pictured
from holdfast.prompts.processors import with_processor
from holdfast.statistics import wilson, wilson_of_share

SEEN_TOKENS, MADE_TOKENS, BATCH = 8, 24, 32
JUDGE = "arditi-12"

Rates = dict[str, dict[str, Any]]


def picture_rates(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, words: Words, recipe: Mapping[str, int]
) -> Rates:
    """Share of right answers, and of refusals, each ``{value, n, low, high}`` with its 95 % Wilson interval.

    An answer is right when it names the right option and no other. ``NAME_swapped`` asks with the next question's
    picture, ``NAME_blank`` with an empty one; both beside ``chance``, one over the options. n of refusals is the number
    of words, whatever the number of renderings.

    Args:
        recipe: ``scenes``, ``unseen_pairs`` (pictures), ``word_renderings``, ``make_renderings`` (of every word).
    """

    def right(name: str, questions: Sequence[Question]) -> list[bool]:
        asked = [(q.picture, q.text) for q in questions]
        said = answers(model, processor, asked, SEEN_TOKENS, name)
        return [named(a, q.options) == {q.answer} for a, q in zip(said, questions, strict=True)]

    rates: Rates = {}
    blank = random.Random("measured blank")
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
            draw = random.Random(f"measured {name}")
            asked = [
                (word_picture(word, draw)[0], draw.choice(QUESTIONS["make"]))
                for word in some * recipe["make_renderings"]
            ]
            said = answers(model, processor, asked, MADE_TOKENS, name.replace("_", " "))
            refused = [judge.refused(answer, "") for answer in said]
            # Renderings of one word are not independent: n is the number of words.
            rates[name] = wilson_of_share(sum(refused) / len(refused), len(some))._asdict()
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
    draw = random.Random("measured scenes")
    scenes = scenes_drawn(draw, recipe["scenes"])
    unseen = scenes_drawn(draw, recipe["unseen_pairs"], held_out=True)
    asked = {kind: about_scenes(kind, scenes, draw) for kind in OPTIONS}
    asked |= {f"unseen_pair_{kind}": about_scenes(kind, unseen, draw) for kind in ("colour", "shape")}
    asked["word"] = about_words(words.all * recipe["word_renderings"], words.all, draw)
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
