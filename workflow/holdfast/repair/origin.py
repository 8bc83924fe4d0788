"""How a checkpoint was compressed, as far as its own files tell."""

from pathlib import Path
from typing import Any

from holdfast.config.compressions import QUANTIZATIONS
from holdfast.files import read_json
from holdfast.methods.edit_candidates import rescaled
from holdfast.model_folders import read_config


def origin(folder: Path, density: float | None) -> dict[str, Any]:
    """``{how, awq}``: in words, and whether AWQ made it, whose rescaled matrices the dense weights do not fit into.

    Args:
        folder: the checkpoint as it was given; what is brought beside the dense model has another's record.
        density: of its linears, None for a quantized one.

    Raises HoldfastError for a record that is not JSON.
    """
    record = read_json(folder / "provenance.json") if (folder / "provenance.json").is_file() else {}
    recipe = record.get("recipe") if isinstance(record, dict) else None
    recipe = recipe if isinstance(recipe, dict) else {}
    quantization = read_config(folder).get("quantization_config") or {}
    return {"how": _in_words(recipe, quantization, density), "awq": rescaled(folder)}


def _in_words(recipe: dict[str, Any], quantization: dict[str, Any], density: float | None) -> str:
    if (method := recipe.get("prune")) and (recipe.get("pattern") or recipe.get("sparsity")):
        share = recipe.get("pattern") or f"{100 * recipe['sparsity']:g} % of the weights set to zero"
        return f"pruned by {method}, {share}"
    if (method := recipe.get("quantize")) in QUANTIZATIONS:
        bits = f", {recipe['bits']} bits" if recipe.get("bits") else ""
        group = f" in groups of {recipe['group_size']}" if isinstance(recipe.get("group_size"), int) else ""
        return f"quantized by {method}{bits}{group}"
    if quantization:
        return f"quantized, stored as {quantization.get('quant_method', 'an unnamed format')}"
    if density is not None and density < 1:
        return f"{100 * (1 - density):.1f} % of the weights of its linears are zero"
    return "its files do not tell how"
