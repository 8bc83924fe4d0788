"""Calibrated compression one decoder layer after the other, with the model in memory once.

A layer runs to collect statistics of its linears' inputs, is compressed, and runs again for the inputs of the
next one, which so come from already compressed layers (Sun et al. 2023, section 3; Frantar & Alistarh 2023,
section 4). Beside the model there are: the hidden states of every sequence (once, replaced in place), the
statistics of one layer, and what layers are called with, stored once however many layers and sequences share
it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
from torch import nn
from tqdm import tqdm
from transformers import BatchEncoding, PreTrainedModel

from holdfast.architectures import (
    Part,
    decoder_layers,
    language_model,
    layer_linears,
    module_name,
    part_linears,
    vision_layers,
)
from holdfast.compression.calibration import Sample
from holdfast.errors import HoldfastError
from holdfast.prompts.processors import mismatch_told
from holdfast.prompts.templates import forward_inputs

Call = tuple[tuple[Any, ...], dict[str, Any]]


class Statistic(Protocol):
    """Something summed over the calibration tokens that enter a linear."""

    def add(self, inputs: torch.Tensor) -> None:
        """Take in inputs (tokens, d_in), in the model's dtype."""


S = TypeVar("S", bound=Statistic)


@torch.no_grad()
def compress_layers(
    model: PreTrainedModel,
    sequences: list[Sample],
    statistic: Callable[[int, torch.device], S],
    compress: Callable[[str, nn.Linear, S], None],
    label: str,
    parts: Sequence[Part] = ("language",),
) -> None:
    """Compress every linear of a model's parts in place, in the order of the forward pass.

    The vision tower goes block by block as the language model does. What stands outside of its blocks, the projector
    above all, goes one linear after the other after them, each with a pass from the image; of these one that no
    image reaches (a pooling head that the language model does not read) stays as it is.

    Args:
        sequences: one at a time, so that no padding enters a statistic; other parts than the language model need
            some with images.
        statistic: makes a new, empty one from an input width and the device the inputs are on. Linears fed
            with the same tensor (queries, keys and values; gate and up projections) share one.
        compress: compresses the linear of that full name, given the statistic of its inputs.
        label: of the progress bar.

    Raises:
        HoldfastError: an unsupported architecture, no calibration token reaches one of the linears, no sequence has
            images, or a processor that does not fit the model.
    """
    seen = [sample for sample in sequences if not isinstance(sample, torch.Tensor)]
    beside = sorted(set(parts) - {"language"})
    if beside and not seen:
        what = f"no calibration record has an image, and {label} measures what reaches the {' and '.join(beside)}"
        raise HoldfastError(what, "compression recipe, parts", "calibrate on images, or use magnitude or rtn")
    if "vision" in parts:
        _compress_blocks(model, vision_layers(model), seen, statistic, compress, f"{label}, vision")
    if beside:
        blocks = {id(module) for layer in vision_layers(model) for module in layer.modules()}
        rest = {
            name: linear
            for name, linear in part_linears(model, [part for part in parts if part != "language"]).items()
            if id(linear) not in blocks
        }
        for name, linear in tqdm(rest.items(), desc=f"{label}, {beside[0]}", unit="matrix"):
            with _statistics({name: linear}, statistic) as found:
                for sample in seen:
                    _run(model, sample, before=decoder_layers(model)[0])
            if name in found:
                compress(name, linear, found.pop(name))
    if "language" in parts:
        _compress_blocks(model, decoder_layers(model), sequences, statistic, compress, label)


def _compress_blocks(
    model: PreTrainedModel,
    layers: list[nn.Module],
    sequences: Sequence[Sample],
    statistic: Callable[[int, torch.device], S],
    compress: Callable[[str, nn.Linear, S], None],
    label: str,
) -> None:
    hidden, calls, between = _first_inputs(model, layers, sequences)
    for number, layer in enumerate(tqdm(layers, desc=label, unit="layer")):
        layer_calls, calls[number] = calls[number], []
        linears = layer_linears(layer)
        with _statistics(linears, statistic) as found:
            for x, (args, kwargs) in zip(hidden, layer_calls, strict=True):
                layer(x, *args, **kwargs)
        prefix = module_name(model, layer)
        for name, linear in linears.items():
            if name not in found:
                what, remedy = (
                    "no calibration token reaches it",
                    "calibrate on more samples, or use magnitude",
                )
                raise HoldfastError(what, f"{prefix}.{name}", remedy)
            # Taken out, so that each is freed with the last linear that needs it.
            compress(f"{prefix}.{name}", linear, found.pop(name))
        if number + 1 < len(layers):
            for i, (args, kwargs) in enumerate(layer_calls):
                hidden[i] = _hidden(layer(hidden[i], *args, **kwargs))
                if (added := between.pop((number + 1, i), None)) is not None:
                    hidden[i] = hidden[i] + added.to(hidden[i].device)


@contextmanager
def writable_weight(linear: nn.Linear) -> Iterator[torch.Tensor]:
    """The weight (d_out, d_in) of a linear, to be changed in place, also where accelerate keeps it in main
    memory and loads it for each forward pass.

    Raises:
        HoldfastError: accelerate keeps it on disk.
    """
    from accelerate.utils import align_module_device, has_offloaded_params

    if not has_offloaded_params(linear):
        yield linear.weight.data
        return
    hook: Any = linear._hf_hook
    stored = hook.weights_map["weight"]
    # Main memory hands out the same tensor every time, a disk a new one.
    if hook.weights_map["weight"].data_ptr() != stored.data_ptr():
        what = "weights offloaded to disk cannot be compressed"
        raise HoldfastError(what, "device map", "use more GPUs or more main memory")
    with align_module_device(linear):
        yield linear.weight.data
        stored.copy_(linear.weight.data)


