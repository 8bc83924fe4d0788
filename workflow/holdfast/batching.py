"""How many prompts go through a model together: fitted to the free memory, halved when it runs out."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import psutil
import torch
from transformers import PreTrainedModel

from holdfast.errors import HoldfastError

LARGEST_BATCH = {"cpu": 32, "cuda": 256}

Item = TypeVar("Item")
Result = TypeVar("Result")


def fitting_batch_size(model: PreTrainedModel, tokens: int, share: float = 0.3) -> int:
    """The largest power of two of prompts of ``tokens`` tokens whose keys, values and activations take at most
    ``share`` of the free memory; at most LARGEST_BATCH, so that it does not drift with small changes."""
    config = model.config.get_text_config()
    width = torch.finfo(model.dtype).bits // 8
    layers, hidden = config.num_hidden_layers, config.hidden_size
    per_token = width * hidden * (2 * layers + 24)
    per_prompt = per_token * (tokens + 64) + 8 * config.vocab_size
    device = model.device.type
    free = torch.cuda.mem_get_info(model.device)[0] if device == "cuda" else psutil.virtual_memory().available
    size = LARGEST_BATCH.get(device, 32)
    while size > 1 and size * per_prompt > share * free:
        size //= 2
    return size


def halving(
    run: Callable[[Sequence[Item]], Result], items: Sequence[Item], size: int | None = None
) -> list[Result]:
    """``run`` over ``items`` in order, at most ``size`` at a time (None: all), half as many when GPU memory runs out.

    Raises:
        HoldfastError: a single item does not fit.
    """
    results: list[Result] = []
    start, size = 0, size or len(items)
    while start < len(items):
        some = items[start : start + size]
        try:
            results.append(run(some))
            start += len(some)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            if len(some) == 1:
                raise HoldfastError(
                    "one prompt does not fit in memory", "GPU", "use a larger GPU or fewer tokens"
                ) from None
            size = len(some) // 2
    return results
