"""The stage ``steer``: the dense model's refusal direction added at run time, as strong as validation prompts allow.

Activation addition after Turner et al. 2023 (arXiv 2308.10248), with the direction of Arditi et al. 2024 (arXiv
2406.11717, eq. 3): x ← x + α (mean harmful − mean harmless) at the input of the direction's own block, at every
position. The weights stay as they are.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from holdfast.checkpoints import load_model, load_tokenizer
from holdfast.edited_checkpoints import edited_copy
from holdfast.errors import HoldfastError
from holdfast.files import atomic_folder, write_json
from holdfast.methods.matched import matched_record
from holdfast.methods.validation import TRIES, Trials, searched
from holdfast.model_folders import STEERING, refuse_steered, settings
from holdfast.prompts.images import Instruction, read_instructions
from holdfast.provenance import Recorder
from holdfast.records import Record
from holdfast.refusal.direction import load_fitting
from holdfast.refusal.interventions import added, random_unit
from holdfast.refusal.scores import RefusalScore, first_answer_token, kl_divergence
from holdfast.weight_statistics import weight_statistics


def steer_checkpoint(
    model_dir: Path,
    out: Path,
    *,
    direction_dir: Path,
    own_direction_dir: Path,
    harmful: Path,
    harmless: Path,
    recipe: Mapping[str, Any],
    matched_to: Path | None = None,
) -> dict[str, Any]:
    """Write a copy of a compressed checkpoint that is steered when it is loaded, with ``steer.json``.

    Args:
        direction_dir: the dense model's direction, whose mean difference is added at its own layer.
        own_direction_dir: the compressed model's, whose refusal score the search reads; the dense model's where that
            is not valid (``score_check.search_score``).
        harmful, harmless: validation prompts.
        recipe: steer (``dense``, or ``random`` with seed: a random vector of the same length), alpha (number or
            ``search``), search {steering, max_kl, max_over_refusal} and the judge that verifies its winner; a
            matched control takes alpha from ``matched_to``, the ``steer.json`` of another steered copy.

    Returns:
        What ``steer.json`` holds: direction, layer, alpha, norm (of what is added), score, reason (why a search adds
        nothing, or empty), validation, trace.

    Raises:
        HoldfastError: a checkpoint that is steered already, a direction of another model, or ``matched_to``
            without its file.
    """
    recorder = Recorder("steer", dict(recipe))
    target = matched_record("steer", recipe, matched_to, _Steered)
    refuse_steered(model_dir)
    alpha = float(target["alpha"]) if target else recipe["alpha"]
    found, own = load_fitting(direction_dir, model_dir), load_fitting(own_direction_dir, model_dir)
    vector = found.difference
    if recipe["steer"] == "random":
        vector = random_unit(vector, recipe["seed"]) * vector.norm()
    found_out: dict[str, Any] = {"score": None, "reason": "", "validation": None}
    if alpha == "search":
        refused, answered = (read_instructions(path, model_dir) for path in (harmful, harmless))
        model, tokenizer, chosen = load_model(model_dir), load_tokenizer(model_dir), settings(model_dir)

        def search(score: RefusalScore, trials: Trials) -> tuple[float | None, dict[str, Any]]:
            bounds = recipe["search"]
            trace = strengths(model, score, vector, found.layer, refused, answered, bounds["steering"])
            best, reason = choose_alpha(trace, bounds["max_kl"], trials, vector, found.layer)
            return best, {"reason": reason, "trace": trace}

        best, found_out = searched(
            search,
            model,
            tokenizer,
            chosen,
            own=own.about,
            dense=found.about,
            harmful=refused,
            harmless=answered,
            recipe=recipe,
        )
        alpha = best or 0.0
    if not (alpha * vector).norm().isfinite():
        raise HoldfastError(f"alpha {alpha} times the direction is infinite", "steer", "use a smaller alpha")
    about = {
        "direction": recipe["steer"],
        "layer": found.layer,
        "alpha": alpha,
        "norm": (alpha * vector).norm().item(),
        "trace": [],
        **found_out,
    }
    with atomic_folder(out) as folder:
        edited_copy(model_dir, folder, {})
        (folder / STEERING).parent.mkdir()
        added_vector = {"vector": (alpha * vector).float().contiguous()}
        save_file(added_vector, folder / STEERING, metadata={"layer": str(found.layer)})
        write_json(folder / "steer.json", about)
        recorder.write(
            folder / "provenance.json",
            [model_dir, direction_dir, own_direction_dir, harmful, harmless],
            steering={k: v for k, v in about.items() if k != "trace"},
            **weight_statistics(folder, source=model_dir),
        )
    return about


class _Steered(Record):
    alpha: float = Field(ge=0)


def strengths(
    model: PreTrainedModel,
    score: RefusalScore,
    vector: Tensor,
    layer: int,
    harmful: Sequence[Instruction],
    harmless: Sequence[Instruction],
    alphas: Sequence[float],
) -> list[dict[str, Any]]:
    """Mean refusal score on harmful prompts and mean KL divergence on harmless ones, of 0 and of each alpha."""
    before = first_answer_token(model, score.tokenizer, harmless, score.settings)
    rows = [{"alpha": 0.0, "refusal_score": score(model, harmful).mean().item(), "kl": 0.0}]
    for alpha in tqdm(alphas, desc="steering", unit="alpha", mininterval=2):
        with added(model, alpha * vector, layer):
            after = first_answer_token(model, score.tokenizer, harmless, score.settings)
            refusal = score(model, harmful).mean().item()
        kl = kl_divergence(before, after).mean().item()
        rows.append({"alpha": alpha, "refusal_score": refusal, "kl": kl})
    return rows


def choose_alpha(
    trace: Sequence[Mapping[str, Any]], max_kl: float, trials: Trials, vector: Tensor, layer: int
) -> tuple[float | None, str]:
    """The alpha to add, by real answers as an edit's strength is (:mod:`holdfast.methods.validation`); None and why."""
    base = trace[0]["refusal_score"]
    gains = {row["alpha"]: row["refusal_score"] - base for row in trace if row["kl"] <= max_kl}
    raising = sorted((alpha for alpha, gain in gains.items() if gain > 0), key=lambda alpha: -gains[alpha])
    if not raising:
        return None, "no strength keeps the bound on kl and raises the refusal score"
    for alpha in raising[:TRIES]:
        trials.rejected(alpha, added(trials.verifier.model, alpha * vector, layer), alpha=alpha)
    found = trials.best(gains.__getitem__)
    tried = len(trials.tries)
    why = f"none of the {tried} best strengths is borne out by the answers to validation prompts"
    return found, why if found is None else ""
