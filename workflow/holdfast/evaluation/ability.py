"""What a model can still do: zero-shot tasks and perplexity, one model load for both."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from holdfast.errors import HoldfastError
from holdfast.evaluation.perplexity import perplexity
from holdfast.evaluation.zero_shot import zero_shot
from holdfast.evaluation.zero_shot_tasks import local_data
from holdfast.files import atomic_folder, read_json, sha256, write_json, write_text
from holdfast.prompts.sources import local_path
from holdfast.provenance import Recorder, package_versions
from holdfast.versions import STAGE_VERSIONS

KEPT = "measured.json"


def measure_ability(model_dir: Path, out: Path, recipe: Mapping[str, Any]) -> None:
    """Write ``zero_shot.json``, ``lm_eval.json`` (the harness's own results) and ``perplexity.json``.

    What an earlier run measured on this very checkpoint, with the same packages, settings and data, is taken from
    ``measured.json`` in ``out``: a new task measures that one alone.

    ``recipe``: sections ``zero_shot`` and ``perplexity``.
    """
    recorder = Recorder("ability", dict(recipe))
    packages = {name: version for name, version in package_versions().items() if name != "holdfast"}
    about = {
        "version": STAGE_VERSIONS["ability"],
        "model": recorder.checksum(model_dir),
        "packages": packages,
    }
    kept = _kept(out / KEPT, about)
    text, tasks = _text_settings(recipe["perplexity"]), _task_settings(recipe["zero_shot"])
    new = [name for name, settings in tasks.items() if kept["tasks"].get(name, {}).get("of") != settings]
    if kept["perplexity"].get("of") != text:
        kept["perplexity"] = {}
    if new or not kept["perplexity"]:
        _measure(model_dir, recipe, new, kept)
        for name in new:
            kept["tasks"][name]["of"] = tasks[name]
        kept["perplexity"]["of"] = text
    with atomic_folder(out) as folder:
        write_json(folder / "perplexity.json", kept["perplexity"]["found"])
        write_json(folder / "zero_shot.json", {name: kept["tasks"][name]["found"] for name in tasks})
        write_text(folder / "lm_eval.json", json.dumps(kept["lm_eval"], indent=2, default=str) + "\n")
        write_text(folder / KEPT, json.dumps(about | kept, default=str) + "\n")
        recorder.write(folder / "provenance.json", [model_dir])


def _measure(model_dir: Path, recipe: Mapping[str, Any], new: list[str], kept: dict[str, Any]) -> None:
    """Put what is not kept into ``kept``: the ``new`` tasks, and perplexity."""
    from holdfast.checkpoints import load_model, load_tokenizer

    model, tokenizer = load_model(model_dir), load_tokenizer(model_dir)
    if not kept["perplexity"]:
        kept["perplexity"] = {"found": perplexity(model, tokenizer, recipe["perplexity"])}
    if new:
        found, own = zero_shot(model, tokenizer, {**recipe["zero_shot"], "tasks": new})
        kept["tasks"] |= {name: {"found": found[name]} for name in new}
        # The harness's results are tables by task, and what holds for the run.
        of_tasks = {
            k: v for k, v in kept["lm_eval"].items() if isinstance(v, dict) and isinstance(own.get(k), dict)
        }
        kept["lm_eval"] = {**own, **{key: before | own[key] for key, before in of_tasks.items()}}


def _kept(path: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured before, if on the same checkpoint by the same packages; a file that is damaged is none."""
    try:
        found = read_json(path) if path.is_file() else {}
    except HoldfastError:
        found = {}
    if any(found.get(key) != value for key, value in about.items()):
        found = {}
    return {key: found.get(key, {}) for key in ("perplexity", "tasks", "lm_eval")}


def _text_settings(section: Mapping[str, Any]) -> dict[str, Any]:
    """What perplexity depends on, the text by its content."""
    source = section["source"]
    content = None if source.startswith("hub:") else sha256(local_path(source))
    return {**section, "content": content}


def _task_settings(section: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What the result of each task depends on; data that lie here by their content."""
    local = local_data(section["tasks"], Path(section["folder"]) if section.get("folder") else None)
    return {
        name: {"limit": section.get("limit"), "data": sha256(local[name]) if name in local else None}
        for name in section["tasks"]
    }
