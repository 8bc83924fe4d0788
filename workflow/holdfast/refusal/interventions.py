"""Interventions at run time, as hooks: ablation and addition of a direction of the residual stream."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from holdfast.architectures import attention, decoder_layers, mlp


def component(x: Tensor, direction: Tensor) -> Tensor:
    """r̂ r̂ᵀx over the last axis. ``direction``: unit r̂, [d_model], or [batch, d_model] with one per row."""
    r = direction[:, None, :] if direction.dim() == 2 else direction
    return (x * r).sum(-1, keepdim=True) * r


def _on_input(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def hook(
        _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    return hook


def _on_output(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def hook(_module: Any, _args: Any, output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    return hook


@contextlib.contextmanager
def ablated(model: PreTrainedModel, direction: Tensor, harmless: Tensor | None = None) -> Iterator[None]:
    """Ablate r̂ at every block input and every attention and MLP output (Arditi et al. 2024, eq. 4).

    Args:
        direction: unit r̂ [d_model], or [batch, d_model] to ablate another direction in each row.
        harmless: None for plain ablation; mean harmless block inputs, [layer, d_model] or one per row, [layer,
            batch, d_model], for affine ablation (Marshall et al. 2024): each block input gets back the component
            that the harmless mean has there.
    """

    def change(x: Tensor, mean: Tensor | None) -> Tensor:
        r = direction.to(x.device, x.dtype)
        rest = x - component(x, r)
        if mean is None:
            return rest
        m = mean.to(x.device, x.dtype)
        return rest + component(m[:, None, :] if m.dim() == 2 else m, r)

    with contextlib.ExitStack() as stack:
        for index, layer in enumerate(decoder_layers(model)):
            mean = None if harmless is None else harmless[index]
            on_input = _on_input(functools.partial(change, mean=mean))
            stack.callback(layer.register_forward_pre_hook(on_input, with_kwargs=True).remove)
            for part in (attention(layer), mlp(layer)):
                on_output = _on_output(functools.partial(change, mean=None))
                stack.callback(part.register_forward_hook(on_output).remove)
        yield


def add(model: PreTrainedModel, vector: Tensor, layer: int) -> RemovableHandle:
    """Add ``vector`` [d_model] to the input of block ``layer`` at every position (Arditi et al. 2024, eq. 3).

    From now on, until the handle that is returned is removed.
    """
    on_input = _on_input(lambda x: x + vector.to(x.device, x.dtype))
    return decoder_layers(model)[layer].register_forward_pre_hook(on_input, with_kwargs=True)


@contextlib.contextmanager
def added(model: PreTrainedModel, vector: Tensor, layer: int) -> Iterator[None]:
    """:func:`add` for as long as the block lasts."""
    handle = add(model, vector, layer)
    try:
        yield
    finally:
        handle.remove()


def random_unit(like: Tensor, seed: int) -> Tensor:
    """A unit vector drawn uniformly, of the shape of ``like`` [d_model]: the control of every intervention."""
    drawn = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (drawn / drawn.norm()).float()
