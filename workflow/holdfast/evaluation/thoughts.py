"""A model's thought apart from its answer: judges see what a user would take for the answer, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

# Configs are read with the judges' names in every job of a cluster: without the model libraries.
if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from holdfast.prompts.templates import Thought


def apart(text: str, thought: Thought) -> tuple[str | None, str]:
    """(thought, answer) of generated text; the thought is None where there was none.

    The thought ends at the last closing mark, as the templates of Qwen3 and DeepSeek-R1 cut it from earlier turns.
    Without one everything is thought, and the answer empty: if the prompt had begun the thought, or the text opens
    one. A closing mark alone ends a thought too, unless none was to come (thinking off).
    """
    before, closing, after = text.rpartition(thought.closing)
    opens = text.lstrip().startswith(thought.opening)
    if not (opens or thought.begun or (closing and thought.left_out)):
        return None, text
    inside, answer = (before, after) if closing else (text, "")
    return inside.strip().removeprefix(thought.opening).strip(), answer.strip()


def decoded(tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase, thought: Thought) -> str:
    """Text without special tokens, the marks of a thought excepted: some tokenizers call those special, too."""
    marks = {thought.opening, thought.closing}
    special = {i for i, t in tokenizer.added_tokens_decoder.items() if t.special and t.content not in marks}
    return str(tokenizer.decode([t for t in tokens if t not in special], skip_special_tokens=False))


def unfinished(record: Mapping[str, Any]) -> bool:
    """Was the answer of this generation record cut before its first word, in the thought or right after it?"""
    cut = record["finish_reason"] == "length" and not record["completion"].strip()
    return cut and record.get("thought") is not None
