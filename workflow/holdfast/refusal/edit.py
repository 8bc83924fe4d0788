"""The edit stage: where AIRD (or its random control) is applied, found on validation prompts, and written."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from holdfast.architectures import Writer, decoder_layers, module_name, writer
from holdfast.checkpoints import load_model, load_tokenizer
from holdfast.edited_checkpoints import edited_copy, read_weight, set_weight
from holdfast.errors import HoldfastError
from holdfast.files import atomic_folder, read_json, write_json
from holdfast.model_folders import DTYPES, settings
from holdfast.prompts.sources import read_records
from holdfast.prompts.templates import by_length, encode, forward_inputs, post_instruction_tokens
from holdfast.provenance import Recorder
from holdfast.refusal.aird import SCALED, RankOne, rank_one
from holdfast.refusal.direction import load_direction, load_score
from holdfast.refusal.interventions import random_unit
from holdfast.refusal.scores import RefusalScore, kl_divergence
from holdfast.weight_statistics import weight_statistics

Edits = dict[tuple[int, Writer], RankOne]


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


def original(model: PreTrainedModel, linear: nn.Linear, folder: Path) -> Tensor:
    """The weight that a linear of the model loaded from ``folder`` stands for, (d_out, d_in).

    bitsandbytes' are read from the files, each format's own way.
    """
    if linear.weight.dtype in DTYPES.values():
        return linear.weight.data
    return read_weight(folder, f"{module_name(model, linear)}.weight")


@contextlib.contextmanager
def edited(model: PreTrainedModel, edits: Edits, folder: Path) -> Iterator[None]:
    """The model of ``folder`` with the edited matrices dense in memory, and its own modules again afterwards."""
    kept: dict[str, tuple[nn.Linear, Tensor]] = {}
    layers = decoder_layers(model)
    try:
        for (layer, kind), edit in edits.items():
            linear = writer(layers[layer], kind)
            name = module_name(model, linear)
            kept[name] = linear, linear.weight.data
            set_weight(model, f"{name}.weight", edit.applied(original(model, linear, folder)))
        yield
    finally:
        for name, (linear, values) in kept.items():
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, linear)  # a quantized one was replaced by a dense one
            linear.weight.data = values


def search(
    model: PreTrainedModel,
    score: RefusalScore,
    harmful: Sequence[str],
    harmless: Sequence[str],
    candidates: Sequence[tuple[list[int], float | None, Edits]],
    max_kl: float,
    folder: Path,
) -> tuple[int | None, list[dict[str, Any]]]:
    """Try each edit on validation prompts; the highest mean refusal score on harmful prompts wins, among those
    whose mean KL on harmless prompts is at most ``max_kl`` (nats). (None, trace) when none is allowed."""
    baseline, base_first = score(model, harmful), score.first_answer_token(model, harmless)
    trace: list[dict[str, Any]] = []
    for layers, alpha, edits in tqdm(candidates, desc="edit search", unit="edit", mininterval=2):
        with edited(model, edits, folder):
            kl = kl_divergence(base_first, score.first_answer_token(model, harmless)).mean().item()
            refusal = score(model, harmful).mean().item() if kl <= max_kl else None
        trace.append({"layers": layers, "alpha": alpha, "refusal_score": refusal, "kl": kl})
    allowed = [i for i, row in enumerate(trace) if row["refusal_score"] is not None]
    best = max(allowed, key=lambda i: trace[i]["refusal_score"], default=None)
    if best is not None and trace[best]["refusal_score"] <= baseline.mean().item():
        best = None
    trace.insert(0, {"layers": [], "alpha": 0.0, "refusal_score": baseline.mean().item(), "kl": 0.0})
    return best, trace


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

    ``recipe``: variant, matrices, layer (``source``, number, list or ``search``), alpha (number or
    ``search``), direction (``dense`` or ``random`` with seed), search {layers, alphas, max_kl}; a matched
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
    groups, alphas = layer_groups(plan, found.layer, len(decoder_layers(model))), alpha_values(plan)
    keys = [(layer, name) for group in groups for layer in group for name in plan["matrices"]]
    inputs: dict[tuple[int, Writer], Tensor] = {}
    if plan["variant"] in {"centred", "null-space"}:
        inputs = matrix_inputs(
            model, tokenizer, [p["text"] for p in read_records(harmless_train)], chosen, keys
        )

    def build(group: list[int], alpha: float | None) -> Edits:
        edits = {}
        for key in [(layer, name) for layer in group for name in plan["matrices"]]:
            linear = writer(decoder_layers(model)[key[0]], key[1])
            restored = None
            if plan["variant"] == "restore":
                restored = read_weight(dense, f"{module_name(model, linear)}.weight")
            edits[key] = rank_one(
                plan["variant"],
                original(model, linear, model_dir),
                r,
                1.0 if alpha is None else alpha,
                dense_weight=restored,
                own_direction=own.unit,
                harmless_inputs=inputs.get(key),
            )
        return edits

    candidates = [(group, alpha, build(group, alpha)) for group in groups for alpha in alphas if alpha != 0]
    trace: list[dict[str, Any]] = []
    best: int | None = 0 if candidates else None
    if "search" in (plan["layer"], plan.get("alpha")):
        score = load_score(own.about, tokenizer, chosen)
        harmful_texts, harmless_texts = ([p["text"] for p in read_records(f)] for f in (harmful, harmless))
        best, trace = search(
            model, score, harmful_texts, harmless_texts, candidates, plan["search"]["max_kl"], model_dir
        )
    group, alpha, edits = candidates[best] if best is not None else ([], 0.0, {})
    weights = {}
    for (layer, kind), edit in edits.items():
        linear = writer(decoder_layers(model)[layer], kind)
        weights[f"{module_name(model, linear)}.weight"] = edit.applied(original(model, linear, model_dir))
    about = {
        "variant": plan["variant"],
        "direction": recipe.get("direction", "dense"),
        "layers": group,
        "alpha": alpha,
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


def alpha_values(plan: Mapping[str, Any]) -> list[float | None]:
    if plan["variant"] not in SCALED:
        return [None] if plan.get("alpha") != 0 else [0.0]
    alphas = plan["search"]["alphas"] if plan["alpha"] == "search" else [plan["alpha"]]
    return [float(a) for a in alphas]
