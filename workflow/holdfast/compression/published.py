"""Compressed checkpoints that others published: brought beside their dense original, weights untouched."""

from pathlib import Path
from typing import Any

from holdfast.edited_checkpoints import read_weight
from holdfast.errors import HoldfastError
from holdfast.files import read_json, write_json
from holdfast.formats import Format, format_of
from holdfast.model_folders import (
    INDEX,
    RECIPE,
    headers,
    link,
    read_config,
    refuse_steered,
    settings,
    weight_files,
)
from holdfast.skeletons import skeleton, stored_modules
from holdfast.sources import source_folder


def bring(source: str, dense: Path, out: Path) -> str | None:
    """Link a published checkpoint's weights and config into ``out``; the caller carries the rest from ``dense``.

    The tokenizer, chat template and settings are the dense original's, so that both models are asked the same
    tokens; the published checkpoint's own differ at most in what nobody should compare.

    Args:
        source: ``hub:ORG/NAME@REVISION`` or ``path:FOLDER``.

    Returns:
        The commit, of a ``hub:`` source.

    Raises:
        HoldfastError: it cannot be fetched, is not complete, needs remote code the model's settings do not
            allow, is steered at run time, is stored in a format that cannot be read, or is not a compression of
            this model.
    """
    folder = source_folder(source)
    refuse_steered(folder)
    if "auto_map" in read_config(folder) and not settings(dense)["trust_remote_code"]:
        remedy = "set trust_remote_code: true on the model if you trust it"
        raise HoldfastError("it comes with Python code of its own", source, remedy)
    config = _config(folder)
    stored_as = format_of(folder, config)
    _refuse_another_model(source, folder, stored_as, dense)
    _refuse_unreadable(folder, stored_as)
    shards = weight_files(folder)
    for file in shards:
        # auto-gptq named its one file after the settings, where transformers does not look for it.
        link(file, out / ("model.safetensors" if len(shards) == 1 else file.name))
    for file in [folder / INDEX, folder / RECIPE, *folder.glob("*.py")]:
        if file.is_file() and (len(shards) > 1 or file.name != INDEX):
            link(file, out / file.name)
    write_json(out / "config.json", config)
    return folder.name if source.startswith("hub:") else None


def _config(folder: Path) -> dict[str, Any]:
    """config.json, with the quantization that auto-gptq wrote into a file of its own."""
    config = read_config(folder)
    apart = folder / "quantize_config.json"
    if "quantization_config" not in config and apart.is_file():
        config["quantization_config"] = {"quant_method": "gptq", **read_json(apart)}
    return config


def _refuse_another_model(source: str, folder: Path, stored_as: Format, dense: Path) -> None:
    """HoldfastError unless the checkpoint has the dense model's matrices, by name and shape, and stores them all."""
    ours, theirs = skeleton(dense), skeleton(folder)
    shapes = [{name: tuple(p.shape) for name, p in m.state_dict().items()} for m in (ours, theirs)]
    for name in sorted(shapes[0].keys() | shapes[1].keys()):
        if shapes[0].get(name) != shapes[1].get(name):
            here, there = (found.get(name, "missing") for found in shapes)
            what = f"{name} is {there} there and {here} in the dense model"
            raise HoldfastError(what, source, "name a checkpoint made from this model")
    stored = stored_modules(folder, stored_as.modules(headers(folder)))
    head = theirs.get_output_embeddings()
    for name, module in theirs.named_modules():
        # A head that is tied to the embedding is not stored.
        if module is not head and "weight" in module._parameters and name not in stored:
            raise HoldfastError(f"no stored weight for {name}", source, "fetch the checkpoint again")


def _refuse_unreadable(folder: Path, stored_as: Format) -> None:
    """HoldfastError unless a quantized matrix can be read back: here, and not stages later."""
    modules = stored_as.modules(headers(folder)).items()
    if first := next((module for module, parts in modules if stored_as.is_quantized(parts)), None):
        read_weight(folder, f"{first}.weight", stored_as)
