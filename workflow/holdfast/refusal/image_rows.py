"""Prompts with images in the passes that refusal scores are read from: their tensors, positions and masks."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from holdfast.prompts.processors import Input, collated

BOTH_WAYS = "token_type_ids"  # given to models whose images' tokens see each other both ways (Gemma 3)


def see_whole_images(sees: Tensor, shown: Input) -> None:
    """Let each image's tokens see each other, where the model has it so; ``sees`` [token, token] is changed."""
    place = 0
    for image, tokens in itertools.groupby(shown.types.get(BOTH_WAYS, [])):
        end = place + len(list(tokens))
        if image:
            sees[place:end, place:end] = True
        place = end


def images_of(
    model: PreTrainedModel,
    shown: Sequence[Input],
    positions: Sequence[Tensor],
    width: int,
    *,
    whole_mask: bool,
) -> dict[str, Tensor]:
    """What a model is called with for rows with images besides tokens, positions and mask.

    Args:
        shown: the prompt of each row.
        positions: of each row's tokens, of the prompt and of what follows it [token], as a text's are counted.
        width: that rows are padded to on the left.
        whole_mask: whether the attention mask says of every pair of tokens who sees whom.
    """
    kept = ("input_ids", "attention_mask", *(name for one in shown for name in one.types if whole_mask))
    given = {name: value for name, value in collated(shown, 0).items() if name not in kept}
    if hasattr(model.base_model, "get_rope_index"):
        rows = torch.zeros(3, len(shown), width, dtype=torch.long)
        for place, (one, counted) in enumerate(zip(shown, positions, strict=True)):
            rows[:, place, width - len(counted) :] = _in_rows_and_columns(model, one, counted)
        given["position_ids"] = rows
    return given


def _in_rows_and_columns(model: PreTrainedModel, shown: Input, counted: Tensor) -> Tensor:
    """Positions [3, token] of models that count time, rows and columns of images (M-RoPE; Wang et al. 2024, arXiv
    2409.12191, section 2.1)."""
    if not shown.images:
        return counted.expand(3, -1)
    body: Any = model.base_model
    found, _ = body.get_rope_index(
        torch.tensor([shown.ids]),
        mm_token_type_ids=torch.tensor([shown.types["mm_token_type_ids"]]),
        image_grid_thw=shown.images["image_grid_thw"],
    )
    own = found[:, 0]
    last = len(shown.ids) - 1
    return torch.cat([own, own[:, -1:] + counted[last + 1 :] - counted[last]], 1)
