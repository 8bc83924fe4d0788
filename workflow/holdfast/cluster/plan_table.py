"""A plan for people: a table of its stages, and what follows from them in a few lines."""

from collections import Counter
from collections.abc import Iterator
from itertools import groupby

from rich.box import SIMPLE
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from holdfast.cluster.jobs import FOLLOWS
from holdfast.cluster.plan import Plan, Stage

MOST_CELLS = 24  # that are named each


def table(plan: Plan) -> Table:
    """One row a stage, in the order of the data; hours and disk are those of the jobs that would run."""
    shown = Table(box=SIMPLE, title=f"study {plan.study}", title_justify="left")
    shown.add_column("stage")
    for column in (
        "jobs",
        "done",
        "to run",
        "GPU-hours",
        "CPU-hours",
        "disk",
        "predicted",
        "measured",
        "error",
    ):
        shown.add_column(column, justify="right")
    for stage in plan.stages:
        shown.add_row(*row(stage))
    whole = Stage("all")
    for what in (
        "jobs",
        "left",
        "gpu_hours",
        "cpu_hours",
        "disk_mb",
        "unknown",
        "measured",
        "predicted",
        "compared",
    ):
        setattr(whole, what, plan.total(what))
    shown.add_section()
    shown.add_row(*row(whole))
    return shown


def row(stage: Stage) -> list[str]:
    least = "≥ " if stage.unknown and stage.unknown < stage.left else ""
    none = "?" if stage.unknown == stage.left and stage.left else ""
    error = f"{stage.predicted / stage.measured - 1:+.0%}" if stage.correction else ""
    return [
        stage.name,
        str(stage.jobs),
        str(stage.jobs - stage.left),
        str(stage.left),
        none or (f"{least}{hours(stage.gpu_hours)}" if stage.gpu_hours else ""),
        none or (f"{least}{hours(stage.cpu_hours)}" if stage.cpu_hours else ""),
        disk(stage.disk_mb) if stage.disk_mb else "",
        duration(stage.predicted) if stage.compared else "",
        duration(stage.measured) if stage.compared else "",
        error,
    ]


def lines(plan: Plan) -> Iterator[str]:
    """What stands below the table."""
    left = plan.total("left")
    if plan.upgraded:
        packages = ", ".join(plan.upgraded)
        yield f"upgraded since results were made, which runs nothing again: {packages} (see holdfast stale)"
    if not left:
        yield "nothing left to run"
        return
    if plan.total("gpu_hours"):
        yield "GPU-hours are estimates for GPUs of the 80 GB kind, not measured (docs/resources.md)"
    chain = " → ".join(f"{name} × {n}" if n > 1 else name for name, n in runs_of(plan.path))
    if not plan.kept:
        yield "disk: all that is written; checkpoints are removed as soon as nothing needs them, so less lies there"
    if plan.total("unknown") > left / 2:
        yield "longest path: not known, as most jobs' time is not"
    else:
        least = "at least " if plan.total("unknown") else ""
        yield f"longest path: {least}{duration(plan.path_seconds)} ({chain})"
    if plan.without_size:
        names = ", ".join(plan.without_size)
        yield f"no estimate for {plan.total('unknown')} jobs: size not known of {names}"
    for reason, number in sorted(plan.reasons.items(), key=lambda item: item[0] == FOLLOWS):
        yield f"{number} jobs: {reason}"
    if left == plan.total("jobs"):
        return
    if len(plan.cells) <= MOST_CELLS:
        for cell, reasons in plan.cells.items():
            yield f"  {cell}: {'; '.join(reasons)}"
    else:
        models = Counter(cell.partition("/")[0] for cell in plan.cells)
        yield f"cells: {', '.join(f'{number} of {model}' for model, number in models.items())}"


def rendered(plan: Plan) -> Group:
    return Group(table(plan), *(escape(line) for line in lines(plan)))


def runs_of(names: list[str]) -> list[tuple[str, int]]:
    return [(name, len(list(some))) for name, some in groupby(names)]


def hours(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def disk(megabytes: float) -> str:
    if megabytes < 1000:
        return f"{megabytes:.0f} MB"
    return f"{megabytes / 1000:.1f} GB" if megabytes < 1e5 else f"{megabytes / 1000:,.0f} GB"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
