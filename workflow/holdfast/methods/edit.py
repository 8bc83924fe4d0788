"""The stage ``edit``: where AIRD (or its random control) is applied, found on validation prompts, and written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from holdfast.architectures import decoder_layers, module_name, writer
from holdfast.checkpoints import load_model, load_tokenizer
from holdfast.config.values import Layer, Variant
from holdfast.edited_checkpoints import edited_copy
from holdfast.files import atomic_folder, write_json
from holdfast.methods.edit_candidates import Candidate, candidates, layer_groups, left_out, original
from holdfast.methods.edit_choice import choose_edit
from holdfast.methods.edit_search import EditSearch, Ranking
from holdfast.methods.matched import matched_record
from holdfast.methods.validation import Trials, searched
from holdfast.model_folders import refuse_steered, settings
from holdfast.prompts.images import read_instructions
from holdfast.provenance import Recorder
from holdfast.records import Record
from holdfast.refusal.direction import load_fitting
from holdfast.refusal.interventions import random_unit
from holdfast.refusal.scores import RefusalScore
from holdfast.weight_statistics import weight_statistics


def edit_checkpoint(
    model_dir: Path,
    out: Path,
    *,
    dense: Path,
    direction_dir: Path,
    own_direction_dir: Path,
    harmful: Path,
    harmless: Path,
    harmful_train: Path,
    harmless_train: Path,
    recipe: Mapping[str, Any],
    matched_to: Path | None = None,
) -> dict[str, Any]:
    """Write the edited copy of a compressed checkpoint, with ``edit.json``.

    ``recipe``: variant (a name or ``search``), matrices, layer (``source``, number, list or ``search``), alpha (number
    or ``search``), keep_sparsity, direction (``dense``, or ``random`` with seed: each change with the Frobenius norm of
    the one along the dense direction), search {variants, layers, alphas, max_kl, max_over_refusal} and the judge that
    verifies its winner; a matched control takes variant, matrices, layer, alpha and keep_sparsity from ``matched_to``
    (another edit's ``edit.json``).
    Searching uses validation prompts only, with the score of ``score_check.search_score``; without one: no edit.
    """
    recorder = Recorder("edit", dict(recipe))
    target = matched_record("edit", recipe, matched_to, _Edited)
    refuse_steered(model_dir)
    plan = {**recipe, **matched_plan(target)} if target else dict(recipe)
    found, own = load_fitting(direction_dir, model_dir), load_fitting(own_direction_dir, model_dir)
    model, tokenizer, chosen = load_model(model_dir), load_tokenizer(model_dir), settings(model_dir)
    random = recipe.get("direction") == "random"
    texts = {
        name: read_instructions(path, model_dir)
        for name, path in (
            ("harmful", harmful),
            ("harmless", harmless),
            ("harmful_train", harmful_train),
            ("harmless_train", harmless_train),
        )
    }
    groups, missing = layer_groups(plan, found.layer, len(decoder_layers(model))), left_out(plan, model_dir)

    def named() -> list[Candidate]:
        return candidates(
            model,
            tokenizer,
            chosen,
            plan,
            groups,
            direction=random_unit(found.unit, recipe["seed"]) if random else found.unit,
            as_strong_as=found.unit if random else None,
            own_direction=own.unit,
            folder=model_dir,
            dense=dense,
            harmful_train=texts["harmful_train"],
            harmless_train=texts["harmless_train"],
        )

    def search(score: RefusalScore, trials: Trials) -> tuple[Candidate | None, dict[str, Any]]:
        starts = [min(group) for group in groups]
        measured = EditSearch(
            model, score, texts["harmful"], texts["harmless"], starts, model_dir, plan["search"]["max_kl"]
        )
        ranking = Ranking(measured, named())
        winner, said = choose_edit(ranking, trials, model_dir)
        return winner, said | {"trace": ranking.trace()}

    found_out: dict[str, Any] = {"score": None, "reason": "", "validation": None}
    if plan.get("alpha") != 0 and "search" in (plan["variant"], plan["layer"], plan.get("alpha")):
        winner, found_out = searched(
            search,
            model,
            tokenizer,
            chosen,
            own=own.about,
            dense=found.about,
            harmful=texts["harmful"],
            harmless=texts["harmless"],
            recipe=plan,
        )
    else:
        winner = next(iter(named()), None)
    made = winner or Candidate(None, [], 0.0, {})
    weights = {}
    for (layer, kind), edit in made.edits.items():
        linear = writer(decoder_layers(model)[layer], kind)
        weights[f"{module_name(model, linear)}.weight"] = edit.applied(original(model, linear, model_dir))
    about = {
        "variant": made.variant,
        "direction": recipe.get("direction", "dense"),
        "layers": made.layers,
        "alpha": made.alpha,
        "matrices": list(plan["matrices"]),
        "keep_sparsity": plan["keep_sparsity"],
        "requantize": plan["requantize"],
        "left_out": missing,
        "leaderboard": [],
        "trace": [],
        **found_out,
    }
    with atomic_folder(out) as folder:
        edited_copy(model_dir, folder, weights, requantize=plan["requantize"])
        write_json(folder / "edit.json", about)
        recorder.write(
            folder / "provenance.json",
            [model_dir, direction_dir, own_direction_dir, harmful, harmless, harmful_train, harmless_train],
            edit={k: v for k, v in about.items() if k != "trace"},
            **weight_statistics(folder, source=model_dir),
        )
    return about


class _Edited(Record):
    variant: Variant | None
    matrices: list[Literal["o_proj", "down_proj"]]
    layers: list[Layer]
    alpha: float | None
    keep_sparsity: bool
    requantize: bool


def matched_plan(target: Mapping[str, Any]) -> dict[str, Any]:
    """What a control shares with the edit it is matched to, from that one's ``edit.json``."""
    return {
        "variant": target["variant"],
        "matrices": target["matrices"],
        "layer": target["layers"],
        "alpha": target["alpha"],
        "keep_sparsity": target["keep_sparsity"],
        "requantize": target["requantize"],
    }
