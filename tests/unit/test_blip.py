"""BLIP, which answers questions about images: answers and compression, and the stages that it is not for."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from holdfast.architectures import part_linears
from holdfast.checkpoints import load_model, load_tokenizer
from holdfast.compression import compress
from holdfast.errors import HoldfastError
from holdfast.evaluation.generation import Transformers, generate
from holdfast.evaluation.shown import Question
from holdfast.prompts.images import instruction
from holdfast.refusal.activations import cache_activations
from vlms import picture, records, tiny_blip

RECIPE = {"max_new_tokens": 6, "batch_size": 4}
QUESTIONS = (
    "What is it?",
    "Who is there?",
    "How many boats are there in all?",
    "What is it?",
    "Is the sky blue?",
)


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_blip(tmp_path_factory.mktemp("blip") / "model")


def questions(folder: Path) -> Path:
    lines = [
        {"id": f"q{i}", "text": text, "images": [picture(folder / "images" / f"{i}.png", i)]}
        for i, text in enumerate(QUESTIONS)
    ]
    (folder / "asked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "asked.jsonl"


def test_batched_answers_are_transformers_own_one_by_one(blip: Path, tmp_path: Path) -> None:
    asked = questions(tmp_path)
    generate(blip, tmp_path / "out", {"asked": asked}, RECIPE)
    found = [json.loads(line) for line in (tmp_path / "out/asked.jsonl").read_text().splitlines()]
    model: Any = load_model(blip)
    assert type(model).__name__ == "BlipForQuestionAnswering"
    processor, end = load_tokenizer(blip).processor, load_tokenizer(blip).sep_token_id
    for record, answer in zip(
        (json.loads(line) for line in asked.read_text().splitlines()), found, strict=True
    ):
        pictured: Any = instruction(record, tmp_path)
        inputs = processor(images=pictured.pictures[0].load(), text=record["text"], return_tensors="pt")
        row = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, 1:].tolist()
        assert answer["tokens"] == (row[: row.index(end)] if end in row else row)
    assert len({tuple(answer["tokens"]) for answer in found}) > 1


def test_the_image_is_looked_at(blip: Path, tmp_path: Path) -> None:
    backend = Transformers(load_model(blip), Question(load_tokenizer(blip), {}))
    asked = [
        instruction(
            {"text": "What is it?", "images": [picture(tmp_path / "images" / f"{i}.png", i)]}, tmp_path
        )
        for i in range(6)
    ]
    assert len({tuple(c.tokens) for c in backend.answer(asked, 6)}) > 1


@pytest.mark.parametrize(
    "recipe", [{"prune": "magnitude", "sparsity": 0.5}, {"quantize": "rtn", "bits": 4, "group_size": 32}]
)
def test_it_is_compressed_without_calibration(blip: Path, tmp_path: Path, recipe: dict[str, Any]) -> None:
    compress(blip, tmp_path / "out", {**recipe, "parts": ["language", "vision"]})
    dense, model = load_model(blip), load_model(tmp_path / "out")
    linears = part_linears(dense, ["language", "vision"])
    assert {name.partition(".")[0] for name in linears} == {"text_encoder", "text_decoder", "vision_model"}
    for name, parameter in dense.named_parameters():
        same = torch.equal(parameter, model.get_parameter(name))
        assert same == (name.removesuffix(".weight") not in linears), name
    generate(tmp_path / "out", tmp_path / "answers", {"asked": questions(tmp_path)}, RECIPE)


def told(error: pytest.ExceptionInfo[HoldfastError], words: str) -> None:
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_stages_that_are_not_for_it(blip: Path, tmp_path: Path) -> None:
    asked = questions(tmp_path)
    with pytest.raises(HoldfastError) as raised:
        cache_activations(blip, tmp_path / "activations", asked, asked, {})
    told(raised, "an encoder-decoder that answers questions has no chat")
    with pytest.raises(HoldfastError) as raised:
        compress(blip, tmp_path / "wanda", {"prune": "wanda", "sparsity": 0.5}, asked)
    told(raised, "wanda goes through one language model")
    with pytest.raises(HoldfastError) as raised:
        generate(blip, tmp_path / "out", {"asked": asked}, {**RECIPE, "prefix": "Sure"})
    told(raised, "takes no prefix")
    with pytest.raises(HoldfastError) as raised:
        generate(blip, tmp_path / "out", {"asked": records(tmp_path, "text", 2, images=False)}, RECIPE)
    told(raised, "a question without one image")
