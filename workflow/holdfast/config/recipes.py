"""What each stage depends on: its recipe, exactly those keys of the config and no others.

A recipe is what Snakemake compares (``params``): whatever stands in it makes results stale when it
changes, whatever does not cannot. So a seed stands only where it is used, and an edit's recipe
holds the candidates of a search only for what it searches.
"""

from typing import TYPE_CHECKING, Any

from holdfast.config.compressions import calibrated
from holdfast.config.needs import KEYS as NEEDS
from holdfast.config.values import WITHOUT_STRENGTH
from holdfast.evaluation.judges.substring import quick_judge
from holdfast.versions import STAGE_VERSIONS

if TYPE_CHECKING:
    from holdfast.config.study import Study

OWN_TASK = "holdfast_choice"  # the zero-shot task that comes with the package
Recipe = dict[str, Any]
TASKS = "zero-shot-tasks"  # the download of their data


def recipe(
    study: "Study",
    stage: str,
    *,
    model: str | None = None,
    compression: str | None = None,
    method: str | None = None,
    role: str | None = None,
    attack: str | None = None,
    judge: str | None = None,
) -> Recipe:
    """The recipe of one stage's job, ready for JSON, with the stage's version.

    Raises KeyError for a stage, model, compression, method, role, attack or model judge that the study does not have.
    """
    evaluate = study.evaluate
    version = STAGE_VERSIONS[stage]
    keys: Recipe = {}  # of activations, which have none
    match stage:
        case "prompts" | "pairs" | "draw" | "modalities":
            keys = prompts(study, str(role)) if stage == "prompts" else of_pairs(study, stage)
        case "fetch":
            keys = judge_checkpoint(study, judge) if judge else dense_checkpoint(study, str(model))
        case "compress":
            keys = compress(study, str(compression))
        case "direction":
            keys = study.direction.model_dump()
        case "compare" | "transfer" | "image-use":
            keys = {"seed": study.seed} | (evaluate.transfer.model_dump() if stage == "transfer" else {})
        case "mediate":
            keys = evaluate.mediation.model_dump() | {
                "seed": study.seed,
                "ablation": study.direction.ablation,
                "judge": quick_judge(evaluate.judges),
                "batch_size": evaluate.generate.batch_size,
            }
        case "edit" | "instruct" | "steer" | "recalibrate" | "tune":
            keys = after_compression(study, stage, str(compression), str(method))
        case "generate":
            keys = evaluate.generate.model_dump() | (attack_setting(study, attack) if attack else {})
        case "judge" | "judge-by-model" | "score":
            scored = {"judge": quick_judge(evaluate.judges)}
            keys = scored if stage == "score" else judging(study, judge)
        case "ability" | "visual":
            keys = ability(study) if stage == "ability" else visual(study)
        case "tables" | "figures" | "report":
            keys = {"study": study.study, "judges": evaluate.judges}
        case "text" | "disjoint":
            tasks = evaluate.zero_shot.model_dump(exclude={"limit"})
            keys = held_out(study) if stage == "text" else {"held_out": held_out(study), **tasks}
    return {**keys, "version": version}


def downloads(study: "Study") -> dict[str, Recipe]:
    """What a study needs of the hub, beside its prompts: the recipe of each download, by its name.

    Models, published checkpoints and judges at their revisions, and the data of the zero-shot tasks that are not local.
    """
    found: dict[str, Recipe] = {}
    version = STAGE_VERSIONS["download"]
    used = [model.source for model in study.models.values()]
    used += [section.source for section in study.compressions.values() if hasattr(section, "source")]
    judges = study.evaluate.judge_models
    used += [judges[name].source for name in study.evaluate.judges if name in judges]
    for source in used:
        if source.startswith("hub:"):
            found[download_name(source)] = {"source": source, "version": version}
    asked = study.evaluate.zero_shot
    tasks = [] if asked.folder else [task for task in asked.tasks if task != OWN_TASK]
    if tasks:
        found[TASKS] = {"tasks": tasks, "version": version}
    return found


def download_name(source: str) -> str:
    """``ORG--NAME@REVISION`` of a ``hub:`` source: a file's name."""
    return source.removeprefix("hub:").replace("/", "--")


def prompts(study: "Study", role: str) -> Recipe:
    """A role's prompt set, or a draw of calibration texts."""
    if role == "calibration":
        return study.calibration.model_dump(exclude_none=True, exclude={"tokens"}) | {"seed": study.seed}
    if role not in study.prompts.roles():
        raise KeyError(role)
    label = "harmful" if role == "attack" or role.startswith("harmful") else "harmless"
    return getattr(study.prompts, role).model_dump(exclude_none=True) | {"label": label, "role": role}


