"""The edits to choose among: which variants, layers and strengths a recipe names, each as changes of matrices."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from holdfast.architectures import Writer, decoder_layers, module_name, writer
from holdfast.batching import halving
from holdfast.config.values import WITHOUT_STRENGTH
from holdfast.edited_checkpoints import read_weight
from holdfast.errors import HoldfastError
from holdfast.files import read_json
from holdfast.methods.aird import Update, rank_one
from holdfast.methods.kept_sparsity import kept
from holdfast.model_folders import DTYPES, RECIPE, read_config
from holdfast.prompts.images import Instruction, text_of
from holdfast.prompts.processors import mismatch_told
from holdfast.prompts.templates import by_length, encode, forward_inputs, post_instruction_tokens

Edits = Mapping[tuple[int, Writer], Update]

SAMPLES = 512  # inputs of a matrix that ``keep_sparsity`` reads, half of them of harmful prompts
BATCH = 32


@dataclass(frozen=True)
class Candidate:
    """An edit to try: ``alpha`` is None for variants without strength, ``variant`` for no edit at all."""

    variant: str | None
    layers: list[int]
    alpha: float | None
    edits: Edits


def candidates(
    model: PreTrainedModel,
    tokenizer: Any,
    chosen: Mapping[str, Any],
    plan: Mapping[str, Any],
    groups: Sequence[list[int]],
    *,
    direction: Tensor,
    as_strong_as: Tensor | None = None,
    own_direction: Tensor,
    folder: Path,
    dense: Path,
    harmful_train: Sequence[Instruction],
    harmless_train: Sequence[Instruction],
) -> list[Candidate]:
    """Every edit that a recipe names; those of strength 0 are none and left out.

    Args:
        chosen: the checkpoint's settings (``model_folders.settings``).
        plan: ``variant``, ``matrices``, ``alpha``, ``keep_sparsity``, and ``search`` where one is searched.
        groups: the layer sets to try (:func:`layer_groups`).
        direction: r̂ [d_model].
        as_strong_as: of a random control, the dense r̂: each matrix's change gets the Frobenius norm that the same edit
            along it has there. Wᵀr̂ is longer for a direction that a layer writes along than for a random one.
        own_direction: the compressed model's own, for ``realign``.
        folder: the checkpoint that ``model`` was loaded from; dense: the dense model's, for ``restore``.
        harmful_train: with ``harmless_train`` for ``keep_sparsity``.
        harmless_train: for ``centred`` and ``null-space``.

    Raises:
        HoldfastError: ``restore``, asked for by name, on an AWQ checkpoint; a dense model of another shape.
    """
    names = possible_variants(plan, folder)
    keys = sorted({(layer, name) for group in groups for layer in group for name in plan["matrices"]})
    harmless: dict[tuple[int, Writer], Tensor] = {}
    if {"centred", "null-space"} & set(names):
        harmless = matrix_inputs(model, tokenizer, harmless_train, chosen, keys)
    both: dict[tuple[int, Writer], Tensor] = {}
    if plan["keep_sparsity"]:
        each = max(1, SAMPLES // 2 // len(post_instruction_tokens(tokenizer, chosen)))
        both = matrix_inputs(model, tokenizer, [*harmful_train[:each], *harmless_train[:each]], chosen, keys)

    made: dict[str, dict[tuple[int, Writer], Update]] = {variant: {} for variant in names}
    for key in tqdm(keys, desc="edits at α = 1", unit="matrix", mininterval=2):
        linear = writer(decoder_layers(model)[key[0]], key[1])
        weight = original(model, linear, folder)
        dense_weight = (
            read_weight(dense, f"{module_name(model, linear)}.weight") if "restore" in names else None
        )
        if dense_weight is not None and dense_weight.shape != weight.shape:
            what = f"its matrices are {tuple(dense_weight.shape)}, those of {folder} {tuple(weight.shape)}"
            raise HoldfastError(what, str(dense), "give the dense model that was compressed")
        whole = [
            rank_one(
                variant,
                weight,
                along,
                dense_weight=dense_weight,
                own_direction=own_direction,
                harmless_inputs=harmless.get(key),
            )
            for along in (direction, as_strong_as)
            if along is not None
            for variant in names
        ]
        updates: Sequence[Update] = kept(weight, whole, both[key]) if plan["keep_sparsity"] else whole
        if as_strong_as is not None:
            pairs = zip(updates[: len(names)], updates[len(names) :], strict=True)
            updates = [norm_matched(update, target, weight) for update, target in pairs]
        for variant, update in zip(names, updates, strict=True):
            made[variant][key] = update
    found = []
    for variant in names:
        for group in groups:
            of_group = {key: update for key, update in made[variant].items() if key[0] in group}
            for alpha in alpha_values(plan, variant):
                scaled = {k: edit if alpha is None else edit.scaled(alpha) for k, edit in of_group.items()}
                found.append(Candidate(variant, group, alpha, scaled))
    return [candidate for candidate in found if candidate.alpha != 0]


def norm_matched(update: Update, target: Update, weight: Tensor) -> Update:
    """The update with the Frobenius norm of ``target``; one that changes nothing stays so."""
    norm = update.norm(weight)
    return update.scaled(target.norm(weight) / norm) if norm > 0 else update


def possible_variants(plan: Mapping[str, Any], folder: Path) -> list[str]:
    """The variants to try: the one named, or of those searched all that the checkpoint allows."""
    names = list(plan["search"]["variants"]) if plan["variant"] == "search" else [plan["variant"]]
    if "restore" in names and rescaled(folder):
        # In a search it is one of several, and the others may do.
        if names == ["restore"]:
            what = "AWQ has rescaled what the edited matrices read, so the dense weights do not fit in"
            raise HoldfastError(what, f"variant restore on {folder}", "use another variant")
        names.remove("restore")
    return names


def left_out(plan: Mapping[str, Any], folder: Path) -> list[str]:
    """Variants that a search was to try and the checkpoint does not allow.

    Raises HoldfastError for one asked for by name.
    """
    possible = possible_variants(plan, folder)
    return (
        [name for name in plan["search"]["variants"] if name not in possible]
        if plan["variant"] == "search"
        else []
    )


def rescaled(folder: Path) -> bool:
    """Whether AWQ made the checkpoint, by its config, Holdfast's record or llm-compressor's recipe.

    AWQ scales what o_proj and down_proj read, and their columns the other way: no peers of the dense ones.

    Raises HoldfastError for a record that is not JSON.
    """
    quantization = read_config(folder).get("quantization_config") or {}
    record = read_json(folder / "provenance.json") if (folder / "provenance.json").is_file() else {}
    recipe = record.get("recipe") if isinstance(record, dict) else None
    notes = folder / RECIPE
    return (
        quantization.get("quant_method") == "awq"
        or (isinstance(recipe, dict) and recipe.get("quantize") == "awq")
        or (notes.is_file() and "AWQ" in notes.read_text(encoding="utf-8", errors="replace"))
    )


def matrix_inputs(
    model: PreTrainedModel,
    tokenizer: Any,
    texts: Sequence[Instruction],
    chosen: Mapping[str, Any],
    keys: Sequence[tuple[int, Writer]],
) -> dict[tuple[int, Writer], Tensor]:
    """Inputs of the named matrices at the post-instruction positions: (layer, name) → [prompt × position, d_in]."""
    count = len(post_instruction_tokens(tokenizer, chosen))
    layers = decoder_layers(model)
    found: dict[tuple[int, Writer], Tensor] = {}

    def run(rows: Sequence[int]) -> dict[tuple[int, Writer], Tensor]:
        inputs = forward_inputs(model, encode(tokenizer, [texts[i] for i in rows], chosen))
        with torch.inference_mode(), mismatch_told(model):
            model.base_model(**inputs, use_cache=False)
        return dict(found)

    with contextlib.ExitStack() as stack:
        for layer, name in keys:

            def hook(_module: Any, args: tuple[Tensor], key: tuple[int, Writer] = (layer, name)) -> None:
                found[key] = args[0][:, -count:].flatten(0, 1).float().cpu()

            stack.callback(writer(layers[layer], name).register_forward_pre_hook(hook).remove)
        order = [row for rows in by_length([len(text_of(t)) for t in texts], BATCH) for row in rows]
        passes = halving(run, order, BATCH)
    return {key: torch.cat([each[key] for each in passes]) for key in keys}


def original(model: PreTrainedModel, linear: nn.Linear, folder: Path) -> Tensor:
    """The weight that a linear of the model loaded from ``folder`` stands for, (d_out, d_in).

    bitsandbytes' are read from the files, each format's own way.
    """
    if linear.weight.dtype in DTYPES.values():
        return linear.weight.data
    return read_weight(folder, f"{module_name(model, linear)}.weight")


def layer_groups(plan: Mapping[str, Any], source: int, n_layers: int) -> list[list[int]]:
    """The layer sets to try: one, or one for each layer searched; ``source``: where the dense direction was found.

    Raises HoldfastError for a layer that does not exist.
    """
    layer = plan["layer"]
    if layer == "search":
        layers = plan["search"]["layers"]
        groups = [[number] for number in (range(n_layers) if layers == "all" else layers)]
    elif layer == "source":
        groups = [[source]]
    else:
        groups = [[layer] if isinstance(layer, int) else list(layer)]
    if wrong := [number for group in groups for number in group if not 0 <= number < n_layers]:
        raise HoldfastError(
            f"layer {wrong[0]} does not exist", "edit", f"the model has layers 0 … {n_layers - 1}"
        )
    return groups


def alpha_values(plan: Mapping[str, Any], variant: str) -> list[float | None]:
    if variant in WITHOUT_STRENGTH:
        return [None] if plan.get("alpha") != 0 else [0.0]
    alphas = plan["search"]["alphas"] if plan["alpha"] == "search" else [plan["alpha"]]
    return [float(a) for a in alphas]
