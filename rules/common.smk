# Which study runs, where its results go, and the functions the rules share. Light imports only: every
# cluster job reads this again.
import gc
import itertools
import json
import os
import re
import sys
from pathlib import Path

from holdfast.cluster.claim import refuse_latecomer
from holdfast.cluster.configs import Sizes
from holdfast.cluster.needs import Requests
from holdfast.cluster.site import Site, here
from holdfast.config import AS_IS, DENSE, load_study
from holdfast.config.backend import answered_by, settled
from holdfast.config.recipes import TASKS, download_name, downloads
from holdfast.errors import HoldfastError
from holdfast.hub import SWITCHES, USERS

# Snakemake makes millions of objects that stay while it plans. With Python's own thresholds the collector looks at them
# over and over: a fifth of the time that planning takes.
gc.set_threshold(200_000, 30, 30)


def study_file():
    """The config of this run, relative to the working directory, so that a moved clone reruns nothing."""
    files = workflow.configfiles or [Path(workflow.basedir, "config/demo.yaml")]
    if len(files) > 1 or workflow.config_settings.config:
        where = "several --configfile" if len(files) > 1 else "--config"
        raise HoldfastError(
            "a study is one file",
            where,
            "write one config and give it with --configfile",
        )
    return Path(os.path.relpath(files[0]))


# Beside the workflow, whatever the working directory: an environment serves every study.
ENVIRONMENTS = os.path.relpath(f"{workflow.basedir}/.environments")

try:
    STUDY_FILE = study_file()
    STUDY = load_study(STUDY_FILE)
    if workflow.remote_exec:
        refuse_latecomer(Path("results", STUDY.study))
    # One backend for all cells, known before any job starts.
    ANSWERS = settled(
        STUDY,
        Path("results", STUDY.study),
        Path(ENVIRONMENTS),
        of_a_job=not workflow.is_main_process,
    )
    STUDY = answered_by(STUDY, ANSWERS.backend)
except HoldfastError as error:
    print(error, file=sys.stderr)
    sys.exit(2)

# No job talks to the hub: rules of their own bring what a study needs of it, on the machine that Snakemake runs on. These
# have the user's own switches back (holdfast.hub).
os.environ.setdefault(USERS, os.environ.get(SWITCHES[0], ""))
os.environ.update(dict.fromkeys(SWITCHES, "1"))

# Jobs call the `holdfast` of Snakemake's own environment, activated or not. With --sdm conda, the
# environment's own comes first. Not a parameter of the rules: another interpreter makes nothing stale.
os.environ.update(
    PATH=os.pathsep.join(
        [os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)]
    )
)

CELLS = STUDY.cells()
PROMPT_ROLES = STUDY.prompts.roles()
# Nothing may be trained on these: what choices are made on, and what is evaluated.
UNSEEN = [role for role in PROMPT_ROLES if not role.endswith("_train")]
ROLES = [*PROMPT_ROLES, "calibration"]
TUNING = f"{workflow.basedir}/workflow/holdfast/embedded/refusal-adapter/recipe.json"
# Judges that are models; the others are lists of substrings.
MODEL_JUDGES = [j for j in STUDY.evaluate.judges if j in STUDY.evaluate.judge_models]
DOWNLOADS = downloads(STUDY)  # recipes, by name
HELD_OUT = f"results/{STUDY.study}/prompts/held_out.txt"
# Whether directions are tried in each other's models.
TRANSFERRED = STUDY.evaluate.transfer.nulls > 0
# (model, compression) of every cell, each once.
CHECKPOINTS = list(dict.fromkeys((c.model, c.compression) for c in CELLS))
CELLS_OF = {
    of: list(cells)
    for of, cells in itertools.groupby(CELLS, lambda c: (c.model, c.compression))
}


pathvars:
    results=f"results/{STUDY.study}",
    logs=f"results/{STUDY.study}/logs",
    benchmarks=f"results/{STUDY.study}/benchmarks",


def any_of(names):
    """A wildcard constraint: one of these names."""
    return "|".join(map(re.escape, names)) or "(?!)"


wildcard_constraints:
    model=any_of(STUDY.models),
    compression=any_of(STUDY.compressions),
    method=any_of(STUDY.methods),
    role=any_of(ROLES),
    attack=any_of(STUDY.evaluate.attacks),
    judge=any_of(MODEL_JUDGES),
    download=any_of(DOWNLOADS),


def recipe(stage):
    """A `params` function: what the stage's job depends on, and nothing else, as JSON."""

    def of_job(wildcards):
        names = {
            k: wildcards.get(k)
            for k in ("model", "compression", "method", "role", "attack", "judge")
        }
        return json.dumps(STUDY.recipe(stage, **names) | brought_text(stage))

    return of_job


