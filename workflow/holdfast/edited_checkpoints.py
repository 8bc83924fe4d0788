"""A checkpoint with a few weights replaced: rewrites the shards that hold them, hard-links all else.

A weight of a quantized linear becomes a dense one: its packed entries leave the shards and its module joins
the list of what the quantization config leaves alone, so that transformers and vLLM load it as any other. Or it
is quantized again into the scheme it was stored in, by rounding to nearest with scales of its own.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from holdfast.checkpoints import is_finite, refuse_not_finite
from holdfast.errors import HoldfastError
from holdfast.files import read_json, write_json
from holdfast.formats import Format, format_of
from holdfast.formats.base import Parts
from holdfast.model_folders import (
    INDEX,
    Stored,
    carry,
    config_dtype,
    headers,
    link,
    read_config,
    weight_files,
)
from holdfast.skeletons import stored_modules

Modules = Mapping[str, Mapping[str, str]]  # as Format.modules
GPTQ_CONFIG = "quantize_config.json"  # AutoGPTQ's own copy of config.json's quantization_config


def edited_copy(
    source: Path, out: Path, weights: dict[str, torch.Tensor], requantize: bool = False
) -> list[str]:
    """Write ``source`` with some weights replaced into the folder ``out`` (made if need be; not atomic).

    Reads the headers of all shards, but tensors only of those that change, one shard at a time. Every tensor
    that is not edited keeps its bits.

    Args:
        source: a checkpoint in one of the formats of :mod:`holdfast.formats`.
        out: an empty folder, such as that of ``files.atomic_folder``.
        weights: parameter name (``model.layers.3.self_attn.o_proj.weight``) to its new dense values
            (d_out, d_in), cast to the dtype it is stored in, or the config's dtype where it was quantized.
        requantize: store edited weights of quantized linears in the checkpoint's own scheme, not dense. Dense
            ones of a checkpoint that quantizes activations (W8A8, FP8, LLM.int8) lose that too.

    Returns:
        The names that changed. A weight equal to the stored (dequantized) one is no change: an edit that
        does nothing copies the checkpoint bit for bit.

    Raises:
        HoldfastError: a name is not among the stored weights (tied weights are stored once, under the
            embedding's name), another shape, NaN or infinity in a weight or in a shard to be rewritten, a
            damaged shard, a quantization that cannot be read or written.
    """
    stored, stored_as = headers(source), format_of(source)
    modules = stored_as.modules(stored)
    quantized = [module for module, parts in modules.items() if stored_as.is_quantized(parts)]
    dtype = config_dtype(source)
    leaving: set[str] = set()
    coming: dict[str, dict[str, torch.Tensor]] = {}
    changed, dense = [], []
    for name, weight in weights.items():
        place = _stored_name(source, stored, modules, name)
        module = place.removesuffix(".weight")
        parts = _parts(source, stored, modules, place)
        packed = module in quantized
        old = stored_as.dequantized(module, parts) if packed else parts["weight"]
        if old.shape != weight.shape:
            what = f"{name} is {tuple(old.shape)}, not {tuple(weight.shape)}"
            raise HoldfastError(what, str(source), "give weights of the same shape")
        new = weight.detach().to("cpu", dtype if packed else old.dtype).contiguous()
        if torch.equal(new, old.to(new.dtype)):
            continue
        changed.append(name)
        if packed and requantize:
            for part, tensor in stored_as.requantized(module, weight.detach().cpu(), parts).items():
                entry = modules[module][part]
                coming.setdefault(stored[entry].file, {})[entry] = tensor
        else:
            entries = list(modules[module].values()) if packed else [place]
            leaving |= set(entries)
            # A module's parts may lie in two shards; its values' is the larger one.
            file_name = stored[max(entries, key=lambda entry: stored[entry].bytes)].file
            coming.setdefault(file_name, {})[place] = new
            # Quantization configs use the model's names.
            dense += [name.removesuffix(".weight")] if packed else []
    # Here, not before: a cast to half precision or a new scale can overflow.
    refuse_not_finite({name: t for tensors in coming.values() for name, t in tensors.items()}, source)
    out.mkdir(parents=True, exist_ok=True)
    touched = {stored[entry].file for entry in leaving} | set(coming)
    for file in weight_files(source):
        if file.name in touched:
            _rewrite(file, out / file.name, leaving, coming.get(file.name, {}))
        else:
            link(file, out / file.name)
    if dense:
        _write_config(source, out, stored_as, dense, quantized)
    carry(source, out)
    moved = {name: file for file, tensors in coming.items() for name in tensors}
    _write_index(source, out, {n: about.file for n, about in stored.items() if n not in leaving} | moved)
    return changed


def read_weight(folder: Path, name: str, stored_as: Format | None = None) -> torch.Tensor:
    """One weight as stored, dequantized if need be: (d_out, d_in), on the CPU.

    ``stored_as``: the format where config.json does not tell it; else it is found there.

    Dense weights come in their stored dtype, compressed-tensors and auto-gptq ones in their scales',
    bitsandbytes ones in float32.

    Raises:
        HoldfastError: no such weight, or a quantization this does not know.
    """
    stored, stored_as = headers(folder), stored_as or format_of(folder)
    modules = stored_as.modules(stored)
    place = _stored_name(folder, stored, modules, name)
    parts = _parts(folder, stored, modules, place)
    if stored_as.is_quantized(parts):
        return stored_as.dequantized(place.removesuffix(".weight"), parts)
    return parts["weight"]


def set_weight(model: PreTrainedModel, name: str, weight: torch.Tensor) -> None:
    """The same edit in memory: replace a parameter's values, a quantized linear by a dense one.

    Raises:
        HoldfastError: the model has no linear of that name and shape.
    """
    module_path = name.removesuffix(".weight")
    parent, _, child = module_path.rpartition(".")
    try:
        linear = model.get_submodule(module_path)
    except AttributeError:
        linear = None
    shape = (getattr(linear, "out_features", None), getattr(linear, "in_features", None))
    if not isinstance(linear, nn.Linear) or shape != tuple(weight.shape):
        what = f"no linear {name} of shape {tuple(weight.shape)}"
        raise HoldfastError(what, type(model).__name__, "give a linear's weight by its full name")
    own: torch.Tensor = linear.weight
    # compressed-tensors leaves the class alone and quantizes the inputs in a forward of its own.
    if type(linear) is nn.Linear and not hasattr(linear, "quantization_scheme"):
        linear.weight.data = weight.to(own.device, own.dtype)
        return
    dense = nn.Linear(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
    dense.weight = nn.Parameter(weight.to(own.device, model.dtype), requires_grad=False)
    if linear.bias is not None:
        dense.bias = nn.Parameter(linear.bias.data, requires_grad=False)
    setattr(model.get_submodule(parent), child, dense.eval())


def _stored_name(folder: Path, stored: Mapping[str, Stored], modules: Modules, name: str) -> str:
    """What the files call a parameter; of a quantized one, what they would call it dense."""
    module = name.removesuffix(".weight")
    if name in stored or module in modules:
        return name
    renamed = stored_modules(folder, modules)
    return f"{renamed[module]}.weight" if module in renamed else name


def _parts(folder: Path, stored: Mapping[str, Stored], modules: Modules, name: str) -> Parts:
    """A weight's stored tensors by part; of one outside of any module (a bias), itself as ``weight``."""
    entries = modules.get(name.removesuffix(".weight"), {"weight": name} if name in stored else {})
    if not entries:
        remedy = "give the name of a stored weight; tied ones are stored under the embedding's name"
        raise HoldfastError(f"no weight {name}", str(folder), remedy)
    parts = {}
    for part, entry in entries.items():
        with safe_open(folder / stored[entry].file, "pt") as shard:
            parts[part] = shard.get_tensor(entry)
        _refuse_damaged(entry, parts[part], folder / stored[entry].file)
    return parts


def _rewrite(file: Path, out: Path, leaving: set[str], coming: dict[str, torch.Tensor]) -> None:
    with safe_open(file, "pt") as shard:
        kept = [name for name in shard.keys() if name not in leaving and name not in coming]  # noqa: SIM118
        tensors = {name: shard.get_tensor(name) for name in kept}
        metadata = shard.metadata()
    for name, tensor in tensors.items():
        _refuse_damaged(name, tensor, file)
    save_file(tensors | coming, out, metadata=metadata)


def _refuse_damaged(name: str, tensor: torch.Tensor, file: Path) -> None:
    if not is_finite(tensor):
        remedy = "fetch or write the checkpoint again"
        raise HoldfastError(f"{name} holds NaN or infinite values", str(file), remedy)


def _write_index(source: Path, out: Path, places: dict[str, str]) -> None:
    if not (source / INDEX).is_file():
        return
    index = read_json(source / INDEX)
    places = dict(sorted(places.items()))
    if index["weight_map"] == places:
        link(source / INDEX, out / INDEX)
        return
    sizes = [about.bytes for about in headers(out).values()]
    index["weight_map"] = places
    index["metadata"] = {**index.get("metadata", {}), "total_size": sum(sizes)}
    write_json(out / INDEX, index)


def _write_config(
    source: Path, out: Path, stored_as: Format, dense: Iterable[str], quantized: Iterable[str]
) -> None:
    """Name the dense modules in the quantization config's list of exceptions."""
    config = read_config(source)
    config["quantization_config"] = stored_as.without(config["quantization_config"], dense, quantized)
    write_json(out / "config.json", config)
    if (source / GPTQ_CONFIG).is_file():
        own = read_json(source / GPTQ_CONFIG)
        write_json(out / GPTQ_CONFIG, stored_as.without(own, dense, quantized))
