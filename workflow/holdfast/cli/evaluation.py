"""Answers, verdicts and ability."""

from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli.arguments import ModelDir, Out, Recipe, by_stem, named_files, outputs_apart
from holdfast.config.by_hand import checked
from holdfast.files import apart
from holdfast.hub import switch_back

commands = typer.Typer()


@commands.command()
def generate(
    model_dir: ModelDir,
    out: Out,
    prompts: Annotated[list[str], typer.Option(help="NAME=FILE of a prompt set; repeat.")],
    recipe: Recipe,
) -> None:
    """Answer prompt sets greedily; a killed run goes on where it stopped."""
    files = named_files(prompts)
    apart(out, model_dir)
    outputs_apart(out, files)
    from holdfast.evaluation.generation import generate as run

    run(model_dir, out, files, checked("generate", recipe))


@commands.command()
def judge(
    out: Out,
    generations: Annotated[list[Path], typer.Option(help="A generations file; repeat.")],
    recipe: Recipe,
) -> None:
    """Label every completion refused, answered or degenerate, by substring lists."""
    outputs_apart(out, by_stem(generations))
    from holdfast.evaluation.judges import judge_files as run

    run(generations, out, checked("judge", recipe))


@commands.command()
def visual(
    out: Out,
    recipe: Recipe,
    learnt_on: Annotated[
        Path | None, typer.Option(help="Calibration records, JSONL: none of their images may be asked about.")
    ] = None,
) -> None:
    """Read benign questions about images, with their answers, into the folder OUT."""
    switch_back()
    apart(out, *([learnt_on] if learnt_on else []))
    from holdfast.evaluation.visual_questions import build_questions as run

    for line in run(out, checked("visual", recipe), learnt_on):
        typer.echo(line)


@commands.command()
def score(
    out: Out,
    generations: Annotated[Path, typer.Option(help="Answers to these questions.")],
    questions: Annotated[Path, typer.Option(help="The questions, as `visual` wrote them.")],
    recipe: Recipe = "{}",
) -> None:
    """Tell which answers to questions about images are right, and which refuse."""
    outputs_apart(out, by_stem([generations]))
    apart(out, questions)
    from holdfast.evaluation.visual_accuracy import score as run

    right, of = run(generations, questions, out, checked("score", recipe))
    typer.echo(f"right: {right} of {of}")


@commands.command("judge-by-model")
def judge_by_model_command(
    model_dir: Annotated[Path, typer.Argument(help="The judge's checkpoint folder.")],
    out: Out,
    generations: Annotated[list[Path], typer.Option(help="A generations file; repeat.")],
    recipe: Recipe,
) -> None:
    """Ask a published model judge about every completion; what cannot be read stays unparsed."""
    apart(out, model_dir)
    outputs_apart(out, by_stem(generations))
    from holdfast.evaluation.judges.asking import judge_by_model as run

    run(model_dir, generations, out, checked("judge-by-model", recipe))


@commands.command()
def agreement(
    out: Out,
    labels: Annotated[list[Path], typer.Option(help="A CSV file of answers that people labelled; repeat.")],
    recipe: Recipe,
    model: Annotated[
        list[str] | None, typer.Option(help="NAME=FOLDER of a model judge that tells refusals; repeat.")
    ] = None,
) -> None:
    """Count judges against people's labels of refusals (formats of PyRIT and XSTest)."""
    models = named_files(model or [])
    apart(out, *labels, *models.values())
    from holdfast.evaluation.judges.agreement import write_agreement as run

    run(labels, out, checked("agreement", recipe), models)


@commands.command()
def ability(model_dir: ModelDir, out: Out, recipe: Recipe) -> None:
    """Zero-shot tasks (lm-evaluation-harness) and perplexity."""
    apart(out, model_dir)
    from holdfast.evaluation.ability import measure_ability as run

    run(model_dir, out, checked("ability", recipe))
