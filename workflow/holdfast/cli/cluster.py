"""Running studies on a cluster."""

from pathlib import Path
from typing import Annotated

import typer

from holdfast.errors import HoldfastError

commands = typer.Typer()


@commands.command()
def doctor(
    site: Annotated[Path | None, typer.Option(help="The site file; by default slurm/site.yaml.")] = None,
    results: Annotated[Path, typer.Option(help="Where studies write.")] = Path("results"),
    try_job: Annotated[
        bool, typer.Option("--try-job", help="Also run a small job in every partition.")
    ] = False,
) -> None:
    """Compare the site file with the live Slurm cluster: one line for each thing, exit 2 if one is wrong."""
    from holdfast.cluster.doctor import diagnose
    from holdfast.cluster.site import site_file

    wrong = False
    for finding in diagnose(site or site_file(), results, try_job):
        typer.echo(str(finding))
        wrong |= bool(finding.remedy)
    if wrong:
        raise typer.Exit(2)
    typer.echo("all well")


@commands.command()
def stale(config: Annotated[Path, typer.Argument(help="A study's YAML file.")]) -> None:
    """Tell which finished results were made by other packages than are installed; nothing is run or removed."""
    from holdfast.cluster.stale import environments, told
    from holdfast.cluster.stale import stale as run
    from holdfast.config import load_study

    results = Path("results", load_study(config).study)
    if not results.is_dir():
        raise HoldfastError("no such folder", str(results), "run the study, or start where its results lie")
    found = run(results, environments())
    typer.echo("\n".join(told(found, config)))
