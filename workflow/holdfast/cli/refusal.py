"""Where refusal lives: activations, directions, comparison, transfer, mediation."""

from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli.arguments import ModelDir, Out, Prompts, Recipe, with_weights
from holdfast.config.by_hand import checked
from holdfast.errors import HoldfastError
from holdfast.files import apart, refuse_folder

commands = typer.Typer()


@commands.command()
def activations(
    model_dir: ModelDir, out: Out, harmful: Prompts, harmless: Prompts, recipe: Recipe = "{}"
) -> None:
    """Cache the residual stream at the post-instruction positions of train prompts."""
    apart(out, model_dir)
    from holdfast.refusal.activations import cache_activations as run

    run(model_dir, out, harmful, harmless, checked("activations", recipe))


@commands.command()
def direction(
    model_dir: ModelDir,
    out: Out,
    activations: Annotated[Path, typer.Option(help="The activations folder of the same checkpoint.")],
    harmful: Prompts,
    harmless: Prompts,
    recipe: Recipe,
) -> None:
    """Extract the refusal direction: every candidate's scores, and the choice, on validation prompts."""
    apart(out, model_dir, activations)
    from holdfast.refusal.direction import find_direction as run

    run(model_dir, out, activations, harmful, harmless, checked("direction", recipe))


@commands.command()
def compare(
    out: Out,
    dense: Annotated[Path, typer.Option(help="The dense model's folder (with direction/ and activations/).")],
    compressed: Annotated[Path, typer.Option(help="The compressed model's folder.")],
    table: Annotated[
        Path, typer.Option(help="Written too: the comparison at every position and layer, CSV.")
    ],
    recipe: Recipe = "{}",
) -> None:
    """Compare the refusal directions of the dense and a compressed model, beside their nulls."""
    if table.resolve() == out.resolve():
        raise HoldfastError("is the file of the comparison itself", str(table), "give another --table")
    refuse_folder(out)
    refuse_folder(table)
    from holdfast.refusal.comparison import compare as run

    run(dense, compressed, out, table, checked("compare", recipe)["seed"])


@commands.command()
def transfer(
    out: Out,
    dense: Annotated[
        Path, typer.Option(help="The dense model's folder (with checkpoint/, direction/ and activations/).")
    ],
    compressed: Annotated[Path, typer.Option(help="The compressed model's folder.")],
    harmful: Prompts,
    harmless: Prompts,
    recipe: Recipe = "{}",
) -> None:
    """Score each model's direction inside the other, beside its own and random ones, on validation prompts."""
    refuse_folder(out)
    apart(out, harmful, harmless)
    for folder in (dense, compressed):
        with_weights(folder / "checkpoint")
    from holdfast.refusal.transfer import transfer as run

    run(dense, compressed, out, harmful, harmless, checked("transfer", recipe))


@commands.command()
def mediate(
    model_dir: ModelDir,
    out: Out,
    direction: Annotated[Path, typer.Option(help="The direction folder of the same checkpoint.")],
    harmful: Prompts,
    harmless: Prompts,
    recipe: Recipe,
    dense_direction: Annotated[
        Path | None, typer.Option(help="The dense model's direction folder, of a compressed checkpoint.")
    ] = None,
) -> None:
    """Ablate and add the direction, the dense model's and random ones, on held-out prompts."""
    apart(out, model_dir, direction)
    from holdfast.refusal.mediation import mediate as run

    run(model_dir, out, direction, harmful, harmless, checked("mediate", recipe), dense_direction)


@commands.command()
def modalities(
    model_dir: ModelDir,
    out: Out,
    direction: Annotated[Path, typer.Option(help="The direction folder of the same checkpoint.")],
    activations: Annotated[Path, typer.Option(help="The activations folder of the same checkpoint.")],
    prompts: Annotated[Path, typer.Option(help="What is learnt on: the pairs.jsonl of `holdfast draw`.")],
    pairs: Annotated[Path, typer.Option(help="What is tried on: the pairs.jsonl of `holdfast pairs build`.")],
    recipe: Recipe = "{}",
    dense: Annotated[
        Path | None, typer.Option(help="What this wrote of the dense model, of a compressed checkpoint.")
    ] = None,
) -> None:
    """Find directions on text, images and drawn text; compare them, and try the refusal direction on each."""
    apart(out, model_dir, direction, activations, prompts, pairs)
    from holdfast.refusal.modalities import modalities as run

    run(
        model_dir,
        out,
        direction_dir=direction,
        activations_dir=activations,
        prompts=prompts,
        pairs=pairs,
        recipe=checked("modalities", recipe),
        dense=dense,
    )


@commands.command("image-use")
def image_use_command(
    model_dir: ModelDir,
    out: Out,
    pairs: Annotated[Path, typer.Option(help="The pairs.jsonl of `holdfast pairs build`.")],
    direction: Annotated[Path, typer.Option(help="The direction folder of the same checkpoint.")],
    recipe: Recipe = "{}",
) -> None:
    """Measure whether first answer tokens and refusals depend on the images of pairs."""
    refuse_folder(out)
    apart(out, model_dir, direction, pairs)
    from holdfast.refusal.image_use import image_use as run

    run(model_dir, out, pairs, direction, checked("image-use", recipe))