def brought_text(stage):
    """Of a text from the hub, what has been brought of it takes its place in the recipes of what reads it."""
    section = STUDY.evaluate.perplexity
    if not section.source.startswith("hub:") or stage not in ("ability", "disjoint"):
        return {}
    local = {"source": f"file:{HELD_OUT}"}
    if stage == "disjoint":
        return {"held_out": local}
    windows = section.model_dump(include={"window", "windows"}, exclude_none=True)
    return {"perplexity": local | windows}


def told(line):
    """One line for people; a job that reads all this again says nothing."""
    if workflow.is_main_process:
        print(line, file=sys.stderr)


def on_cluster():
    return workflow.remote_exec or workflow.non_local_exec


REQUESTS = Requests(
    STUDY,
    Sizes(
        STUDY,
        Path("results", STUDY.study),
        reach=workflow.is_main_process,
        say=told,
    ),
    site=lambda: here() if on_cluster() else Site(),
    on_cluster=on_cluster,
)


def needs(resource):
    """A function of `threads` and `resources`: what a job asks for, from its model's size; on a retry, more."""

    def of_job(wildcards, attempt, rulename):
        asked = REQUESTS.of(rulename, tuple(wildcards.items()), attempt)
        return getattr(asked, resource) or None

    return of_job


# The `resources` of every rule that runs a model (docs/resources.md). Without a global limit (--resources gpu=1)
# none of them keeps a job from running on this machine.
NEEDS = {
    name: needs(name) for name in ("gpu", "gpu_model", "mem_mb", "runtime", "disk_mb")
}


def local_files(*sources):
    """The user's own files behind ``file:`` and ``path:`` sources: changing one makes its results stale.

    Of a ``hub:`` model, the record of its download, which is pinned: downloading it again makes nothing stale.
    """
    files = []
    for source in sources:
        kind, _, where = str(source).partition(":")
        if kind == "file":
            files.append(where)
        elif kind == "hub":
            name = download_name(str(source))
            files.append(ancient(f"<results>/downloads/{name}.json"))
        elif kind == "path":
            found = Path(where).expanduser()
            files += [str(p) for p in sorted(found.glob("*.safetensors"))]
            files += [str(p) for p in sorted(found.glob("*config.json"))]
    return files


def prompt_files(wildcards):
    source = STUDY.recipe("prompts", role=wildcards.role)["source"]
    return [] if source.startswith("hub:") else local_files(source)


def suffix_file(wildcards):
    return local_files(STUDY.evaluate.attacks[wildcards.attack].suffix)


def model_files(wildcards):
    model = STUDY.models[wildcards.model]
    return local_files(model.source, model.adapter)


def judge_files(wildcards):
    return local_files(STUDY.evaluate.judge_models[wildcards.judge].source)


def dense_direction(wildcards):
    """Of a compressed model, the dense one's direction: does it act there too?"""
    dense = wildcards.compression == DENSE
    return [] if dense else [f"<results>/{wildcards.model}/{DENSE}/direction"]


def published_files(wildcards):
    recipe = STUDY.recipe("compress", compression=wildcards.compression)
    return local_files(recipe.get("source"))


def ability_files(wildcards):
    section = STUDY.evaluate
    text = section.perplexity.source
    files = [HELD_OUT] if text.startswith("hub:") else local_files(text)
    if TASKS in DOWNLOADS:
        files.append(ancient(f"<results>/downloads/{TASKS}.json"))
    if section.zero_shot.folder:
        files += map(str, sorted(Path(section.zero_shot.folder).glob("*.jsonl")))
    return files


def calibration_text(wildcards):
    """Calibration text; a compression that does not use it is not made stale by it."""
    text = "<results>/prompts/calibration.jsonl"
    uses = "samples" in STUDY.recipe("compress", compression=wildcards.compression)
    return text if uses else ancient(text)


# A checkpoint is known by the record in it, written last, and not declared as a directory(): Snakemake
# would keep its time in a file inside, which copies of the checkpoint share (hard links), so that every
# copy would make its source look new.
def cell_checkpoint(wildcards):
    """The checkpoint a cell is measured on; the method as-is has none of its own."""
    if wildcards.method == AS_IS:
        return "<results>/{model}/{compression}/checkpoint/provenance.json"
    return "<results>/{model}/{compression}/{method}/checkpoint/provenance.json"


def matched(stage, record):
    """An input function: the record of the finished method that a matched control takes its settings from."""

    def of_job(wildcards):
        target = STUDY.recipe(stage, method=wildcards.method).get("matched_to")
        return (
            f"<results>/{{model}}/{{compression}}/{target}/checkpoint/{record}"
            if target
            else []
        )

    return of_job


def matched_to(wildcards, input):
    return f"--matched-to {input.matched}" if input.get("matched") else ""


def of_cells(pattern, wanted=lambda cell: True):
    """A file of every cell that is wanted."""
    return [pattern.format(**c._asdict()) for c in CELLS if wanted(c)]


