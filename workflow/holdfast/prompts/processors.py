"""What a vision-language model is called with for a prompt with images: its processor's tensors, batched here.

The model's own processor (transformers) turns each image into tensors and its placeholder in the rendered prompt into
as many tokens as the model has features of it. It is asked prompt by prompt, so that prompts with and without images
can share a batch, whatever they are padded to.
"""

import contextlib
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from holdfast.errors import HoldfastError, first_line
from holdfast.prompts.images import Instruction, Pictured, text_of

# Said per token: which are an image's. Under this name by processors of some families, and by some of ours.
TOKEN_TYPES = ("mm_token_type_ids", "token_type_ids")


@dataclass(frozen=True)
class Input:
    """One prompt as the model takes it.

    ``ids`` [token]; ``types``: what is said per token besides, by the name of the model's argument; ``images``:
    tensors by the name of the model's argument, image after image along the first axis.
    """

    ids: list[int]
    types: dict[str, list[int]]
    images: dict[str, Tensor]


def with_processor(tokenizer: PreTrainedTokenizerBase, processor: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a vision-language model, which from now on knows the model's processor."""
    processor.tokenizer = tokenizer
    setattr(tokenizer, "processor", processor)  # noqa: B010 - the library's class has no such attribute
    return tokenizer


def has_processor(tokenizer: PreTrainedTokenizerBase) -> bool:
    return getattr(tokenizer, "processor", None) is not None


def check_placeholders(
    tokenizer: PreTrainedTokenizerBase, rendered: Sequence[str], instructions: Sequence[Instruction]
) -> None:
    """Raises HoldfastError for a rendered prompt that has not one placeholder an image.

    Its chat template then takes no images, or the instruction's own text holds the placeholder.
    """
    if not has_processor(tokenizer):
        if any(isinstance(one, Pictured) for one in instructions):
            raise no_processor(tokenizer.name_or_path)
        return
    placeholder = getattr(tokenizer.processor, "image_token", None)
    for text, one in zip(rendered, instructions, strict=True):
        images = len(one.pictures) if isinstance(one, Pictured) else 0
        shown = text.count(placeholder) if placeholder else images
        if shown < images:
            what = f"its chat template shows {shown} of {images} images"
            remedy = "use a chat template with images, or prompts without"
            raise HoldfastError(what, tokenizer.name_or_path, remedy)
        if shown > images:
            what = f"a prompt has {shown} placeholders {placeholder} for {images} images"
            raise HoldfastError(what, text_of(one)[:60], f"take {placeholder} out of the text")


def model_inputs(
    tokenizer: PreTrainedTokenizerBase, rendered: Sequence[str], instructions: Sequence[Instruction]
) -> list[Input]:
    """What the model takes for each rendered prompt; no special token is added.

    Raises:
        HoldfastError: an instruction has images and the model has no processor, the processor cannot take them, or an
            image cannot be read.
    """
    return [
        _of_images(tokenizer, text, one)
        if isinstance(one, Pictured)
        else Input(list(tokenizer(text, add_special_tokens=False)["input_ids"]), {}, {})
        for text, one in zip(rendered, instructions, strict=True)
    ]


def _of_images(tokenizer: PreTrainedTokenizerBase, text: str, asked: Pictured) -> Input:
    processor: Any = getattr(tokenizer, "processor", None)
    images = [picture.load() for picture in asked.pictures]
    try:
        made = dict(processor(images=images, text=[text], add_special_tokens=False, return_tensors="pt"))
    except Exception as error:  # every family's processor has errors of its own
        what = f"the model's processor cannot take it ({first_line(error)})"
        raise HoldfastError(what, str(asked.pictures[0].path), "give another image") from None
    ids = made.pop("input_ids")[0].tolist()
    made.pop("attention_mask", None)
    types = {name: made.pop(name)[0].tolist() for name in TOKEN_TYPES if name in made}
    return Input(ids, types, made)


def collated(inputs: Sequence[Input], pad: int) -> BatchEncoding:
    """A batch padded on the left: ``input_ids``, ``attention_mask`` and what is said per token [prompt, token], and the
    images of all prompts in their order."""
    width = max(len(one.ids) for one in inputs)

    def padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
        return torch.tensor([[value] * (width - len(row)) + list(row) for row in rows])

    batch = {
        "input_ids": padded([one.ids for one in inputs], pad),
        "attention_mask": padded([[1] * len(one.ids) for one in inputs], 0),
    }
    for name in {name: None for one in inputs for name in one.types}:
        batch[name] = padded([one.types.get(name, [0] * len(one.ids)) for one in inputs], 0)
    for name in {name: None for one in inputs for name in one.images}:
        batch[name] = _stacked([one.images[name] for one in inputs if name in one.images])
    return BatchEncoding(batch)


def no_processor(folder: str) -> HoldfastError:
    """What to say of images given to a model that cannot be shown them."""
    from holdfast.skeletons import takes_images

    if Path(folder).is_dir() and takes_images(Path(folder)):
        what, remedy = "it has no processor", "put the model's processor files there (processor_config.json)"
        return HoldfastError(what, folder, remedy)
    what = "a text-only model, and the prompts have images"
    return HoldfastError(what, folder, "use a vision-language model, or prompts without images")


@contextlib.contextmanager
def mismatch_told(model: PreTrainedModel) -> Iterator[None]:
    """HoldfastError where the processor's files count an image's tokens otherwise than the model does, or make pictures
    of another size than its tower takes."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if "features and image tokens do not match" not in str(error) and not _of_tower(error):
            raise
        what = f"its processor does not fit it ({first_line(error)})"
        remedy = "take config.json and processor_config.json from the same model"
        raise HoldfastError(what, str(model.name_or_path), remedy) from error


def _of_tower(error: Exception) -> bool:
    """Whether the embedding of a picture's patches did not fit their positions: CLIP says so, SigLIP adds and fails."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    inside = any("Vision" in type(frame.f_locals.get("self")).__name__ for frame in frames)
    return inside and any(
        said in str(error) for said in ("must match the size of tensor", "doesn't match model")
    )


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Joined along the first axis; where images are cut into different numbers of tiles, the second one is padded."""
    tiles = {tensor.shape[1] for tensor in tensors if tensor.dim() > 4}
    if len(tiles) < 2:
        return torch.cat(list(tensors))
    most = max(tiles)
    return torch.cat(
        [torch.cat([t, t.new_zeros(t.shape[0], most - t.shape[1], *t.shape[2:])], dim=1) for t in tensors]
    )
