"""Every job of a study, done or not, from Snakemake itself: what it is, what it waits for, why it would run.

``python -m holdfast.cluster.jobs SNAKEFILE CONFIG`` prints them as JSON. It is a process of its own: a Snakefile may
end the process that reads it, and Snakemake leaves loggers and environment variables behind.
"""

import ast
import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from holdfast.checkout import ROOT
from holdfast.errors import HoldfastError


@dataclass(frozen=True)
class Job:
    """One job: its rule, wildcards and benchmark file, the numbers of the jobs that it waits for; ``runs``: it would
    run now, for ``reason`` (see :func:`why`).
    """

    rule: str
    names: dict[str, str]
    benchmark: str | None
    needs: list[int]
    runs: bool
    reason: str


FOLLOWS = "follows from others"
NEW = "not there yet"


def why(reason: Any) -> str:
    """Snakemake's reason for a job, the one nearest to what a user did: a changed recipe key by key, a newer file by
    its name; NEW; or FOLLOWS, where only jobs before it make it run."""
    if reason.params_changed:
        return f"changed: {changes(reason.params_changed.only_old, reason.params_changed.only_new)}"
    names = {
        "forced": reason.forced,
        "was interrupted": reason.incomplete_output,
        "its command line in rules/ changed": reason.code_changed,
        "its environment in envs/ changed": reason.software_stack_changed,
        NEW: reason.missing_output,
        "other inputs than before": reason.input_changed,
    }
    found = next((name for name, holds in names.items() if holds), None)
    if found is None and reason.updated_input:
        return f"newer: {', '.join(sorted(map(str, reason.updated_input)))}"
    return found or FOLLOWS


def changes(old: Iterable[Any], new: Iterable[Any]) -> str:
    """What differs between a job's recipes, ``key old → new``; where a parameter is no recipe, that it differs."""
    before, after = (
        {k: v for recipe in map(recipe_in, some) for k, v in recipe.items()} for some in (old, new)
    )
    keys = [key for key in before | after if before.get(key) != after.get(key)]
    shown = [f"{key} {short(before.get(key))} → {short(after.get(key))}" for key in keys]
    return ", ".join(shown) or "its parameters"


def recipe_in(parameter: Any) -> dict[str, Any]:
    """The recipe in a parameter as Snakemake keeps it, the source text of a Python value; {} where it is none."""
    try:
        value = json.loads(ast.literal_eval(str(parameter)))
    except (ValueError, SyntaxError, TypeError):
        return {}
    return value if isinstance(value, dict) else {}


def short(value: Any) -> str:
    text = (
        "nothing"
        if value is None
        else json.dumps(value, ensure_ascii=False)
        if not isinstance(value, str)
        else value
    )
    return text if len(text) <= 60 else f"{text[:57]}…"


def snakefile() -> Path:
    """The workflow's, in the working directory or beside this package.

    Raises HoldfastError when there is none: the package alone, without the repository, has no workflow.
    """
    for folder in (Path.cwd(), ROOT):
        if (folder / "Snakefile").is_file() and (folder / "rules/common.smk").is_file():
            return folder / "Snakefile"
    raise HoldfastError("no Snakefile", str(Path.cwd()), "run it in Holdfast's repository")


def jobs(config: Path) -> list[Job]:
    """The jobs of a study in the order of the data, what each waits for before it.

    Raises HoldfastError with what Snakemake said when the graph cannot be built (a file that no job makes is missing).
    """
    command = [sys.executable, "-m", "holdfast.cluster.jobs", str(snakefile()), str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = done.stderr.strip().splitlines()
    if done.returncode:
        told = next(
            (line for line in said if "Exception" in line or "Error" in line), said[-1] if said else ""
        )
        remedy = f"try snakemake -n --configfile {config}"
        raise HoldfastError(f"its jobs cannot be listed ({told})", str(config), remedy)
    for line in said:
        print(line, file=sys.stderr)
    return [Job(**job) for job in json.loads(done.stdout)]


def listed(snakefile: Path, config: Path) -> list[Job]:
    """In this process; see :func:`jobs`. Snakemake builds its graph of jobs, decides what would run, and prints."""
    from snakemake.api import SnakemakeApi
    from snakemake.settings.enums import Quietness
    from snakemake.settings.types import (
        ConfigSettings,
        DAGSettings,
        OutputSettings,
        ResourceSettings,
        StorageSettings,
        WorkflowSettings,
    )

    quiet = OutputSettings(quiet={Quietness.ALL}, printshellcmds=False)
    with SnakemakeApi(quiet) as api:
        workflow = api.workflow(
            resource_settings=ResourceSettings(cores=1),
            config_settings=ConfigSettings(configfiles=[config]),
            storage_settings=StorageSettings(),
            workflow_settings=WorkflowSettings(),
            snakefile=snakefile,
        )
        with contextlib.redirect_stdout(io.StringIO()):
            workflow.dag(dag_settings=DAGSettings(force_incomplete=True)).printrulegraph()
        dag: Any = workflow._workflow.dag
        ordered = [job for level in dag.toposorted() for job in level]
        number = {job: n for n, job in enumerate(ordered)}
        return [
            Job(
                rule=job.rule.name,
                names=dict(job.wildcards_dict),
                benchmark=str(job.benchmark) if job.benchmark else None,
                needs=sorted(number[other] for other in dag.dependencies[job]),
                runs=dag.needrun(job),
                reason=why(dag.reason(job)) if dag.needrun(job) else "",
            )
            for job in ordered
        ]


if __name__ == "__main__":
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    found = [asdict(job) for job in listed(Path(sys.argv[1]), Path(sys.argv[2]))]
    json.dump(found, sys.stdout)
