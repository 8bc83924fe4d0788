"""What a run left undone, told by Snakemake's own graph of jobs: which cell lacks what, and which stage failed."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from holdfast.config.cells import cell_of


def single(jobs: Iterable[Any]) -> list[Any]:
    """Snakemake's jobs, those of groups each by itself."""
    return [job for one in jobs for job in (one if one.is_group() else [one])]


def undone(dag: Any, failed: Iterable[Any], results: Path) -> list[dict[str, Any]]:
    """Of every job that should have run and did not end well, ``{stage, cell, files, failed}``.

    Its files may be there all the same, made by an earlier run from what has changed since.

    Args:
        dag: Snakemake's, after the run.
        failed: the jobs (or groups of them) that failed.
        results: the study's results folder.

    Returns:
        ``stage``: the rule. ``cell``: [model, compression, method] (``cells.cell_of``). ``files``: its outputs, below
        the results folder. ``failed``: the rules of the failed jobs that it waits for, itself among them; none if the
        run was stopped before it.
    """
    broken = set(single(failed))
    open_jobs = set(dag.needrun_jobs())
    causes: dict[Any, set[str]] = {}

    def because(job: Any) -> set[str]:
        if job not in causes:
            causes[job] = {job.rule.name} if job in broken else set()
            for needed in dag.dependencies[job]:
                if needed in open_jobs:
                    causes[job] |= because(needed)
        return causes[job]

    return [
        {
            "stage": job.rule.name,
            "cell": list(cell) if (cell := cell_of(job.wildcards_dict)) else None,
            "files": sorted(os.path.relpath(file, results) for file in job.output),
            "failed": sorted(because(job)),
        }
        for job in sorted(open_jobs, key=lambda job: (job.rule.name, *map(str, job.output)))
        if not job.rule.name.startswith("discard")  # what it leaves lying is no result
    ]
