"""What a study will cost."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

commands = typer.Typer()


@commands.command()
def plan(
    config: Annotated[Path, typer.Argument(help="A study's YAML file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print it as one JSON object.")] = False,
) -> None:
    """Say before anything runs what a study costs: jobs, hours, disk, the longest path, what runs again and why."""
    from rich.console import Console

    from holdfast.cluster.plan import plan as planned
    from holdfast.cluster.plan_table import rendered

    # Seconds for hundreds of jobs, half a minute for ten thousand: a terminal shows that something happens.
    with Console(stderr=True).status("Snakemake lists the study's jobs …"):
        found = planned(config, lambda line: print(line, file=sys.stderr))
    if as_json:
        typer.echo(json.dumps(found.as_json(), indent=2, ensure_ascii=False))
        return
    # Piped into a file, a table shall not be folded at 80 columns.
    Console(width=None if sys.stdout.isatty() else 140, soft_wrap=True).print(rendered(found))
