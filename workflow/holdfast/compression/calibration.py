"""Calibration sequences: tokens of plain text, or of prompts with images, drawn by a seed."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from transformers import PreTrainedTokenizerBase

from holdfast.errors import HoldfastError
from holdfast.files import read_jsonl
from holdfast.prompts.images import Pictured, pictures_of
from holdfast.prompts.templates import encode

# Token ids int64 [1, n]; of a prompt with images all that the model is called with, ``input_ids`` among it.
Sample: TypeAlias = torch.Tensor | dict[str, torch.Tensor]


def token_ids(sample: Sample) -> torch.Tensor:
    """int64 [1, n]; placeholders in the images' places."""
    return sample if isinstance(sample, torch.Tensor) else sample["input_ids"]


def with_images(samples: Sequence[Sample]) -> int:
    """How many of them have images."""
    return sum(not isinstance(sample, torch.Tensor) for sample in samples)


def sequences(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    settings: Mapping[str, Any] | None = None,
    *,
    samples: int,
    tokens: int,
    seed: int,
) -> list[Sample]:
    """Token ids of up to ``samples`` texts, each int64 [1, n] with n up to ``tokens``.

    Records are drawn without replacement; of a longer text a window is drawn. Unpadded, so that no method
    ever weighs a pad token. Fewer records than samples: all of them. A record with images is a user's turn in the
    chat template (``settings``: ``model_folders.settings``), taken whole: images cannot be cut.

    Raises:
        HoldfastError: the file is missing or empty, a record has no text, or none has a token; images that cannot
            be read, or a model that cannot be shown any.
    """
    records = read_jsonl(path)
    if not records:
        raise HoldfastError("no calibration records", str(path), 'write records with "text"')
    for number, record in enumerate(records, 1):
        if not isinstance(record.get("text"), str) or not record["text"].strip():
            raise HoldfastError("record without text", f"{path}, record {number}", 'give it a "text"')
    draw = random.Random(seed)
    found: list[Sample] = []
    for record in draw.sample(records, len(records)):
        if len(found) == samples:
            break
        if pictures := pictures_of(record, path.parent):
            asked = Pictured(record["text"], pictures)
            found.append(dict(encode(tokenizer, [asked], settings or {})))
            continue
        ids = tokenizer(record["text"], return_tensors="pt").input_ids
        start = draw.randrange(max(ids.shape[1] - tokens, 0) + 1)
        # One token has no context at all: it would only teach the statistics of the sequence's start.
        if ids.shape[1] >= 2:
            found.append(ids[:, start : start + tokens])
    if not found:
        raise HoldfastError("no record has two tokens or more", str(path), "give longer texts")
    return found
