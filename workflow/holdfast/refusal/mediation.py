"""Does one direction mediate refusal? Ablate and add it, and the dense model's, and random ones."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor

from holdfast.evaluation.generation import complete, generation_record
from holdfast.evaluation.judges import substring_judge, verdict
from holdfast.files import atomic_folder, write_jsonl
from holdfast.prompts.images import instructions
from holdfast.prompts.sources import read_records
from holdfast.prompts.templates import answer_opening
from holdfast.provenance import Recorder
from holdfast.refusal.direction import Direction, load_fitting
from holdfast.refusal.interventions import ablated, added, random_unit


def as_long(units: Sequence[Tensor], found: Direction) -> list[Tensor]:
    """Unit vectors [d_model], each made as long as the mean difference of ``found``."""
    return [unit * found.difference.norm() for unit in units]


def mediate(
    model_dir: Path,
    out: Path,
    direction_dir: Path,
    harmful: Path,
    harmless: Path,
    recipe: Mapping[str, Any],
    dense_direction_dir: Path | None = None,
) -> None:
    """Generate under each intervention on held-out prompts and judge the answers.

    Ablation is tried on harmful prompts (refusal should stop), addition on harmless ones (it should appear), each
    with the model's own direction, the dense model's where it is given (of a compressed model: does it transfer?),
    and random ones. What is ablated has no length and no layer; what is added does, so a random direction is added as
    each direction is: as long, at the same layer. Affine ablation always puts back this model's own harmless mean.
    Answers of a thinking model begin after an empty thought, as its refusal score is read.

    ``recipe``: prompts (of each kind), max_new_tokens, random_seeds (how many random directions), seed, ablation,
    judge.
    """
    from holdfast.checkpoints import load_model, load_tokenizer
    from holdfast.model_folders import settings

    recorder = Recorder("mediate", dict(recipe))
    inputs = [
        model_dir,
        direction_dir,
        harmful,
        harmless,
        *([dense_direction_dir] if dense_direction_dir else []),
    ]
    found = load_fitting(direction_dir, model_dir)
    dense = load_fitting(dense_direction_dir, model_dir) if dense_direction_dir else None
    model, tokenizer, chosen = load_model(model_dir), load_tokenizer(model_dir), settings(model_dir)
    prompts = {
        "harmful": read_records(harmful)[: recipe["prompts"]],
        "harmless": read_records(harmless)[: recipe["prompts"]],
    }
    asked = {
        "harmful": instructions(prompts["harmful"], harmful.parent, model_dir),
        "harmless": instructions(prompts["harmless"], harmless.parent, model_dir),
    }
    mean = found.harmless if recipe["ablation"] == "affine" else None
    random = [random_unit(found.unit, recipe["seed"] + i) for i in range(recipe["random_seeds"])]
    interventions: list[tuple[str, str, AbstractContextManager[None]]] = [
        ("baseline", "harmful", nullcontext()),
        ("baseline", "harmless", nullcontext()),
        ("ablate", "harmful", ablated(model, found.unit, mean)),
        *([("ablate-dense", "harmful", ablated(model, dense.unit, mean))] if dense else []),
        *(("ablate-random", "harmful", ablated(model, r, mean)) for r in random),
        ("add", "harmless", added(model, found.difference, found.layer)),
        *(("add-random", "harmless", added(model, v, found.layer)) for v in as_long(random, found)),
    ]
    if dense:
        interventions += [
            ("add-dense", "harmless", added(model, dense.difference, dense.layer)),
            *(("add-dense-random", "harmless", added(model, v, dense.layer)) for v in as_long(random, dense)),
        ]
    answers, verdicts = [], []
    judge = substring_judge(recipe["judge"])
    for name, kind, intervention in interventions:
        with intervention:
            done = complete(
                model,
                tokenizer,
                asked[kind],
                chosen,
                max_new_tokens=recipe["max_new_tokens"],
                batch_size=recipe.get("batch_size", "auto"),
                suffix=answer_opening(tokenizer, chosen),
                progress=f"{name} on {kind} prompts",
            )
        for prompt, answer in zip(prompts[kind], done, strict=True):
            what = {"intervention": name, "set": kind}
            answers.append({**generation_record(prompt, answer), **what})
            verdicts.append({**verdict(answers[-1], recipe["judge"], judge), **what})
    with atomic_folder(out) as folder:
        write_jsonl(folder / "answers.jsonl", answers)
        write_jsonl(folder / "verdicts.jsonl", verdicts)
        recorder.write(folder / "provenance.json", inputs)
