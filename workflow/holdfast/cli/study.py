"""A study as a whole: its config, its prompts, its tables and pages."""

from pathlib import Path
from typing import Annotated

import typer

from holdfast.checkout import ENVIRONMENTS
from holdfast.cli.arguments import Out, Recipe, by_stem
from holdfast.config.by_hand import checked
from holdfast.errors import HoldfastError
from holdfast.hub import switch_back

commands = typer.Typer()


@commands.command()
def check(config: Annotated[Path, typer.Argument(help="A study's YAML file.")]) -> None:
    """Validate a study's config: a summary of its cells, or one line per mistake (exit 2)."""
    from holdfast.cluster.site import can_submit, jobs_have_gpus
    from holdfast.config import load_study, summary
    from holdfast.config.backend import settled

    study = load_study(config)
    gpus = jobs_have_gpus(submitted=can_submit())
    choice = settled(study, Path("results", study.study), ENVIRONMENTS, gpus=gpus)
    typer.echo(f"{summary(study)}\n{choice.told()}")


@commands.command("schema")
def schema_command(out: Out) -> None:
    """Write the config grammar as JSON schema, for editors."""
    from holdfast.config import schema
    from holdfast.files import write_json

    write_json(out, schema())


@commands.command()
def prompts(out: Out, recipe: Recipe) -> None:
    """Read one prompt set from its package, file or hub, into OUT (JSONL)."""
    switch_back()
    from holdfast.files import apart, sha256, write_jsonl
    from holdfast.prompts.sources import local_path, read_prompts
    from holdfast.provenance import Recorder

    settings = checked("prompts", recipe)
    recorder = Recorder("prompts", settings)
    records = read_prompts(settings)
    given = [] if settings["source"].startswith("hub:") else [local_path(settings["source"])]
    apart(out, *given)
    if any("images" in record for record in records):
        from holdfast.prompts.images import carried

        records = carried(records, given[0].parent, out.parent)
    write_jsonl(out, records)
    recorder.write(
        out.with_name(out.name + ".provenance.json"), given, prompts=len(records), sha256=sha256(out)
    )


@commands.command()
def text(out: Out, recipe: Recipe) -> None:
    """Read running text (of perplexity) from its package, file or hub, into OUT."""
    switch_back()
    from holdfast.files import apart, sha256, write_text
    from holdfast.prompts.sources import local_path, read_text
    from holdfast.provenance import Recorder

    settings = checked("text", recipe)
    recorder = Recorder("text", settings)
    given = [] if settings["source"].startswith("hub:") else [local_path(settings["source"])]
    apart(out, *given)
    write_text(out, read_text(settings))
    recorder.write(out.with_name(out.name + ".provenance.json"), given, sha256=sha256(out))


@commands.command()
def download(out: Out, recipe: Recipe) -> None:
    """Bring a model, or zero-shot tasks, from the hub into its client's cache, verified; OUT says what came."""
    switch_back()
    from holdfast.hub import download as run

    run(checked("download", recipe), out)


@commands.command()
def disjoint(
    out: Out,
    prompts: Annotated[list[Path], typer.Option(help="A prompt set, JSONL; repeat.")],
    calibration: Annotated[Path | None, typer.Option(help="Calibration records, JSONL.")] = None,
    recipe: Recipe = "{}",
) -> None:
    """Prove that prompt sets share no prompt, and that calibration holds no evaluated text; OUT holds sizes."""
    from holdfast.evaluation.zero_shot_tasks import local_data
    from holdfast.files import apart, write_json
    from holdfast.prompts.overlap import check_calibration, check_disjoint

    sets = by_stem(prompts)
    apart(out, *prompts, *([calibration] if calibration else []))
    sizes = check_disjoint(sets)
    if calibration:
        evaluated = checked("disjoint", recipe)
        items = local_data(evaluated["tasks"], Path(folder) if (folder := evaluated["folder"]) else None)
        sizes["calibration"] = check_calibration(calibration, sets, evaluated["held_out"], items)
    write_json(out, sizes)


@commands.command()
def tables(
    out: Out,
    config: Annotated[Path, typer.Option(help="The study's YAML file.")],
    results: Annotated[Path, typer.Option(help="The study's results folder.")],
    undone: Annotated[
        Path | None, typer.Option(help="What a run left undone, as the workflow writes it: marked missing.")
    ] = None,
) -> None:
    """Collect every cell into tidy tables (refusal.csv, costs.csv), and these into Markdown and LaTeX."""
    from holdfast.config import load_study

    if not results.is_dir():
        raise HoldfastError("no such folder", str(results), "give the study's results folder")
    from holdfast.report.collect import collect
    from holdfast.report.tables import write_tables
    from holdfast.report.undone import read_undone

    study = load_study(config)
    judges = study.evaluate.judges
    borderline = study.prompts.borderline is not None
    left = read_undone(undone) if undone else None
    cells, stages = study.cells(), study.stages()
    frame = collect(
        results,
        cells,
        judges,
        stages,
        study.attacks_on,
        borderline=borderline,
        paired=study.pairs is not None,
        pictured=study.evaluate.visual is not None,
        transferred=study.evaluate.transfer.nulls > 0,
        undone=left,
    )
    write_tables(frame, out, judges)


@commands.command()
def figures(out: Out, tables: Annotated[Path, typer.Option(help="The folder with refusal.csv.")]) -> None:
    """Draw the figures of a study (SVG)."""
    from holdfast.report.figures import write_figures
    from holdfast.report.tables import read_tables

    write_figures(read_tables(tables), out)


@commands.command()
def report(
    out: Out,
    config: Annotated[Path, typer.Option(help="The study's YAML file.")],
    results: Annotated[Path, typer.Option(help="The study's results folder.")],
) -> None:
    """Write the study's page: one self-contained HTML file."""
    from holdfast.config import load_study
    from holdfast.files import apart
    from holdfast.report.page import write_page
    from holdfast.report.tables import read_tables

    study = load_study(config)
    apart(out, config)
    write_page(
        out,
        results,
        study.cells(),
        study.evaluate.judges,
        config.read_text(encoding="utf-8"),
        read_tables(results / "tables"),
    )


@commands.command()
def show(tables: Annotated[Path, typer.Argument(help="The folder with refusal.csv.")]) -> None:
    """Print a study's tables in the terminal."""
    from holdfast.report.tables import read_tables, terminal_tables

    typer.echo(terminal_tables(read_tables(tables)))
