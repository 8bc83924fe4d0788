"""The stage ``edit``: where AIRD (or its random control) is applied, found on validation prompts, and written."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from holdfast.architectures import Writer, decoder_layers, module_name, writer
from holdfast.checkpoints import load_model, load_tokenizer
from holdfast.edited_checkpoints import edited_copy, read_weight
from holdfast.errors import HoldfastError
from holdfast.files import atomic_folder, read_json, write_json
from holdfast.model_folders import settings
from holdfast.prompts.sources import read_records
from holdfast.prompts.templates import by_length, encode, forward_inputs, post_instruction_tokens
from holdfast.provenance import Recorder
from holdfast.refusal.aird import SCALED, RankOne, rank_one
from holdfast.refusal.direction import load_direction, load_score
from holdfast.refusal.edit_search import Candidate, EditSearch, original
from holdfast.refusal.interventions import random_unit
from holdfast.weight_statistics import weight_statistics


def matrix_inputs(
    model: PreTrainedModel,
    tokenizer: Any,
    texts: Sequence[str],
    chosen: Mapping[str, Any],
    keys: Sequence[tuple[int, Writer]],
) -> dict[tuple[int, Writer], Tensor]:
    """Inputs of the named matrices at the post-instruction positions: (layer, name) → [prompt × position, d_in]."""
    count = len(post_instruction_tokens(tokenizer, chosen))
    layers = decoder_layers(model)
    found: dict[tuple[int, Writer], list[Tensor]] = {key: [] for key in keys}
    with contextlib.ExitStack() as stack:
        for layer, name in keys:

            def hook(_module: Any, args: tuple[Tensor], key: tuple[int, Writer] = (layer, name)) -> None:
                found[key].append(args[0][:, -count:].flatten(0, 1).float().cpu())

            stack.callback(writer(layers[layer], name).register_forward_pre_hook(hook).remove)
        for rows in by_length([len(t) for t in texts], 32):
            inputs = forward_inputs(model, encode(tokenizer, [texts[i] for i in rows], chosen))
            with torch.inference_mode():
                model.base_model(**inputs, use_cache=False)
    return {key: torch.cat(parts) for key, parts in found.items()}


def edit_checkpoint(
    model_dir: Path,
    out: Path,
    *,
    dense: Path,
    direction_dir: Path,
    own_direction_dir: Path,
    harmful: Path,
    harmless: Path,
    harmless_train: Path,
    recipe: Mapping[str, Any],
    matched_to: Path | None = None,
) -> dict[str, Any]:
    """Write the edited copy of a compressed checkpoint, with ``edit.json``.

    ``recipe``: variant (a name or ``search``), matrices, layer (``source``, number, list or ``search``), alpha (number
    or ``search``), direction (``dense`` or ``random`` with seed), search {variants, layers, alphas, max_kl}; a matched
    control takes variant, matrices, layer and alpha from ``matched_to`` (another edit's ``edit.json``).
    Searching uses validation prompts only, with the compressed model's own refusal score.
    """
    recorder = Recorder("edit", dict(recipe))
    if bool(recipe.get("matched_to")) != bool(matched_to):
        raise HoldfastError(
            "matched_to and --matched-to go together",
            "edit",
            "give the matched method and its edit.json, or neither",
        )
    plan = {**recipe, **matched_plan(matched_to)} if matched_to else dict(recipe)
    model, tokenizer, chosen = load_model(model_dir), load_tokenizer(model_dir), settings(model_dir)
    found, own = load_direction(direction_dir), load_direction(own_direction_dir)
    r = random_unit(found.unit, recipe["seed"]) if recipe.get("direction") == "random" else found.unit
    groups = layer_groups(plan, found.layer, len(decoder_layers(model)))
    keys = sorted({(layer, name) for group in groups for layer in group for name in plan["matrices"]})
    inputs: dict[tuple[int, Writer], Tensor] = {}
    if {"centred", "null-space"} & set(variants(plan)):
        texts = [p["text"] for p in read_records(harmless_train)]
        inputs = matrix_inputs(model, tokenizer, texts, chosen, keys)

    def unscaled(variant: str, key: tuple[int, Writer]) -> RankOne:
        linear = writer(decoder_layers(model)[key[0]], key[1])
        restored = (
            read_weight(dense, f"{module_name(model, linear)}.weight") if variant == "restore" else None
        )
        return rank_one(
            variant,
            original(model, linear, model_dir),
            r,
            dense_weight=restored,
            own_direction=own.unit,
            harmless_inputs=inputs.get(key),
        )

    candidates = []
    for variant in variants(plan):
        made = {key: unscaled(variant, key) for key in keys}
        for group in groups:
            for alpha in alpha_values(plan, variant):
                of_group = {key: made[key] for key in keys if key[0] in group}
                scaled = {k: edit if alpha is None else edit.scaled(alpha) for k, edit in of_group.items()}
                candidates.append(Candidate(variant, group, alpha, scaled))
    candidates = [candidate for candidate in candidates if candidate.alpha != 0]
    trace: list[dict[str, Any]] = []
    best: int | None = 0 if candidates else None
    if "search" in (plan["variant"], plan["layer"], plan.get("alpha")):
        score = load_score(own.about, tokenizer, chosen)
        harmful_texts, harmless_texts = ([p["text"] for p in read_records(f)] for f in (harmful, harmless))
        layers = [min(group) for group in groups]
        searched = EditSearch(
            model, score, harmful_texts, harmless_texts, layers, model_dir, plan["search"]["max_kl"]
        )
        best, trace = searched.run(candidates)
    if best is None:
        candidates, best = [Candidate(None, [], 0.0, {})], 0
    made_edit = candidates[best]
    weights = {}
    for (layer, kind), edit in made_edit.edits.items():
        linear = writer(decoder_layers(model)[layer], kind)
        weights[f"{module_name(model, linear)}.weight"] = edit.applied(original(model, linear, model_dir))
    about = {
        "variant": made_edit.variant,
        "direction": recipe.get("direction", "dense"),
        "layers": made_edit.layers,
        "alpha": made_edit.alpha,
        "matrices": list(plan["matrices"]),
        "requantize": plan["requantize"],
        "trace": trace,
    }
    with atomic_folder(out) as folder:
        edited_copy(model_dir, folder, weights, requantize=plan["requantize"])
        write_json(folder / "edit.json", about)
        recorder.write(
            folder / "provenance.json",
            [model_dir, direction_dir, own_direction_dir, harmful, harmless, harmless_train],
            edit={k: v for k, v in about.items() if k != "trace"},
            **weight_statistics(folder, source=model_dir),
        )
    return about


def matched_plan(path: Path) -> dict[str, Any]:
    """What a control shares with the edit it is matched to."""
    target = read_json(path)
    return {
        "variant": target["variant"],
        "matrices": target["matrices"],
        "layer": target["layers"],
        "alpha": target["alpha"],
        "requantize": target["requantize"],
    }


def layer_groups(plan: Mapping[str, Any], source: int, n_layers: int) -> list[list[int]]:
    """The layer sets to try: one, or one for each layer searched."""
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


def variants(plan: Mapping[str, Any]) -> list[str]:
    return list(plan["search"]["variants"]) if plan["variant"] == "search" else [plan["variant"]]


def alpha_values(plan: Mapping[str, Any], variant: str) -> list[float | None]:
    if variant not in SCALED:
        return [None] if plan.get("alpha") != 0 else [0.0]
    alphas = plan["search"]["alphas"] if plan["alpha"] == "search" else [plan["alpha"]]
    return [float(a) for a in alphas]
