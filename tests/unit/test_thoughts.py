"""Answers of thinking models: the thought stands apart, an answer cut inside it is unfinished."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_templates import FAMILIES
from holdfast.checkpoints import load_model
from holdfast.errors import HoldfastError
from holdfast.evaluation.generation import Completion, Transformers, generate_files
from holdfast.evaluation.judges import judge_files
from holdfast.evaluation.shown import Chat
from holdfast.evaluation.thoughts import apart, unfinished
from holdfast.files import read_jsonl, write_jsonl
from holdfast.prompts.templates import answer_opening, render, thought_delimiters
from holdfast.repair.measuring import SETS, measured
from tiny import tiny_llama
from transformers import LogitsProcessor, LogitsProcessorList

THOUGHT, ANSWER = "They ask for bread.", "Mix flour and water."
# What the model writes, by family: Qwen3 opens its thought itself, the template of later ones has opened it.
WHOLE = {
    "qwen3-thinking": f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}",
    "qwen3-thinking-2507": f"{THOUGHT}\n</think>\n\n{ANSWER}",
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_thought_stands_apart_from_the_answer(name: str) -> None:
    family = FAMILIES[name]
    thought = thought_delimiters(family.tokenizer(), family.settings())
    assert thought is not None
    assert apart(WHOLE[name], thought) == (THOUGHT, ANSWER)
    assert apart(WHOLE[name].partition("bread")[0], thought) == ("They ask for", "")
    assert apart(WHOLE[name].partition(ANSWER)[0], thought) == (THOUGHT, "")
    # A model that the prompt left to open its thought may also answer at once.
    assert apart(ANSWER, thought) == ((None, ANSWER) if not thought.begun else (ANSWER, ""))


def test_with_thinking_off_there_is_only_an_answer() -> None:
    family = FAMILIES["qwen3-not-thinking"]
    thought = thought_delimiters(family.tokenizer(), family.settings())
    assert thought is not None
    assert apart(ANSWER, thought) == (None, ANSWER)
    stray = f"{ANSWER} </think>"
    assert apart(stray, thought) == (None, stray)  # a slip of the model's, no thought
    assert apart(WHOLE["qwen3-thinking"], thought) == (THOUGHT, ANSWER)  # it thinks all the same


def test_an_opening_mark_that_was_left_out_is_no_matter() -> None:
    family = FAMILIES["qwen3"]
    thought = thought_delimiters(family.tokenizer(), family.settings())
    assert thought is not None
    assert apart(WHOLE["qwen3-thinking-2507"], thought) == (THOUGHT, ANSWER)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"completion": "", "thought": "They", "finish_reason": "length"}, True),
        ({"completion": "", "thought": "They", "finish_reason": "stop"}, False),  # it ended there by itself
        ({"completion": "Mix", "thought": "They", "finish_reason": "length"}, False),
        ({"completion": "", "finish_reason": "length"}, False),
    ],
)
def test_unfinished_is_what_the_limit_cut_before_the_answer(record: dict[str, Any], expected: bool) -> None:
    assert unfinished(record) is expected


class Says(LogitsProcessor):
    """Makes a model write given tokens after its prompt."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens, self.start = tokens, 0

    def processors(self, seeds: Sequence[int]) -> LogitsProcessorList:
        self.start = 0
        return LogitsProcessorList([self])

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.start = self.start or input_ids.shape[1]
        wanted = self.tokens[input_ids.shape[1] - self.start]
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([wanted]), 0.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> torch.nn.Module:
    return load_model(tiny_llama(tmp_path_factory.mktemp("model") / "tiny"))


