"""Compressed checkpoints that others published: brought beside their dense original, weights untouched."""

from pathlib import Path
from typing import Any

from holdfast.errors import HoldfastError
from holdfast.files import read_json, write_json
from holdfast.model_folders import INDEX, link, read_config, settings, weight_files
from holdfast.sources import source_folder

SHAPE = ("hidden_size", "num_hidden_layers", "vocab_size")


def bring(source: str, dense: Path, out: Path, scratch: Path) -> str | None:
    """Link a published checkpoint's weights and config into ``out``; the caller carries the rest from ``dense``.

    The tokenizer, chat template and settings are the dense original's, so that both models are asked the same
    tokens; the published checkpoint's own differ at most in what nobody should compare.

    Args:
        source: ``hub:ORG/NAME@REVISION`` or ``path:FOLDER``.
        scratch: an unused folder name for what has to be converted.

    Returns:
        The commit, of a ``hub:`` source.

    Raises:
        HoldfastError: it cannot be fetched, is not complete, needs remote code the model's settings do not
            allow, or is not a compression of this model (another width, depth or vocabulary).
    """
    folder = source_folder(source, scratch)
    ours, theirs = _shape(read_config(dense)), _shape(read_config(folder))
    for key in SHAPE:
        if ours[key] != theirs[key]:
            what = f"it has {key} {theirs[key]}, the dense model {ours[key]}"
            raise HoldfastError(what, source, "name a checkpoint made from this model")
    if "auto_map" in read_config(folder) and not settings(dense)["trust_remote_code"]:
        remedy = "set trust_remote_code: true on the model if you trust it"
        raise HoldfastError("it comes with Python code of its own", source, remedy)
    shards = weight_files(folder)
    for file in shards:
        # auto-gptq named its one file after the settings, where transformers does not look for it.
        link(file, out / ("model.safetensors" if len(shards) == 1 else file.name))
    for file in [folder / INDEX, *folder.glob("*.py")]:
        if file.is_file() and (len(shards) > 1 or file.suffix == ".py"):
            link(file, out / file.name)
    write_json(out / "config.json", _config(folder))
    return folder.name if source.startswith("hub:") else None


def _config(folder: Path) -> dict[str, Any]:
    """config.json, with the quantization that auto-gptq wrote into a file of its own."""
    config = read_config(folder)
    apart = folder / "quantize_config.json"
    if "quantization_config" not in config and apart.is_file():
        config["quantization_config"] = {"quant_method": "gptq", **read_json(apart)}
    return config


def _shape(config: dict[str, Any]) -> dict[str, Any]:
    """Width, depth and vocabulary; of a vision-language model, the language model's."""
    text = config.get("text_config") or {}
    return {key: text.get(key, config.get(key)) for key in SHAPE}
