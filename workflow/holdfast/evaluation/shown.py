"""How a model is shown a prompt: text, then token ids, the same whichever backend answers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from transformers import BatchEncoding, PreTrainedTokenizerBase

from holdfast.evaluation.thoughts import apart, decoded
from holdfast.prompts.images import Instruction, text_of
from holdfast.prompts.templates import Thought, encode, thought_delimiters, token_counts


class Chat:
    """In the model's chat template. ``suffix`` stands after every prompt and is no part of the answer."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, settings: Mapping[str, Any], suffix: str = ""
    ) -> None:
        self.tokenizer, self.settings, self.suffix = tokenizer, settings, suffix

    @cached_property
    def thought(self) -> Thought | None:
        """The marks of thoughts. A suffix stands where the answer begins: after it no thought is under way."""
        found = thought_delimiters(self.tokenizer, self.settings)
        return replace(found, begun=False, left_out="") if found and self.suffix else found

    def lengths(self, texts: Sequence[Instruction]) -> list[int]:
        """About how many tokens the model reads for each text."""
        return token_counts(self.tokenizer, texts, self.settings)

    def encoded(self, texts: Sequence[Instruction]) -> BatchEncoding:
        """What the model reads for each text as token ids, left-padded, and images as tensors."""
        return encode(self.tokenizer, texts, self.settings, self.suffix)

    def token_ids(self, texts: Sequence[Instruction]) -> list[list[int]]:
        """The same without padding."""
        batch = self.encoded(texts)
        pairs = zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)
        return [row[real].tolist() for row, real in pairs]

    def said(self, tokens: Sequence[int]) -> tuple[str | None, str]:
        """(thought, answer) of generated tokens."""
        if self.thought is None:
            return None, str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))
        return apart(decoded(tokens, self.tokenizer, self.thought), self.thought)


class Whole(Chat):
    """Prompts that are written out as the model reads them, but for the tokens that its tokenizer begins with."""

    @cached_property
    def thought(self) -> None:
        """None: what is asked so says its answer at once, and need not have a chat template."""

    def lengths(self, texts: Sequence[Instruction]) -> list[int]:
        return [len(ids) for ids in self.tokenizer([text_of(t) for t in texts])["input_ids"]]

    def encoded(self, texts: Sequence[Instruction]) -> BatchEncoding:
        written = [text_of(text) for text in texts]
        return self.tokenizer(written, padding=True, padding_side="left", return_tensors="pt")