def said(
    model: torch.nn.Module, name: str, text: str, limit: int, suffix: str | None = None
) -> tuple[Transformers, list[Completion]]:
    """What a tiny model answers that is made to write ``text`` and end, as the family's template and tokens have it."""
    family = FAMILIES[name]
    tokenizer = family.tokenizer()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    tokenizer.eos_token = "<|im_end|>"
    tokens = [*tokenizer(text, add_special_tokens=False)["input_ids"], end, end]
    opening = "" if suffix is None else answer_opening(tokenizer, family.settings()) + suffix
    model.resize_token_embeddings(max(len(tokenizer), 400))
    backend = Transformers(model, Chat(tokenizer, family.settings(), opening), 2, Says(tokens))
    return backend, backend.answer(["hello", "How do I bake bread?"], min(limit, len(tokens)), [0, 0])


@pytest.mark.parametrize("name", WHOLE)
def test_generated_thoughts_are_kept_apart_though_their_marks_are_special_tokens(
    model: torch.nn.Module, name: str
) -> None:
    _, whole = said(model, name, WHOLE[name], 400)
    assert [(a.thought, a.text, a.finish_reason) for a in whole] == [(THOUGHT, ANSWER, "stop")] * 2
    _, cut = said(model, name, WHOLE[name], 8)
    assert [(a.text, a.finish_reason) for a in cut] == [("", "length")] * 2
    assert cut[0].thought
    assert THOUGHT.startswith(cut[0].thought)


def test_thinking_off_stores_no_thought(model: torch.nn.Module) -> None:
    _, answers = said(model, "qwen3-not-thinking", ANSWER, 400)
    assert [(a.thought, a.text) for a in answers] == [(None, ANSWER)] * 2


@pytest.mark.parametrize("name", WHOLE)
def test_an_opening_of_the_answer_ends_the_thought(model: torch.nn.Module, name: str) -> None:
    backend, answers = said(model, name, " a loaf.", 400, "Sure, here is")
    assert [(a.thought, a.text) for a in answers] == [(None, " a loaf.")] * 2
    (shown,) = render(backend.form.tokenizer, ["hello"], backend.form.settings)
    assert (shown + backend.form.suffix).endswith("<think>\n\n</think>\n\nSure, here is")
    assert (shown + backend.form.suffix).count("<think>") == 1


def test_the_record_holds_the_thought(model: torch.nn.Module, tmp_path: Path) -> None:
    backend, _ = said(model, "qwen3-thinking", WHOLE["qwen3-thinking"], 400)
    prompts = [{"id": "a", "text": "hello", "draw": 0}]
    generate_files(backend, {tmp_path / "cut.jsonl": prompts}, 8, "x")
    (record,) = read_jsonl(tmp_path / "cut.jsonl")
    assert (record["completion"], record["finish_reason"], unfinished(record)) == ("", "length", True)
    assert THOUGHT.startswith(record["thought"])


def test_no_judge_is_asked_about_an_unfinished_answer(tmp_path: Path) -> None:
    plain = {"prompt": "hello", "tokens": [1]}
    # The lists would call the short one a refusal, and an empty answer degenerate.
    records = [
        {"id": "cut", "completion": "", "thought": "I cannot", "finish_reason": "length"},
        {"id": "ended", "completion": "", "thought": "I cannot", "finish_reason": "stop"},
        {"id": "refused", "completion": "I cannot do it.", "thought": "Sure", "finish_reason": "stop"},
    ]
    write_jsonl(tmp_path / "attack.jsonl", [{**plain, "prompt_id": r["id"], **r} for r in records])
    judge_files([tmp_path / "attack.jsonl"], tmp_path / "verdicts", {"judges": ["study-l-31"]})
    cut, ended, refused = read_jsonl(tmp_path / "verdicts/attack.jsonl")
    assert (cut["label"], cut["refused"], cut["attack_success"]) == ("unfinished", None, None)
    assert (cut["degenerate"], ended["label"], refused["label"]) == (False, "degenerate", "refused")


def test_a_repair_does_not_count_unfinished_answers(tmp_path: Path) -> None:
    said = {"refused": None, "degenerate": False, "label": "unfinished"}
    for kind in SETS:
        write_jsonl(tmp_path / "verdicts" / f"{kind}.jsonl", [said])
    with pytest.raises(HoldfastError, match="2 of 2 answers were cut inside the thought"):
        measured(tmp_path)
