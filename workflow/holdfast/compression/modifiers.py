"""llm-compressor's GPTQ, AWQ, SmoothQuant and static scales, where the library would go on with less.

As they stand, they only log when a Hessian cannot be inverted (GPTQ rounds that matrix to nearest), when a
mapping is skipped (AWQ rounds what it feeds to nearest) or when a family has no entry in their tables of which
norm feeds which linears (the Llama table is used, whatever the blocks look like), and store uninitialised
memory as the scale of a linear that calibration does not reach. A checkpoint would then not be what its name
says. The classes keep the library's names, because those are written into ``recipe.yaml``.

Importing this module imports llm-compressor, which takes seconds: import it where it is used.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationMetadata
from compressed_tensors.utils import patch_attr, update_offload_parameter
from llmcompressor.modifiers.gptq import GPTQModifier as LibraryGPTQ
from llmcompressor.modifiers.quantization import QuantizationModifier as LibraryQuantization
from llmcompressor.modifiers.transform.awq import AWQModifier as LibraryAWQ
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier as LibrarySmoothQuant
from llmcompressor.pipelines.cache import IntermediatesCache
from llmcompressor.utils.helpers import DisableQuantization, calibration_forward_context
from pydantic import PrivateAttr

from holdfast.architectures import decoder_layers, language_model, layer_linears, part_linears
from holdfast.errors import HoldfastError

PROBE_TOKENS = 16
PRESERVED = 1e-3


class GPTQModifier(LibraryGPTQ):
    """GPTQ (Frantar et al. 2022, arXiv 2210.17323); HoldfastError where a Hessian could not be inverted."""

    def on_finalize(self, state: Any, **kwargs: Any) -> bool:
        failed = self._rtn_fallback_module_names
        if failed:
            raise HoldfastError(
                f"the Hessian of {failed[0]} cannot be inverted ({len(failed)} modules)",
                "compression recipe, gptq",
                "give more or longer calibration texts",
            )
        return bool(super().on_finalize(state, **kwargs))


class QuantizationModifier(LibraryQuantization):
    """Scales from calibration, those of a vision tower and projector among them.

    The library finishes the modules that it finds in the traced graph, block by block. Calls that it could not trace
    run there as they are: what they call (all of a LLaVA's tower) is observed, and would never be given scales.
    A linear that no record reaches stays dense if it is not of the language model.

    Raises:
        HoldfastError: no calibration record reaches a linear of the language model.
    """

    _reached: set[int] = PrivateAttr(default_factory=set)

    def on_sequential_epoch_end(self, state: Any, event: Any, modules: list[Any], **kwargs: Any) -> None:
        self._reached |= {id(module) for module in modules if _waits(module)}
        super().on_sequential_epoch_end(state, event, modules, **kwargs)

    def on_calibration_end(self, state: Any, event: Any, **kwargs: Any) -> None:
        observed = {n: m for n, m in state.model.named_modules() if hasattr(m, "input_observer")}
        rest = [module for module in observed.values() if _waits(module)]
        self.on_sequential_epoch_end(state, event, rest)
        unreached = {name: module for name, module in observed.items() if id(module) not in self._reached}
        super().on_calibration_end(state, event, **kwargs)
        if bare := [name for name in part_linears(state.model, ["language"]) if name in unreached]:
            what = f"no calibration record reaches {bare[0]} ({len(bare)} modules)"
            raise HoldfastError(what, "compression recipe, quantize", "give more calibration texts")
        for module in unreached.values():
            QuantizationMetadata.clear_quantization(module)


def _waits(module: Any) -> bool:
    """Whether inputs were observed and no scale was made of them yet: statistics are dropped once one is."""
    return hasattr(module, "input_observer") and module.input_observer.has_statistics


class _Smoothing:
    """What AWQ and SmoothQuant check alike: that smoothing changes nothing but the scales, and took place."""

    def check(self, model: Any, probe: torch.Tensor, mappings: Sequence[Any]) -> None:
        """Raises HoldfastError: a decoder block without a mapping, or a mapping that changes the function."""
        method = type(self).__name__.removesuffix("Modifier")
        covered = {id(layer) for mapping in mappings for layer in mapping.balance_layers}
        bare = [
            number
            for number, block in enumerate(decoder_layers(model))
            if not any(id(linear) in covered for linear in layer_linears(block).values())
        ]
        if bare:
            what = f"llm-compressor knows no {method} mapping for block {bare[0]} of a {type(model).__name__}"
            raise HoldfastError(what, "compression recipe, quantize", "use gptq or rtn for this model")
        if not _preserves_function(model, probe, mappings):
            what = f"{method}'s mappings in llm-compressor do not fit the blocks of a {type(model).__name__}"
            raise HoldfastError(what, "compression recipe, quantize", "use gptq or rtn for this model")

    def smoothed(self, mappings: Sequence[Any], before: dict[str, torch.Tensor]) -> None:
        """Raises HoldfastError when not one norm has changed: nothing was scaled."""
        norms = {m.smooth_name: m.smooth_layer.weight for m in mappings if m.smooth_layer.weight.ndim == 1}
        if norms and all(torch.equal(weight, before[name]) for name, weight in norms.items()):
            method = type(self).__name__.removesuffix("Modifier")
            what = f"{method} scaled nothing, the result would be round-to-nearest"
            raise HoldfastError(what, "compression recipe, quantize", "use other calibration texts, or rtn")


class AWQModifier(_Smoothing, LibraryAWQ):
    """AWQ (Lin et al. 2023, arXiv 2306.00978), eq. 4-5: scales s = mean|X|^r, here over mean|W|^(1-r) as well
    (AutoAWQ's "duo scaling"), r of 20 the one with the least output error of attention, MLP or down projection.

    Raises:
        HoldfastError: no mapping for a decoder block, a mapping that is no identity in this model, or a mapping
            that was skipped.
    """

    _probe: torch.Tensor = PrivateAttr()
    _norms: dict[str, torch.Tensor] = PrivateAttr(default_factory=dict)

    def _set_resolved_mappings(self, model: Any) -> None:
        try:
            super()._set_resolved_mappings(model)
        except ValueError as error:
            raise _no_mappings("AWQ", model) from error
        self.check(model, self._probe, self._resolved_mappings)
        self._norms = _norm_weights(self._resolved_mappings)

    def _apply_smoothing(self, model: Any) -> None:
        with _pageable_without_accelerator():
            super()._apply_smoothing(model)

    def on_calibration_end(self, state: Any, event: Any, **kwargs: Any) -> None:
        super().on_calibration_end(state, event, **kwargs)
        done = {metrics["layer_name"] for metrics in self._error_metrics}
        skipped = [m.smooth_name for m in self._resolved_mappings if m.smooth_name not in done]
        if skipped:
            what = f"AWQ skipped {skipped[0]}: its block gives NaN or infinite values"
            raise HoldfastError(what, "compression recipe, quantize", "use a wider dtype (float32, bfloat16)")
        self.smoothed(self._resolved_mappings, self._norms)


class SmoothQuantModifier(_Smoothing, LibrarySmoothQuant):
    """SmoothQuant (Xiao et al. 2022, arXiv 2211.10438), eq. 4: s_j = max|X_j|^a / max|W_j|^(1-a).

    llm-compressor takes half the range (max - min)/2 of an input for its max|X_j|.

    Raises:
        HoldfastError: as :class:`AWQModifier`.
    """

    _probe: torch.Tensor = PrivateAttr()
    _norms: dict[str, torch.Tensor] = PrivateAttr(default_factory=dict)

    def on_initialize(self, state: Any, **kwargs: Any) -> bool:
        try:
            return bool(super().on_initialize(state, **kwargs))
        except (RuntimeError, ValueError) as error:
            raise _no_mappings("SmoothQuant", state.model) from error

    def on_calibration_start(self, state: Any, event: Any, **kwargs: Any) -> None:
        self.check(state.model, self._probe, self.resolved_mappings_ or [])
        self._norms = _norm_weights(self.resolved_mappings_ or [])
        super().on_calibration_start(state, event, **kwargs)

    def on_calibration_end(self, state: Any, event: Any, **kwargs: Any) -> None:
        super().on_calibration_end(state, event, **kwargs)
        self.smoothed(self.resolved_mappings_ or [], self._norms)


@torch.no_grad()
def _preserves_function(model: Any, probe: torch.Tensor, mappings: Sequence[Any]) -> bool:
    """Whether dividing what the mappings smooth and multiplying what they balance leaves the model's output.

    Tried on the first tokens of one sequence with random powers of two, which floating point takes and gives
    back exactly.
    """
    draw = torch.Generator().manual_seed(0)
    ids = probe[:, :PROBE_TOKENS].to(next(model.get_input_embeddings().parameters()).device)
    factors = [
        2.0 ** (2 * torch.randint(0, 2, (m.balance_layers[0].in_features,), generator=draw) - 1)
        for m in mappings
    ]
    with calibration_forward_context(model), DisableQuantization(model):
        before = language_model(model)(input_ids=ids)[0]
        if not bool(before.isfinite().all()):
            what = "the model's hidden states are NaN or infinite on calibration text"
            raise HoldfastError(what, type(model).__name__, "use a wider dtype (float32, bfloat16)")
        for mapping, factor in zip(mappings, factors, strict=True):
            _scale(mapping, factor)
        try:
            after = language_model(model)(input_ids=ids)[0]
        finally:
            for mapping, factor in zip(mappings, factors, strict=True):
                _scale(mapping, 1 / factor)
    return bool((after - before).float().norm() <= PRESERVED * before.float().norm())


def _scale(mapping: Any, factor: torch.Tensor) -> None:
    """Input columns of what is balanced times ``factor``, output of what is smoothed divided by it."""
    for layer in mapping.balance_layers:
        update_offload_parameter(layer, "weight", layer.weight * factor.to(layer.weight))
    smooth = mapping.smooth_layer
    for name in ("weight", "bias"):
        values = getattr(smooth, name, None)
        if values is not None:
            divisor = torch.ones(values.shape[0], dtype=values.dtype, device=values.device)
            # A fused projection smooths with its last rows (llm-compressor does the same).
            divisor[-len(factor) :] = factor.to(values)
            update_offload_parameter(smooth, name, values / divisor.view(-1, *[1] * (values.ndim - 1)))


def _norm_weights(mappings: Sequence[Any]) -> dict[str, torch.Tensor]:
    return {
        m.smooth_name: m.smooth_layer.weight.detach().clone()
        for m in mappings
        if m.smooth_layer.weight.ndim == 1
    }


def _no_mappings(method: str, model: Any) -> HoldfastError:
    what = f"llm-compressor knows no {method} mappings for a {type(model).__name__}"
    return HoldfastError(what, "compression recipe, quantize", "use gptq or rtn for this model")


@contextmanager
def _pageable_without_accelerator() -> Iterator[None]:
    """AWQ pins its cached inputs unasked; torch can pin memory for an accelerator only and raises without."""
    if torch.accelerator.is_available():
        yield
    else:
        with patch_attr(IntermediatesCache, "pin_memory", lambda *_args, **_kwargs: None):
            yield
