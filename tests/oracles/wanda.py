"""Wanda written as naively as it reads (Sun et al. 2023, eq. 1 and sections 3 and 4): float64, one sort per
group, and whole forward passes of the model for the inputs of each layer in turn, so that those come from the
already pruned layers before it by construction.

Shares no code with ``holdfast.compression``.
"""

from collections.abc import Callable
from typing import Any

import torch
from oracles import magnitude
from torch import nn
from transformers import PreTrainedModel


def mask(weight: torch.Tensor, norms: list[float], **group: Any) -> torch.Tensor:
    """True where pruned: the lowest |w| * norm of each group; groups as in ``magnitude.mask``."""
    scores = [[abs(w) * n for w, n in zip(row, norms, strict=True)] for row in weight.double().tolist()]
    return magnitude.mask(torch.tensor(scores, dtype=torch.float64), **({"compare": "row"} | group))


def pruned(weight: torch.Tensor, inputs: torch.Tensor, **group: Any) -> torch.Tensor:
    """The pruned copy of a weight (d_out, d_in), float64, for inputs (tokens, d_in)."""
    norms = [sum(v * v for v in feature) ** 0.5 for feature in inputs.double().T.tolist()]
    return weight.double().masked_fill(mask(weight, norms, **group), 0)


def prune(
    model: PreTrainedModel,
    blocks: str,
    sequences: list[torch.Tensor],
    method: Callable[..., torch.Tensor] = pruned,
    **group: Any,
) -> dict[str, torch.Tensor]:
    """Prune the blocks of that name in place by ``pruned`` of this module or ``sparsegpt.prune``; returns
    every linear's new weight, float64."""
    weights = {}
    for number, layer in enumerate(model.get_submodule(blocks)):
        linears = {n: m for n, m in layer.named_modules() if isinstance(m, nn.Linear)}
        inputs: dict[str, list[torch.Tensor]] = {name: [] for name in linears}
        handles = [
            linear.register_forward_hook(
                lambda _m, args, _o, seen=inputs[name]: seen.append(args[0][0].double())
            )
            for name, linear in linears.items()
        ]
        with torch.no_grad():
            for ids in sequences:
                model(ids)
        for handle in handles:
            handle.remove()
        for name, linear in linears.items():
            new = method(linear.weight.detach(), torch.cat(inputs[name]), **group)
            linear.weight.data.copy_(new)
            weights[f"{blocks}.{number}.{name}"] = new
    return weights