def of_model_judges():
    """Verdicts of every judge that is a model, and of a headline judge under the attack settings too."""
    cell = "<results>/{model}/{compression}/{method}"
    files = [
        file
        for judge in MODEL_JUDGES
        for file in of_cells(f"{cell}/verdicts/{judge}/attack.jsonl")
    ]
    if (headline := STUDY.evaluate.judges[0]) in MODEL_JUDGES:
        files += of_asked(f"verdicts/{headline}", lambda folder: "attacks/" in folder)
    return files


def of_checkpoints(pattern, wanted=lambda compression: True):
    """A file of every compressed (or dense) checkpoint that is wanted."""
    return [pattern.format(model=m, compression=c) for m, c in CHECKPOINTS if wanted(c)]


def methods_of(stage):
    """The methods whose checkpoints one stage makes: edit, instruct, steer, recalibrate or tune."""
    return [name for name, made_by in STUDY.stages().items() if made_by == stage]


def asked_beside(model):
    """What a model's cells are asked beside the usual prompts, each in a folder of its own: (folder, prompt set)."""
    found = [(f"attacks/{name}", "attack") for name in STUDY.attacks_on(model)]
    found += [("borderline", "borderline")] if "borderline" in PROMPT_ROLES else []
    return found + ([("pairs", "pairs")] if STUDY.pairs else [])


def of_asked(what, wanted=lambda folder: True):
    """A file of every cell on each of these, such as their verdicts."""
    return [
        f"<results>/{c.model}/{c.compression}/{c.method}/{folder}/{what}/{prompts}.jsonl"
        for c in CELLS
        for folder, prompts in asked_beside(c.model)
        if wanted(folder)
    ]


def edited(cell):
    return cell.method in methods_of("edit")


def compressed(compression):
    return compression != DENSE


def rank(kept, removed):
    """A rule's priority: what most waits for goes first; where checkpoints are removed, what is nearest to done, so
    that few lie there at a time."""
    return kept if STUDY.keep_checkpoints else removed


def discarded():
    """The records of what is removed, of every compressed and edited checkpoint."""
    if STUDY.keep_checkpoints:
        return []
    of_methods = of_cells(
        "<results>/{model}/{compression}/{method}/checkpoint/removed.json",
        lambda cell: cell.method != AS_IS,
    )
    record = "<results>/{model}/{compression}/checkpoint/removed.json"
    return of_methods + of_checkpoints(record, compressed)


def users_of_method(wildcards):
    return users_of_cell(dict(wildcards.items()))


def users_of_cell(names):
    """What is measured on a cell's checkpoint."""
    cell = "<results>/{model}/{compression}/{method}"
    used = [f"{cell}/generations/attack.jsonl", f"{cell}/ability/perplexity.json"]
    used += [
        f"{cell}/{folder}/generations/{prompts}.jsonl"
        for folder, prompts in asked_beside(names["model"])
    ]
    return [file.format(**names) for file in used]


def users_of_compression(wildcards):
    """What is measured on a compression's checkpoint, and on all that is made from it."""
    folder = "<results>/{model}/{compression}"
    used = [f"{folder}/direction", f"{folder}/mediation/verdicts.jsonl"]
    used += [f"{folder}/transfer.json"] if TRANSFERRED else []
    used += [f"{folder}/image-use.json"] if PICTURED else []
    found = [file.format(**wildcards) for file in used]
    for cell in CELLS_OF[wildcards.model, wildcards.compression]:
        found += users_of_cell(cell._asdict())
        if cell.method != AS_IS:
            made = f"{folder}/{cell.method}/checkpoint/provenance.json"
            found.append(made.format(**wildcards))
    return found


def training_answers(wildcards):
    """The dense model's answers that a new calibration mixes in: refusals of harmful prompts, or the control's."""
    kind = STUDY.methods[wildcards.method].recalibrate
    role = "harmful_train" if kind == "refusals" else "harmless_train"
    return f"<results>/{{model}}/{DENSE}/training-answers/{role}.jsonl"


def by_gptqmodel(compression):
    """Whether a compression runs in gptqmodel's own environment."""
    return getattr(STUDY.compressions[compression], "format", None) == "auto-gptq"


def environment(name):
    """The stamp of a virtual environment made on demand by rules/environments.smk."""
    return f"{ENVIRONMENTS}/{name}/complete"


# What answers prompts, of models and of judges: the command of its environment, and the environment's stamp.
# In the shell line and not among the parameters, so that studies that always ran here are not stale.
ANSWER, ANSWER_ENVIRONMENT = "holdfast", []
if ANSWERS.environment:
    ANSWER = f"{ENVIRONMENTS}/{ANSWERS.environment}/bin/holdfast"
    ANSWER_ENVIRONMENT = ancient(environment(ANSWERS.environment))