@contextmanager
def _statistics(
    linears: dict[str, nn.Linear], new: Callable[[int, torch.device], S]
) -> Iterator[dict[str, S]]:
    """The statistic of every linear's inputs, by name, fed while the block runs."""
    found: dict[str, S] = {}
    followers: set[str] = set()
    # The last input seen and its statistic: linears fed with one tensor are called one after the other.
    last: list[Any] = [None, None]

    def collect(name: str) -> Any:
        def hook(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            same = args[0] is last[0]
            if name not in found:
                found[name] = last[1] if same else new(args[0].shape[-1], args[0].device)
                followers.update([name] if same else [])
            if name not in followers:
                found[name].add(args[0].reshape(-1, args[0].shape[-1]))
                last[:] = args[0], found[name]
            elif not same:
                what = "it shares its input with another linear on some sequences only"
                raise HoldfastError(what, name, "use magnitude, or extend holdfast/compression/layerwise.py")

        return hook

    handles = [linear.register_forward_pre_hook(collect(name)) for name, linear in linears.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
        last.clear()


def _first_inputs(
    model: PreTrainedModel, layers: list[nn.Module], sequences: Sequence[Sample]
) -> tuple[list[torch.Tensor], list[list[Call]], dict[tuple[int, int], torch.Tensor]]:
    """The first layer's input of every sequence, and what else every layer is called with (masks, rotary
    embeddings, which differ by layer in models with sliding windows): ``calls[layer][sequence]``. And what the model
    itself adds to a layer's input, by layer and sequence, where it does (image features in several layers).

    No layer runs for it, except the first one on the first sequence to see whether layers return tensors or
    tuples: what they are called with does not depend on the residual stream. They return zeros, so that what the
    next one is given is what was added.
    """
    hidden: list[torch.Tensor] = []
    between: dict[tuple[int, int], torch.Tensor] = {}
    calls: list[list[Call]] = [[] for _ in layers]
    once = _Once()
    tuples: list[bool] = []
    # accelerate keeps its own forward on the module: put back exactly what stood there.
    own = [layer.__dict__.get("forward") for layer in layers]

    def recorder(number: int) -> Any:
        def record(*args: Any, **kwargs: Any) -> Any:
            if not tuples:
                run: Any = own[0] or type(layers[0]).forward.__get__(layers[0])
                tuples.append(isinstance(run(*args, **kwargs), tuple))
            if number == 0:
                hidden.append(args[0])
            elif args[0].any():
                between[number, len(calls[number])] = args[0]
            calls[number].append((once(args[1:]), {key: once(value) for key, value in kwargs.items()}))
            nothing = torch.zeros_like(args[0])
            return (nothing,) if tuples[0] else nothing

        return record

    try:
        for number, layer in enumerate(layers):
            layer.__dict__["forward"] = recorder(number)
        for sample in sequences:
            _run(
                model,
                sample,
                before=None if layers[0] is decoder_layers(model)[0] else decoder_layers(model)[0],
            )
            once.forget()
    finally:
        for layer, forward in zip(layers, own, strict=True):
            layer.__dict__.pop("forward")
            if forward is not None:
                layer.__dict__["forward"] = forward
    return hidden, calls, between


class _Reached(Exception):  # noqa: N818 - no error
    """A pass came to the module that it was to stop before."""


def _run(model: PreTrainedModel, sample: Sample, before: nn.Module | None = None) -> None:
    """A forward pass over a sequence, without the head; up to the module ``before`` where one is given."""
    embedding: Any = model.get_input_embeddings()
    device = embedding.weight.device

    def stop(*_given: Any) -> None:
        raise _Reached

    handle = None if before is None else before.register_forward_pre_hook(stop)
    try:
        if isinstance(sample, torch.Tensor):
            # Offloaded weights are "meta"; the embedding's own hook then moves the ids.
            ids = sample if device.type == "meta" else sample.to(device)
            language_model(model)(input_ids=ids, use_cache=False)
        else:
            with mismatch_told(model):
                model.base_model(**forward_inputs(model, BatchEncoding(sample)), use_cache=False)
    except _Reached:
        pass
    finally:
        if handle is not None:
            handle.remove()


class _Once:
    """Stores equal tensors once: sequences of one length have the same masks and rotary embeddings."""

    def __init__(self) -> None:
        self._kept: dict[Any, list[torch.Tensor]] = {}
        self._seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            # Layers get the very same object: compared once, and held while its address stands for it.
            if id(value) not in self._seen:
                self._seen[id(value)] = (value, self._stored(value))
            return self._seen[id(value)][1]
        # Dicts stay the same object: layers may hand each other states through one.
        return tuple(self(v) for v in value) if type(value) is tuple else value

    def forget(self) -> None:
        """Let go of the tensors of a sequence that equal stored ones."""
        self._seen.clear()

    def _stored(self, value: torch.Tensor) -> torch.Tensor:
        kept = self._kept.setdefault((value.shape, value.dtype, value.device), [])
        for other in kept:
            if torch.equal(value, other):
                return other
        # Layers know a few masks and rotary embeddings of one shape; what differs every time is not searched.
        if len(kept) < 8:
            kept.append(value)
        return value


def _hidden(output: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output
