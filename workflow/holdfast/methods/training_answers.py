"""What the dense model itself answers to training prompts: the refusals to learn again, and the answers to keep."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from holdfast.errors import HoldfastError
from holdfast.evaluation.judges import substring_judge, verdict
from holdfast.evaluation.records import read_answers
from holdfast.prompts.overlap import EvaluatedText
from holdfast.prompts.templates import render

Example = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Answer:
    """A training prompt, the token ids of the answer to it, and whether that ended by itself."""

    prompt: str
    tokens: list[int]
    ended: bool


def training_answers(
    path: Path, label: Literal["refused", "answered"], judge: str, evaluated: EvaluatedText
) -> tuple[list[Answer], dict[str, int]]:
    """The records of a generations file that ``judge`` gives ``label`` (degenerate ones have neither).

    Left out are prompts that hold evaluated text: prompt collections repeat themselves in other words, so that
    disjoint rows are not enough for what is trained on. Counted beside: ``prompts``, ``labelled`` (of that
    label), ``evaluated`` (of these, left out), ``used``.

    Raises:
        HoldfastError: no such file, a record that ``holdfast generate`` did not write, or none is left.
    """
    records = read_answers(path, tokens=True)
    if any(r.get("images") for r in records):
        what = "answers to prompts with images, and chats are learnt on text alone"
        raise HoldfastError(what, str(path), "give answers to prompts without images")
    judging = substring_judge(judge)
    fitting = [r for r in records if verdict(r, judge, judging)["label"] == label]
    kept = [r for r in fitting if not evaluated.held_by(r["prompt"])]
    if not kept:
        what = f"the dense model {label} none of the {len(records)} prompts that hold no evaluated text"
        raise HoldfastError(what, str(path), "give other training prompts, or leave this method out")
    counts = {"prompts": len(records), "labelled": len(fitting), "evaluated": len(fitting) - len(kept)}
    answers = [Answer(r["prompt"], r["tokens"], r["finish_reason"] == "stop") for r in kept]
    return answers, counts | {"used": len(kept)}


def conversations(
    tokenizer: PreTrainedTokenizerBase, answers: Sequence[Answer], settings: Mapping[str, Any]
) -> list[Example]:
    """(token ids, labels) of each chat: its prompt in the model's own template, then the answer.

    Labels are -100 on the prompt. The end token follows only where the answer ended by itself. The template
    writes the beginning-of-sequence token, so none is added.
    """
    built = []
    for answer, prompt in zip(answers, render(tokenizer, [a.prompt for a in answers], settings), strict=True):
        asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        said = [*answer.tokens, *([tokenizer.eos_token_id] if answer.ended else [])]
        built.append((asked + said, [-100] * len(asked) + said))
    return built
