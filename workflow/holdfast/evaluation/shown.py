"""How a model is shown a prompt: text, then token ids, the same whichever backend answers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from torch import Tensor
from transformers import BatchEncoding, GenerationConfig, PreTrainedTokenizerBase

from holdfast.errors import HoldfastError
from holdfast.evaluation.thoughts import apart, decoded
from holdfast.prompts.images import Instruction, text_of
from holdfast.prompts.processors import Input, collated, no_processor
from holdfast.prompts.templates import (
    Thought,
    by_length,
    encode,
    render,
    thought_delimiters,
    token_counts,
)


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

    def with_placeholders(self, text: Instruction) -> list[int]:
        """Token ids with one placeholder an image, as vLLM takes them; a model reads as many as it has features."""
        [rendered] = render(self.tokenizer, [text], self.settings)
        return list(self.tokenizer(rendered + self.suffix, add_special_tokens=False)["input_ids"])

    def said(self, tokens: Sequence[int]) -> tuple[str | None, str]:
        """(thought, answer) of generated tokens."""
        if self.thought is None:
            return None, str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))
        return apart(decoded(tokens, self.tokenizer, self.thought), self.thought)

    def batched(self, lengths: Sequence[int], size: int) -> Iterator[list[int]]:
        """Indices of prompts of these lengths in batches of at most ``size``."""
        return by_length(lengths, size)

    def padding(self) -> dict[str, Any]:
        """What ``generate`` is told of padding."""
        return {"pad_token_id": self.tokenizer.pad_token_id}

    def ends(self, config: GenerationConfig) -> set[int]:
        """The tokens that an answer ends with."""
        return end_tokens(config, self.tokenizer)

    def written(self, output: Tensor, prompt: int) -> list[list[int]]:
        """Generated token ids of each row of what ``generate`` returns for prompts of ``prompt`` tokens."""
        return output[:, prompt:].tolist()


class Question(Chat):
    """A question about one image, as encoder-decoders take it (BLIP): no chat, its tokenizer's own special tokens.

    Only questions of one length share a batch: the answer's decoder attends to padding (transformers' BLIP).
    """

    @cached_property
    def thought(self) -> None:
        """None: what is asked so says its answer at once."""

    def _shown(self, texts: Sequence[Instruction]) -> list[Input]:
        processor: Any = getattr(self.tokenizer, "processor", None)
        if processor is None:
            raise no_processor(self.tokenizer.name_or_path)
        found = []
        for text in texts:
            if isinstance(text, str) or len(text.pictures) != 1:
                what = f"a question without one image: {text_of(text)[:60]}"
                remedy = "give each record one image"
                raise HoldfastError(what, self.tokenizer.name_or_path, remedy)
            image = text.pictures[0].load()
            made = dict(processor(images=image, text=text.text, return_tensors="pt"))
            found.append(Input(made["input_ids"][0].tolist(), {}, {"pixel_values": made["pixel_values"]}))
        return found

    def lengths(self, texts: Sequence[Instruction]) -> list[int]:
        return [len(one.ids) for one in self._shown(texts)]

    def encoded(self, texts: Sequence[Instruction]) -> BatchEncoding:
        return collated(self._shown(texts), int(self.tokenizer.pad_token_id))

    def batched(self, lengths: Sequence[int], size: int) -> Iterator[list[int]]:
        for length in sorted(set(lengths), reverse=True):
            rows = [i for i, other in enumerate(lengths) if other == length]
            yield from (rows[start : start + size] for start in range(0, len(rows), size))

    def padding(self) -> dict[str, Any]:
        return {}  # transformers' BLIP says it itself

    def ends(self, config: GenerationConfig) -> set[int]:
        return {self.tokenizer.sep_token_id} - {None}

    def written(self, output: Tensor, prompt: int) -> list[list[int]]:
        return output[:, 1:].tolist()  # the decoder begins with a token of its own


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


def end_tokens(config: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    named = config.eos_token_id
    return {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])} - {None}
