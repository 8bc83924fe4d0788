"""What llm-compressor runs a model on where calibration records have images.

For the language model alone the vision tower is run here, once: each sequence becomes the embeddings that the language
model is given, so that sequences with and without images go through one traced model. Models that are given image
features in several layers (Qwen3-VL), and compression of the tower itself, need the whole model on every sequence.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import BatchEncoding, PreTrainedModel

from holdfast.architectures import language_model
from holdfast.compression.calibration import Sample, with_images
from holdfast.errors import HoldfastError
from holdfast.prompts.processors import TOKEN_TYPES, mismatch_told
from holdfast.prompts.templates import on_device

SEVERAL_LAYERS = "deepstack_visual_embeds"


def calibration_inputs(
    model: PreTrainedModel, sequences: Sequence[Sample], parts: Sequence[str]
) -> list[dict[str, Tensor]]:
    """What the model is called with for each sequence, all with the same keys.

    Raises:
        HoldfastError: the whole model is needed, and some sequences have images and others none; a processor that
            does not fit the model.
    """
    if not with_images(sequences):
        return [
            {"input_ids": s, "attention_mask": torch.ones_like(s)} for s in sequences if torch.is_tensor(s)
        ]
    if set(parts) == {"language"}:
        found = [_embedded(model, sample) for sample in tqdm(sequences, desc="images", unit="sequence")]
        if not any(one is None for one in found):
            return [one for one in found if one is not None]
    if with_images(sequences) < len(sequences):
        what = (
            f"calibration records with images and without, and a {type(model).__name__} is traced on one kind"
        )
        raise HoldfastError(what, "calibration", "calibrate on records that all have images, or all none")
    return [on_device(model, s) for s in sequences if isinstance(s, dict)]


class _Given(Exception):  # noqa: N818 - no error
    """The language model was called: with these arguments."""


@torch.no_grad()
def _embedded(model: PreTrainedModel, sample: Sample) -> dict[str, Tensor] | None:
    """The sequence as embeddings; None where the language model is given images besides."""
    inputs = (
        {"input_ids": sample, "attention_mask": torch.ones_like(sample)}
        if isinstance(sample, torch.Tensor)
        else dict(sample)
    )
    inputs = on_device(model, BatchEncoding(inputs))

    def given(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        raise _Given(kwargs)

    handle = language_model(model).register_forward_pre_hook(given, with_kwargs=True)
    kwargs: dict[str, Any] = {}
    try:
        with mismatch_told(model):
            model.base_model(**inputs, use_cache=False)
    except _Given as told:
        kwargs = told.args[0]
    finally:
        handle.remove()
    if kwargs.get(SEVERAL_LAYERS) is not None:
        return None
    mask = inputs["attention_mask"]
    found = {"inputs_embeds": kwargs["inputs_embeds"], "attention_mask": mask}
    if hasattr(model.base_model, "get_rope_index"):
        counted = torch.arange(mask.shape[1], device=mask.device).expand(3, 1, -1)
        own = kwargs.get("position_ids")
        found["position_ids"] = counted if own is None else own
    if isinstance(kwargs.get("attention_mask"), dict):  # images' tokens see each other both ways
        types = next((inputs[name] for name in TOKEN_TYPES if name in inputs), torch.zeros_like(mask))
        found["token_type_ids"] = types
    return found
