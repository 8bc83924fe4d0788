# Which study runs, where its results go, and the functions the rules share. Light imports only: every
# cluster job reads this again.
import inspect
import itertools
import json
import os
import re
import sys
from pathlib import Path

from holdfast.cluster.claim import refuse_latecomer
from holdfast.cluster.configs import Sizes
from holdfast.cluster.needs import Requests
from holdfast.cluster.site import Site, here, jobs_have_gpus, profiled
from holdfast.cluster.software import show_in_container
from holdfast.config import AS_IS, DENSE, load_study
from holdfast.config.backend import answered_by, settled
from holdfast.config.recipes import TASKS, download_name, downloads
from holdfast.errors import HoldfastError
from holdfast.files import SCRATCH
from holdfast.hub import SWITCHES, USERS
from holdfast.prompts.sources import files_named


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
        gpus=jobs_have_gpus(submitted=profiled()),
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

# The site file's container and scratch space are for jobs on nodes only: what runs on this machine stays outside, and
# Snakemake, which keeps its record of a job here, knows of none, so that another image makes nothing stale.
NODE = here() if workflow.remote_exec else Site()
if NODE.scratch:
    os.environ[SCRATCH] = NODE.scratch
if NODE.container:
    seen = [workflow.basedir, "results", *filter(None, [NODE.scratch])]
    show_in_container(map(Path, seen))


container: NODE.container


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


def asked_often(function):
    """The function with its signature at hand, which Snakemake looks up at every call, for every job."""
    function.__signature__ = inspect.signature(function)
    return function


def recipe(stage):
    """A `params` function: what the stage's job depends on, and nothing else, as JSON."""

    @asked_often
    def of_job(wildcards):
        names = {
            k: wildcards.get(k)
            for k in ("model", "compression", "method", "role", "attack", "judge")
        }
        text = json.dumps(STUDY.recipe(stage, **names) | brought_text(stage))
        return sys.intern(text)  # most jobs of a stage have the same

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
    """Also where a dry run, which has no executor, was given the profile."""
    return workflow.remote_exec or workflow.non_local_exec or profiled()


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
    vllm=ANSWERS.environment,
    say=told,
    results=Path("results", STUDY.study),
)


def needs(resource):
    """A function of `threads` and `resources`: what a job asks for, from its model's size; on a retry, more."""

    @asked_often
    def of_job(wildcards, attempt, rulename):
        asked = REQUESTS.of(rulename, tuple(wildcards.items()), attempt)
        return getattr(asked, resource) or None

    return of_job


# The `resources` of every rule that runs a model (docs/resources.md). Without a global limit (--resources gpu=1)
# none of them keeps a job from running on this machine.
NEEDS = {
    name: needs(name) for name in ("gpu", "gpu_model", "mem_mb", "runtime", "disk_mb")
}


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
