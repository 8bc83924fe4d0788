"""Zero-shot accuracy with lm-evaluation-harness, on the model already loaded."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.errors import HoldfastError, first_line
from holdfast.evaluation.zero_shot_tasks import tasks
from holdfast.hub import not_downloaded


def zero_shot(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Mapping[str, Any],
    *,
    items: bool = False,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """({task: {metric, value, stderr, n}}, the harness's own results, untouched).

    ``recipe``: tasks, limit (items a task, None: all), folder (local data of standard tasks, or None). ``items``: the
    summary also has ``correct``, 0 or 1 an item in the items' order, for paired comparisons.
    """
    from lm_eval import evaluator, simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    # It would ask git for the commit of the working directory, and git complains where that is no repository.
    evaluator.get_git_commit_hash = lambda: None
    folder = Path(recipe["folder"]) if recipe.get("folder") else None
    wanted = tasks(recipe["tasks"], folder)
    # Scanning the built-in tasks costs 8-25 s; local tasks need none of them.
    manager = TaskManager(include_defaults=any(isinstance(t, str) for t in wanted))
    try:
        results = simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=16),
            tasks=wanted,
            task_manager=manager,
            limit=recipe.get("limit"),
            bootstrap_iters=0,
            log_samples=items,
        )
    except (KeyError, ValueError, ConnectionError, OSError) as error:
        raise _told(error, [task for task in wanted if isinstance(task, str)]) from None
    samples = results.pop("samples", {})  # the items' texts: nothing to keep
    summary = {}
    for name in recipe["tasks"]:
        scores = results["results"][name]
        metric = "acc_norm" if name in {"arc_challenge", "openbookqa", "hellaswag"} else "acc"
        metric = metric if f"{metric},none" in scores else "acc"
        value, n = scores[f"{metric},none"], results["n-samples"][name]["effective"]
        summary[name] = {"metric": metric, "value": value, "stderr": (value * (1 - value) / n) ** 0.5, "n": n}
        if items:
            summary[name]["correct"] = [
                int(item[metric]) for item in sorted(samples[name], key=lambda item: item["doc_id"])
            ]
    return summary, results


def _told(error: Exception, from_hub: Sequence[str]) -> HoldfastError:
    """The harness's error in one line; ``from_hub``: the tasks whose data it brings itself."""
    from huggingface_hub import constants

    told = first_line(error)
    unreachable = isinstance(error, ConnectionError | OSError) or "cache" in told
    if from_hub and unreachable and constants.HF_HUB_OFFLINE:
        return not_downloaded(f"zero-shot tasks {', '.join(from_hub)}", {"tasks": list(from_hub)})
    if isinstance(error, KeyError | ValueError):
        what = f"the harness does not take these tasks ({type(error).__name__}: {told})"
        return HoldfastError(what, "evaluate.zero_shot.tasks", "check their names with `lm-eval ls tasks`")
    remedy = "go online once, or give `folder` with local data"
    return HoldfastError(f"task data cannot be loaded ({told})", "evaluate.zero_shot", remedy)
