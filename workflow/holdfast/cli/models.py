"""Checkpoints: fetched and compressed, and what is done to compressed ones."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli.arguments import Answers, Evaluated, ModelDir, Out, Prompts, Recipe, named_files
from holdfast.config.by_hand import checked, parsed
from holdfast.files import apart

commands = typer.Typer()


@commands.command("repair")
def repair_command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL_OR_FOLDER", help="The compressed chat model: a folder or hub:ORG/NAME@REVISION."
        ),
    ],
    dense: Annotated[
        str, typer.Option(help="Its dense original: a folder, hub:ORG/NAME@REVISION or package:NAME.")
    ],
    out: Annotated[Path, typer.Option(help="The folder to write: whole, or not at all.")],
    adapter: Annotated[
        str | None,
        typer.Option(help="A LoRA merged into the dense model first: a folder or package:NAME/inner/path."),
    ] = None,
    harmful: Annotated[
        Path | None,
        typer.Option(help="Your harmful prompts (JSONL, CSV), split by the seed; default: AdvBench."),
    ] = None,
    harmless: Annotated[
        Path | None, typer.Option(help="Your harmless prompts, likewise; default: the packaged ones.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Leave out zero-shot accuracy and its rule.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the split and of the random control.")] = 0,
) -> None:
    """Give a compressed chat model its refusals back: find an edit, check it, write the checkpoint and a model card.

    Nothing is written, and the exit code is 3, when no edit is found, when not more harmful test prompts are refused
    than before, when over-refusal rises by more than 5 points, perplexity by more than 5 %, or when zero-shot accuracy
    falls by more than 1 point beyond noise. An interrupted repair goes on with the same command.
    """
    # The stages' own bars stand under the overall one and vanish when they end; read when tqdm is imported.
    os.environ.setdefault("TQDM_LEAVE", "")
    from rich.console import Console

    from holdfast.repair.card import terminal_table, verdict
    from holdfast.repair.request import request
    from holdfast.repair.rules import NotRepairedError
    from holdfast.repair.run import repair as run
    from holdfast.repair.work import REPORT

    # Narrower only where a person's terminal is: a log has no width.
    screen = Console() if sys.stdout.isatty() else Console(width=100)
    wanted = request(model, dense, adapter, harmful, harmless, quick, seed)
    try:
        record = run(wanted, out, typer.echo)
    except NotRepairedError as error:
        if error.record:
            screen.print(terminal_table(error.record["measured"]))
        raise
    screen.print(terminal_table(record["measured"]))
    for warning in record["warnings"]:
        typer.echo(f"note: {warning}")
    typer.echo(f"checkpoint: {out}\nmodel card: {out / 'README.md'}\nnumbers:    {out / REPORT}")
    typer.echo(("" if record["gain_shown"] else "warning: ") + verdict(record))


@commands.command()
def fetch(out: Out, recipe: Recipe) -> None:
    """Bring a model from its source (hub:, package:, path:) into a checkpoint folder."""
    from holdfast.sources import fetch as run

    run(parsed(recipe), out)


@commands.command()
def compress(
    model_dir: ModelDir,
    out: Out,
    recipe: Recipe,
    calibration: Annotated[
        Path | None, typer.Option(help="Plain text, JSONL records with `text`; for calibrated methods.")
    ] = None,
) -> None:
    """Prune or quantize a checkpoint, or fetch a published compressed one."""
    settings = parsed(recipe)
    kind, _, place = str(settings.get("source")).partition(":")
    apart(out, model_dir, *([Path(place).expanduser()] if kind == "path" else []))
    from holdfast.compression import compress as run

    run(model_dir, out, settings, calibration)


@commands.command()
def edit(
    model_dir: ModelDir,
    out: Out,
    dense: Annotated[Path, typer.Option(help="The dense checkpoint.")],
    direction: Annotated[Path, typer.Option(help="The dense model's direction folder.")],
    own_direction: Annotated[Path, typer.Option(help="The compressed model's own direction folder.")],
    harmful: Prompts,
    harmless: Prompts,
    harmful_train: Prompts,
    harmless_train: Prompts,
    recipe: Recipe,
    matched_to: Annotated[
        Path | None, typer.Option(help="edit.json of the edit this one controls for.")
    ] = None,
) -> None:
    """Apply AIRD (a reconstruction) or its random control to a compressed checkpoint."""
    apart(out, model_dir, dense, direction, own_direction)
    from holdfast.methods.edit import edit_checkpoint as run

    run(
        model_dir,
        out,
        dense=dense,
        direction_dir=direction,
        own_direction_dir=own_direction,
        harmful=harmful,
        harmless=harmless,
        harmful_train=harmful_train,
        harmless_train=harmless_train,
        recipe=checked("edit", recipe),
        matched_to=matched_to,
    )


@commands.command()
def instruct(model_dir: ModelDir, out: Out, recipe: Recipe) -> None:
    """Give a compressed checkpoint a safety system prompt; its weights are hard-linked."""
    apart(out, model_dir)
    from holdfast.methods.instruct import instruct_checkpoint as run

    run(model_dir, out, checked("instruct", recipe))


@commands.command()
def steer(
    model_dir: ModelDir,
    out: Out,
    direction: Annotated[Path, typer.Option(help="The dense model's direction folder.")],
    own_direction: Annotated[Path, typer.Option(help="The compressed model's own direction folder.")],
    harmful: Prompts,
    harmless: Prompts,
    recipe: Recipe,
    matched_to: Annotated[
        Path | None, typer.Option(help="steer.json of the steering this one controls for.")
    ] = None,
) -> None:
    """Add the dense model's refusal direction, or a random one, to a compressed checkpoint at run time."""
    apart(out, model_dir, direction, own_direction)
    from holdfast.methods.steering import steer_checkpoint as run

    run(
        model_dir,
        out,
        direction_dir=direction,
        own_direction_dir=own_direction,
        harmful=harmful,
        harmless=harmless,
        recipe=checked("steer", recipe),
        matched_to=matched_to,
    )


