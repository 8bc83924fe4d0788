"""Pruning of linears by magnitude, Wanda and SparseGPT; everything else in the model stays as it is.

llm-compressor's Wanda gives the same masks (measured on Llama, Falcon, Bloom and GPT-NeoX, per row and 2:4).
Ours stays because it also compares over the whole matrix, reads n:m as n kept for every n and m, has exact ties,
and takes 0.7 of its time with about 0.4 to 0.7 of its peak memory beside the model (four-layer Llama of width
576 on a CPU). For SparseGPT see ``sparsegpt``. Its magnitude modifier follows a training schedule.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel

from holdfast.architectures import part_linears
from holdfast.compression import sparsegpt
from holdfast.compression.calibration import Sample
from holdfast.compression.layerwise import compress_layers, writable_weight
from holdfast.compression.masks import Rule, magnitude_mask, wanda_mask
from holdfast.errors import HoldfastError


class InputNorms:
    """L2 norm of every input feature over all tokens, float64 (d_in)."""

    def __init__(self, width: int, device: torch.device) -> None:
        self._squares = torch.zeros(width, dtype=torch.float64, device=device)

    def add(self, inputs: torch.Tensor) -> None:
        """Take in inputs (tokens, d_in)."""
        self._squares += inputs.double().square_().sum(dim=0)

    def norms(self, name: str) -> torch.Tensor:
        """Raises HoldfastError when an input was NaN or infinite."""
        if not bool(torch.isfinite(self._squares).all()):
            what, remedy = "its calibration inputs overflow", "load the model in float32 or bfloat16"
            raise HoldfastError(what, name, remedy)
        return self._squares.sqrt()


@torch.no_grad()
def prune(model: PreTrainedModel, recipe: Mapping[str, Any], sequences: list[Sample]) -> None:
    """Prune the linears of the recipe's parts in place.

    Args:
        recipe: ``{prune: magnitude|wanda|sparsegpt}`` with ``sparsity`` or ``pattern``, ``compare`` and
            ``parts``; see ``masks.Rule`` and ``architectures.part_linears``.
        sequences: calibration tokens and images; unused by magnitude.

    Raises:
        HoldfastError: a part the model has not, an input width that the pattern does not fit (before any
            weight changes), or an error of ``layerwise.compress_layers`` or ``sparsegpt.prune``.
    """
    method, rule, parts = recipe["prune"], Rule.of(recipe), recipe.get("parts") or ["language"]
    linears = part_linears(model, parts)
    rule.check_widths(linears)
    if method == "magnitude":
        for linear in tqdm(linears.values(), desc=method, unit="matrix"):
            with writable_weight(linear) as weight:
                weight.masked_fill_(magnitude_mask(weight, rule), 0)
    elif method == "wanda":
        compress_layers(model, sequences, InputNorms, partial(_wanda, rule), method, parts)
    else:
        compress_layers(model, sequences, sparsegpt.Hessian, partial(_sparsegpt, rule), method, parts)


def _wanda(rule: Rule, name: str, linear: nn.Linear, inputs: InputNorms) -> None:
    with writable_weight(linear) as weight:
        weight.masked_fill_(wanda_mask(weight, inputs.norms(name), rule), 0)


def _sparsegpt(rule: Rule, name: str, linear: nn.Linear, hessian: sparsegpt.Hessian) -> None:
    with writable_weight(linear) as weight:
        sparsegpt.prune(weight, hessian, rule, name)
