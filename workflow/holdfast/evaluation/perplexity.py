"""Perplexity of a held-out text: non-overlapping windows, no special tokens, as the pruning papers do it."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.errors import HoldfastError
from holdfast.prompts.sources import read_text
from holdfast.statistics import bootstrap_mean


def perplexity(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, recipe: Mapping[str, Any]
) -> dict[str, Any]:
    """{perplexity, low, high, windows, tokens}; the interval is a bootstrap over windows (95 %).

    ``recipe``: the text's source (see ``prompts.sources.read_text``), window (tokens, or ``model`` for the
    model's own length), windows (how many, None: all). Whole test set, windows of the model's length: Frantar
    et al. 2022 (arXiv 2210.17323, section 4), Sun et al. 2023 (arXiv 2306.11695, section 4).
    Raises HoldfastError when the text does not fill two windows, or the model states no length.
    """
    ids = tokenizer(read_text(recipe), add_special_tokens=False, return_tensors="pt", verbose=False)
    ids = ids["input_ids"][0]
    size = model_length(model) if recipe["window"] == "model" else recipe["window"]
    windows = [ids[start : start + size] for start in range(0, len(ids) - size + 1, size)][
        : recipe.get("windows")
    ]
    if len(windows) < 2:
        raise HoldfastError(
            f"{len(ids)} tokens do not fill two windows of {size}", recipe["source"], "use a smaller window"
        )
    losses = []
    for window in tqdm(windows, desc="perplexity", unit="window", mininterval=2):
        batch = window[None].to(model.device)
        with torch.inference_mode():
            logits = model(batch, use_cache=False).logits[0, :-1].float()
        losses.append(torch.nn.functional.cross_entropy(logits, batch[0, 1:]).item())
    size_of_it = {"windows": len(windows), "tokens": len(windows) * (size - 1)}
    if not all(map(math.isfinite, losses)):  # a broken model is a result, and has no perplexity
        return {"perplexity": None, "low": None, "high": None, **size_of_it}
    mean = bootstrap_mean(losses, seed=0)
    return {
        "perplexity": math.exp(mean.value),
        "low": math.exp(mean.low),
        "high": math.exp(mean.high),
        **size_of_it,
    }


def model_length(model: PreTrainedModel) -> int:
    """The longest input that the model's config states, in tokens."""
    config = model.config.get_text_config()
    length = getattr(config, "max_position_embeddings", None)
    if not length:
        what = "the model's config states no max_position_embeddings"
        raise HoldfastError(what, "window: model", "give the number of tokens per window")
    return int(length)