def of_pairs(study: "Study", stage: str) -> Recipe:
    """Which pairs a study asks, what is drawn as they are, and directions found on that; raises KeyError where it has
    none of it."""
    if stage == "pairs" and study.pairs:
        return study.pairs.model_dump(exclude_none=True)
    if stage == "draw" and study.modalities:
        return study.modalities.model_dump(include={"learnt_on", "limit"})
    if stage == "modalities" and study.modalities:
        return study.modalities.model_dump(include={"pairs", "nulls"}) | {"seed": study.seed}
    raise KeyError(stage)


def ability(study: "Study") -> Recipe:
    return {
        "zero_shot": study.evaluate.zero_shot.model_dump(),
        "perplexity": study.evaluate.perplexity.model_dump(exclude_none=True),
    }


def visual(study: "Study") -> Recipe:
    """Which questions about images a study asks; raises KeyError where it asks none."""
    section = study.evaluate.visual
    if section is None:
        raise KeyError("visual")
    own = {"benchmark", "limit"} if section.benchmark else None
    return section.model_dump(include=own, exclude_none=True)


def attack_setting(study: "Study", name: str) -> Recipe:
    keys = study.evaluate.attacks[name].model_dump(exclude_none=True, exclude={"model"})
    return {"samples": 1, "seed": study.seed} | keys if "temperature" in keys else keys


def dense_checkpoint(study: "Study", name: str) -> Recipe:
    """What is fetched for a model; ``vision`` only where it has it, so that checkpoints of others stay good."""
    keys = study.models[name].model_dump(exclude=NEEDS)
    return {key: value for key, value in keys.items() if key != "vision" or value is not None}


def judge_checkpoint(study: "Study", name: str) -> Recipe:
    """What is fetched for a judge that is a model."""
    return study.evaluate.judge_models[name].model_dump(exclude_none=True, exclude={"judge", *NEEDS})


def judging(study: "Study", judge: str | None) -> Recipe:
    """One model judge, or all substring lists: a model has its own files, and adding it judges nothing else again."""
    evaluate = study.evaluate
    if judge is None:
        return {"judges": [name for name in evaluate.judges if name not in evaluate.judge_models]}
    kind, generate = evaluate.judge_models[judge].judge, evaluate.generate
    # Left out where it is transformers: verdicts of studies that knew nothing else stay good.
    backend = {} if generate.backend == "transformers" else {"backend": generate.backend}
    return {"name": judge, "judge": kind, "batch_size": generate.batch_size, **backend}


def held_out(study: "Study") -> Recipe:
    """The text that perplexity is measured on, and that calibration must not hold."""
    return study.evaluate.perplexity.model_dump(exclude_none=True, exclude={"window", "windows"})


def compress(study: "Study", name: str) -> Recipe:
    keys = study.compressions[name].model_dump(exclude_none=True, exclude={"of"})
    if calibrated(keys):
        ours = {"samples": study.calibration.samples, "tokens": study.calibration.tokens, "seed": study.seed}
        keys = ours | keys
    return keys


def after_compression(study: "Study", stage: str, compression: str, method: str) -> Recipe:
    """Of the stages that make a method's checkpoint, one a kind of method."""
    match stage:
        case "edit":
            return edit(study, method)
        case "steer":
            return steer(study, method)
        case "recalibrate":
            keys = study.methods[method].model_dump() | {"judge": quick_judge(study.evaluate.judges)}
            return keys | {"compress": recipe(study, "compress", compression=compression)}
        case "tune":
            keys = study.methods[method].model_dump(exclude_none=True)
            return {"seed": study.seed, "judge": quick_judge(study.evaluate.judges)} | keys
    return study.methods[method].model_dump()


def edit(study: "Study", name: str) -> Recipe:
    keys = study.methods[name].model_dump(exclude_none=True)
    if keys["direction"] == "random":
        keys.setdefault("seed", study.seed)
    if "matched_to" in keys:
        return {k: keys[k] for k in ("edit", "direction", "matched_to", "seed")}
    if keys["variant"] not in WITHOUT_STRENGTH:
        keys.setdefault("alpha", "search")
    searched = {
        candidates: getattr(study.search, candidates)
        for key, candidates in (("variant", "variants"), ("layer", "layers"), ("alpha", "alphas"))
        if keys.get(key) == "search"
    }
    if searched:
        keys["search"] = searched | study.search.model_dump(include={"max_kl", "max_over_refusal"})
        keys["judge"] = quick_judge(study.evaluate.judges)
    return keys


def steer(study: "Study", name: str) -> Recipe:
    keys = study.methods[name].model_dump(exclude_none=True)
    if keys["steer"] == "random":
        keys.setdefault("seed", study.seed)
    if "matched_to" not in keys and keys.setdefault("alpha", "search") == "search":
        keys["search"] = study.search.model_dump(include={"steering", "max_kl", "max_over_refusal"})
        keys["judge"] = quick_judge(study.evaluate.judges)
    return keys
