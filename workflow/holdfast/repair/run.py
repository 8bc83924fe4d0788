"""The repair itself: its steps in order, each kept in the work folder until the output is whole."""

import gc
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from holdfast.compression import compress
from holdfast.errors import HoldfastError
from holdfast.files import atomic_folder, read_json, write_json, write_jsonl, write_text
from holdfast.methods.edit_candidates import alpha_values
from holdfast.model_folders import link, read_config, settings
from holdfast.prompts.overlap import check_disjoint
from holdfast.prompts.sources import read_records
from holdfast.provenance import Recorder
from holdfast.repair import editing, measuring
from holdfast.repair.card import model_card
from holdfast.repair.origin import origin
from holdfast.repair.outcome import MODELS, outcome
from holdfast.repair.pace import Pace, estimates, minutes, timed
from holdfast.repair.request import Request, asked, prompt_sets
from holdfast.repair.rules import NotRepairedError, reasons_against
from holdfast.repair.work import ORIGIN, REPORT, refuse_foreign, work_folder
from holdfast.sources import fetch, source_folder

Say = Callable[[str], None]


class Steps:
    """Runs what is not done yet, under one bar."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace

    def run(self, name: str, done: Path, step: Callable[..., Any], *given: Any, **named: Any) -> None:
        """``step(*given, **named)``, unless ``done`` is there: what the step writes last, or whole."""
        if done.exists():
            self.skip(name)
            return
        self.pace.begin(name)
        start = time.monotonic()
        step(*given, **named)
        gc.collect()  # a model's modules refer to each other: it would stay beside the next step's
        self.pace.end(name, time.monotonic() - start)

    def skip(self, name: str) -> None:
        self.pace.end(name, None)


def repair(wanted: Request, out: Path, say: Say) -> dict[str, Any]:
    """Write the repaired checkpoint with its card into ``out``; returns the record in its ``repair.json``.

    Args:
        wanted: see ``request.request``.
        out: the folder to write, whole or not at all; finished steps lie in ``OUT.work`` until then.
        say: takes lines for the user.

    Raises:
        NotRepairedError: no edit was found, or the result breaks one of ``rules.RULES``; nothing is written.
        HoldfastError: bad input, as of the stages.
    """
    recorder = Recorder("repair", {"quick": wanted.quick, "seed": wanted.seed})
    local = [s.partition(":")[2] for s in (wanted.compressed, wanted.dense) if s.startswith("path:")]
    refuse_foreign(out, *(Path(place).expanduser() for place in local))
    for place in local:
        settings(Path(place).expanduser())  # its mistakes are told here, where the folder has its own name
    given, sets = asked(wanted), prompt_sets(wanted)
    with work_folder(out, given) as (work, resumed):
        if resumed:
            say(f"{work} holds steps of the same repair: going on from there")
        try:
            prompts = write_prompts(work, sets)
            bring(wanted, work, say)
        except HoldfastError:
            if not resumed:  # bad input: there is nothing to go on from
                shutil.rmtree(work)
            raise
        record = find_and_measure(wanted, out, work, prompts, say)
        write(record, out, work, recorder, [Path(f) for f in (wanted.harmful, wanted.harmless) if f])
        shutil.rmtree(work)
    return record


def write_prompts(work: Path, sets: Mapping[str, list[dict[str, Any]]]) -> dict[str, Path]:
    """The six sets as files; HoldfastError when a prompt stands in two of them."""
    files = {name: work / "prompts" / f"{name}.jsonl" for name in sets}
    for name, file in files.items():
        write_jsonl(file, sets[name])
    check_disjoint(files)
    return files


def bring(wanted: Request, work: Path, say: Say) -> None:
    """The dense model into ``dense``, the compressed one beside it with the dense one's tokenizer."""
    if not (work / "dense/provenance.json").exists():
        say(f"reading {wanted.dense}")
        recipe: dict[str, Any] = {"source": wanted.dense, "adapter": wanted.adapter}
        if wanted.dense.startswith("path:"):
            chosen = settings(source_folder(wanted.dense))
            recipe |= {key: chosen[key] for key in ("thinking", "system_prompt")}
        if recipe.get("thinking") is None:
            # The answers measured are short: a thought would fill them. Other templates do not look at it.
            recipe["thinking"] = False
        fetch(recipe, work / "dense")
    if read_config(work / "dense").get("quantization_config"):
        raise HoldfastError("is quantized itself", wanted.dense, "give the dense original")
    if not (work / "compressed/provenance.json").exists():
        say(f"reading {wanted.compressed}")
        compress(work / "dense", work / "compressed", {"source": wanted.compressed})
    if not (work / ORIGIN).exists():
        density = read_json(work / "compressed/provenance.json")["density"]
        write_json(work / ORIGIN, origin(source_folder(wanted.compressed), density))


