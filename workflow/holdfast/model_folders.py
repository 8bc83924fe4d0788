"""The files of a Hugging Face model folder: config, settings, and safetensors shards by their headers alone.

A checkpoint is a folder with ``config.json``, safetensors shards, the tokenizer's files and, where Holdfast wrote
it, ``holdfast.json`` (how to talk to the model), ``provenance.json``, and ``steering/`` (a vector that is added to
the residual stream whenever the model runs).
"""

import json
import os
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from holdfast.errors import HoldfastError
from holdfast.files import read_json
from holdfast.records import Record, require

SETTINGS: dict[str, Any] = {"thinking": None, "system_prompt": None, "trust_remote_code": False}
# What is added to the residual stream whenever the model runs, in a folder of its own: a loader that does not know
# of it must not take it for a shard.
STEERING = "steering/vector.safetensors"
INDEX = "model.safetensors.index.json"
RECIPE = "recipe.yaml"  # llm-compressor's: how it compressed the checkpoint
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
WEIGHT_SUFFIXES = (".safetensors", ".gguf", *PICKLES)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
HEADER_LIMIT = 100_000_000  # bytes; safetensors' own


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies and what it is, from its shard's header; ``dtype`` as safetensors names it (BF16)."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` as a dict.

    Raises:
        HoldfastError: no such folder, no config.json in it, or not JSON.
    """
    if not folder.is_dir():
        raise HoldfastError(
            "no such folder", str(folder), "give a Hugging Face model folder, or fetch it first"
        )
    if not (folder / "config.json").is_file():
        raise HoldfastError("no config.json", str(folder), "give a Hugging Face model folder")
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise _damaged("not a JSON object", folder / "config.json")
    return config


def config_dtype(folder: Path) -> torch.dtype:
    """The dtype of dense weights that the config states; float32 where it states none."""
    config = read_config(folder)
    text = config.get("text_config") or {}
    name = next((c[k] for c in (config, text) for k in ("dtype", "torch_dtype") if c.get(k)), "float32")
    return DTYPES[name]


class _Settings(Record):
    thinking: bool | None = None
    system_prompt: str | None = None
    trust_remote_code: bool = False


def settings(folder: Path) -> dict[str, Any]:
    """``holdfast.json``: thinking (bool or None, passed to the chat template where it is not None),
    system_prompt (str or None), trust_remote_code (bool); defaults where the file or a key is absent.

    Raises:
        HoldfastError: an unknown key, another type of value, or not JSON.
    """
    path = folder / "holdfast.json"
    found = read_json(path) if path.is_file() else {}
    require(_Settings, found, str(path), "write the keys as docs/formats.md has them")
    if unknown := sorted(set(found) - set(SETTINGS)):
        raise HoldfastError(f"unknown key {unknown[0]}", str(path), f"use {', '.join(SETTINGS)}")
    return SETTINGS | found


def weight_files(folder: Path) -> list[Path]:
    """The safetensors shards of a checkpoint, sorted, each as long as its header says.

    Raises:
        HoldfastError: as :func:`read_config` and :func:`check_shards`, or there are none (pickle-only checkpoints
            are refused).
    """
    files = _shards(folder)
    check_shards(folder)
    return files


def check_shards(folder: Path) -> None:
    """Refuse incomplete weights without reading a tensor: every shard has the length its header adds up to, and
    every shard of the index is there.

    Raises:
        HoldfastError: a shard is missing, truncated, or no safetensors file at all; names it.
    """
    for file in _shards(folder):
        _header(file)
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX)
        places = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
            raise _damaged("no weight_map in it", folder / INDEX)
        for name in sorted(set(places.values())):
            if not (folder / name).is_file():
                what = "no such shard, though the index names it"
                raise HoldfastError(what, str(folder / name), "fetch the checkpoint again")


def headers(folder: Path) -> dict[str, Stored]:
    """Every stored tensor by name; reads the shards' headers only. Errors as :func:`weight_files`."""
    return {
        name: Stored(
            file.name,
            about["dtype"],
            tuple(about["shape"]),
            about["data_offsets"][1] - about["data_offsets"][0],
        )
        for file in weight_files(folder)
        for name, about in _header(file).items()
    }


def refuse_steered(folder: Path) -> None:
    """Raises HoldfastError when a checkpoint is steered at run time: what is made from its files would not be."""
    if (folder / STEERING).exists():
        what = "the checkpoint is steered at run time, which a copy of its weights would lose"
        raise HoldfastError(what, str(folder), "give the checkpoint that was steered")


def carry(source: Path, out: Path) -> None:
    """Hard-link every file of ``source`` that ``out`` lacks: tokenizer, templates, processor, holdfast.json,
    remote code. Weights, their index and provenance stay behind: they tell of another stage.

    Raises:
        HoldfastError: ``source`` is steered.
    """
    refuse_steered(source)
    for file in sorted(p for p in source.iterdir() if p.is_file()):
        if (
            file.suffix in WEIGHT_SUFFIXES
            or file.name.startswith(".")
            or file.name in (INDEX, "provenance.json")
        ):
            continue
        if not (out / file.name).exists():
            link(file, out / file.name)


def link(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it where the file system cannot."""
    try:
        # Hub caches are full of symbolic links, whose targets are the files meant.
        os.link(source.resolve(), target)
    except OSError:
        shutil.copy2(source, target)


def _shards(folder: Path) -> list[Path]:
    read_config(folder)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        if any(p.suffix in PICKLES for p in folder.iterdir()):
            what = "weights only as pickle, which can run code"
            raise HoldfastError(what, str(folder), "convert them to safetensors")
        raise HoldfastError(
            "no safetensors weights", str(folder), "give a complete Hugging Face model folder"
        )
    return files


def _header(file: Path) -> dict[str, dict[str, Any]]:
    """A shard's tensors: dtype, shape, data_offsets. The format is eight bytes of length, JSON, then the data."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else HEADER_LIMIT
        if length >= HEADER_LIMIT:
            raise _damaged("no safetensors header", file)
        text = stream.read(length)
    try:
        tensors = json.loads(text)
        tensors.pop("__metadata__", None)
        needed = 8 + length + max((about["data_offsets"][1] for about in tensors.values()), default=0)
    except (ValueError, AttributeError, KeyError, TypeError):
        raise _damaged("its safetensors header is damaged", file) from None
    if size != needed:
        raise _damaged(f"it has {size} bytes where its header says {needed}", file)
    return tensors


def _damaged(what: str, file: Path) -> HoldfastError:
    return HoldfastError(what, str(file), "fetch or write the checkpoint again")