@commands.command()
def recalibrate(
    dense: Annotated[Path, typer.Argument(help="The dense checkpoint folder.")],
    out: Out,
    calibration: Annotated[Path, typer.Option(help="Plain text, JSONL records with `text`.")],
    answers: Answers,
    evaluated: Evaluated,
    recipe: Recipe,
) -> None:
    """Compress anew, with the dense model's refusals of training prompts in the calibration text."""
    apart(out, dense)
    from holdfast.compression.safety_calibration import recalibrate as run

    settings = checked("recalibrate", recipe)
    run(dense, out, settings, calibration=calibration, answers=answers, evaluated=named_files(evaluated))


@commands.command()
def tune(
    model_dir: ModelDir,
    out: Out,
    harmful_answers: Answers,
    harmless_answers: Answers,
    evaluated: Evaluated,
    recipe: Recipe = '{"tune": "lora"}',
) -> None:
    """Teach a compressed checkpoint the dense model's refusals again: a short LoRA, merged."""
    apart(out, model_dir)
    from holdfast.methods.lora_tuning import tune as run

    run(
        model_dir,
        out,
        checked("tune", recipe),
        harmful=harmful_answers,
        harmless=harmless_answers,
        evaluated=named_files(evaluated),
    )


@commands.command()
def discard(
    checkpoint: Annotated[Path, typer.Argument(help="A compressed or edited checkpoint of a study.")],
) -> None:
    """Remove a checkpoint's weights and keep its records; a stage that is given it makes it again."""
    from holdfast.removed_checkpoints import remove

    remove(checkpoint)


@commands.command("tune-refusal")
def tune_refusal_command(
    out: Out,
    base: Annotated[Path, typer.Option(help="The untuned checkpoint folder (holdfast fetch makes it).")],
    recipe: Annotated[
        Path | None, typer.Option(help="Recipe JSON file; default: the shipped adapter's.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of the recipe's seed.")] = None,
) -> None:
    """Train the embedded model's refusal adapter (LoRA) anew and measure it on prompts it never saw."""
    from holdfast.embedded.tuning import ADAPTER, tune_refusal
    from holdfast.files import read_json

    settings = read_json(recipe or ADAPTER / "recipe.json")
    rates = tune_refusal(base, out, settings if seed is None else {**settings, "seed": seed})
    typer.echo(json.dumps(rates, indent=2))


@commands.command("train-vision")
def train_vision_command(
    out: Out,
    base: Annotated[Path, typer.Option(help="The language model's checkpoint folder, with its adapter.")],
    recipe: Annotated[
        Path | None, typer.Option(help="Recipe JSON file; default: the shipped parts'.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of the recipe's seed.")] = None,
) -> None:
    """Train the embedded model's vision parts anew and measure them: a small model with a closed picture vocabulary."""
    from holdfast.embedded.vision.training import SHIPPED, train_vision
    from holdfast.files import read_json

    apart(out, base)
    settings = read_json(recipe or SHIPPED / "recipe.json")
    rates = train_vision(base, out, settings if seed is None else {**settings, "seed": seed})
    typer.echo(json.dumps(rates, indent=2))