def find_and_measure(
    wanted: Request, out: Path, work: Path, prompts: Mapping[str, Path], say: Say
) -> dict[str, Any]:
    """Every step that takes long; the record of the outcome, if it may be written."""
    dense, compressed = work / "dense", work / "compressed"
    if not (work / "pace.json").exists():
        say("timing a first pass")
        timed(dense, [r["text"] for r in read_records(prompts["harmful_validation"])], work / "pace.json")
    recipe = editing.edit_recipe(compressed, read_json(work / ORIGIN)["awq"])
    sizes = {name: len(read_records(file)) for name, file in prompts.items()}
    strengths = sum(len(alpha_values(recipe, name)) for name in recipe["search"]["variants"])
    expected = estimates(read_json(work / "pace.json"), sizes, strengths, wanted.quick)
    say(
        f"{len(expected)} steps, about {minutes(sum(expected.values()))} on this machine without interruption"
    )
    pace = Pace(expected)
    try:
        steps = Steps(pace)
        find_directions(steps, work, prompts)
        find_edit(steps, work, prompts, recipe, wanted.seed)
        made = read_json(work / "repaired/edit.json")
        if not made["layers"]:
            told = f"no edit was found: {made['reason']} ({max(len(made['trace']) - 1, 0)} tried on validation prompts)"
            raise NotRepairedError([told], str(out), f"the search stands in {work}/repaired/edit.json")
        measured = measure(steps, work, prompts, wanted.quick)
    finally:
        pace.close()
    record = outcome(wanted, work, measured)
    write_json(work / REPORT, record)
    if against := reasons_against(measured["compressed"], measured["repaired"]):
        remedy = f"all numbers stand in {work / REPORT}"
        raise NotRepairedError(against, str(out), remedy, record)
    return record


def find_directions(steps: Steps, work: Path, prompts: Mapping[str, Path]) -> None:
    """The dense model's direction, and the compressed model's own."""
    dense, compressed = work / "dense", work / "compressed"
    caches = {model: work / f"{model.name}-activations" for model in (dense, compressed)}
    steps.run(
        "activations", caches[dense] / "provenance.json", editing.activations, dense, caches[dense], prompts
    )
    found, own = work / "direction", work / "own-direction"
    given = dense, caches[dense], found, prompts
    steps.run("direction", found / "provenance.json", editing.direction, *given)
    about = read_json(found / "direction.json")
    steps.run(
        "own activations",
        caches[compressed] / "provenance.json",
        editing.activations,
        *(compressed, caches[compressed], prompts),
    )
    steps.run(
        "own direction",
        own / "provenance.json",
        editing.own_direction,
        *(compressed, caches[compressed], own, prompts, about),
    )


def find_edit(
    steps: Steps, work: Path, prompts: Mapping[str, Path], recipe: Mapping[str, Any], seed: int
) -> None:
    """The edit, and, if one was found, its random control."""
    inputs = {
        "dense": work / "dense",
        "direction": work / "direction",
        "own": work / "own-direction",
        "prompts": prompts,
    }
    edited, control, compressed = work / "repaired", work / "control", work / "compressed"
    steps.run("edit", edited / "provenance.json", editing.edit, compressed, edited, recipe=recipe, **inputs)
    if read_json(edited / "edit.json")["layers"]:
        inputs |= {"recipe": editing.control_recipe(seed), "matched_to": edited / "edit.json"}
        steps.run("control", control / "provenance.json", editing.edit, compressed, control, **inputs)


def measure(
    steps: Steps, work: Path, prompts: Mapping[str, Path], quick: bool
) -> dict[str, measuring.Measured]:
    """Every model on the test prompts; of the control no more, since no rule asks for its ability."""
    test = {kind: prompts[f"{kind}_test"] for kind in measuring.SETS}
    for name in MODELS:
        folder = work / "measured" / name
        answers = folder / "verdicts/provenance.json"
        steps.run(f"answers, {name}", answers, measuring.answer, work / name, folder, test)
        if name != "control":
            found = folder / "ability.json"
            steps.run(f"ability, {name}", found, measuring.ability, work / name, found, quick)
    return {name: measuring.measured(work / "measured" / name) for name in MODELS}


def write(record: dict[str, Any], out: Path, work: Path, recorder: Recorder, inputs: list[Path]) -> None:
    """The output: the edited checkpoint's files, the card, the numbers, and its own provenance."""
    edited = work / "repaired"
    with atomic_folder(out) as folder:
        for file in sorted(p for p in edited.iterdir() if not p.name.startswith(".")):
            # A card that came with one of the models tells of another model.
            if file.name not in ("provenance.json", "README.md"):
                link(file, folder / file.name)
        write_text(folder / "README.md", model_card(record))
        write_json(folder / REPORT, record)
        statistics = read_json(edited / "provenance.json")
        kept = ("weights", "bytes", "density", "bits_per_weight", "modules", "edit")
        models = {name: record[name] for name in ("dense", "compressed")}
        recorder.write(folder / "provenance.json", inputs, **models, **{key: statistics[key] for key in kept})
