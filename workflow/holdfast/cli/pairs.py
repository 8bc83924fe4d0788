"""The paired benchmark: harmful inputs and their benign counterfactuals."""

from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli.arguments import Out, Recipe
from holdfast.config.by_hand import checked
from holdfast.errors import HoldfastError
from holdfast.files import apart
from holdfast.hub import switch_back
from holdfast.prompts.sources import MODALITIES

commands = typer.Typer()
pairs = typer.Typer(no_args_is_help=True, help="The paired benchmark: build it, check it.")
commands.add_typer(pairs, name="pairs")


@pairs.command()
def build(out: Out, recipe: Recipe = "{}") -> None:
    """Build the benchmark from the packages installed and the files given, into the folder OUT.

    Harmful halves are read from public sets; a set that is not here leaves out its pairs, and one line says so. With
    `benchmark` and `source` in the recipe, a published benchmark is read into the same form; `embedded-words` are
    pairs in the embedded vision-language model's own closed vocabulary.
    """
    switch_back()
    settings = checked("pairs", recipe)
    if settings["benchmark"] == "holdfast":
        from holdfast.pairs.build import build as run
    elif settings["benchmark"] == "embedded-words":
        from holdfast.pairs.words import build_words as run
    else:
        from holdfast.pairs.published import build_published as run
    for line in run(out, settings):
        typer.echo(line)


@commands.command()
def draw(
    out: Out,
    harmful: Annotated[Path | None, typer.Option(help="Harmful prompt records, JSONL.")] = None,
    harmless: Annotated[Path | None, typer.Option(help="Harmless prompt records, JSONL.")] = None,
    recipe: Recipe = "{}",
) -> None:
    """Draw prompt sets as the pairs are drawn, into the folder OUT: what directions of images are learnt on.

    Each prompt stands there three times: as text, in a scene, and on a bare page. With `"learnt_on": "embedded-words"`
    no sets are given: it is the train split of these words, in the same form.
    """
    settings = checked("draw", recipe)
    if settings["learnt_on"] == "embedded-words":
        from holdfast.pairs.words import build_words

        lines = build_words(out, {"split": "train", "modality": MODALITIES, "limit": settings["limit"]})
    else:
        if harmful is None or harmless is None:
            raise HoldfastError("nothing to draw", str(out), "give --harmful and --harmless")
        apart(out, harmful, harmless)
        from holdfast.pairs.drawn import draw as run

        lines = run(out, harmful, harmless, settings)
    for line in lines:
        typer.echo(line)


@pairs.command()
def check(
    folder: Annotated[Path, typer.Argument(help="A folder that `pairs build` wrote.")],
    against: Annotated[
        list[Path] | None,
        typer.Option(help="What else is learnt on: a study's YAML file, or prompts as JSONL; repeat."),
    ] = None,
) -> None:
    """Prove pairing, balance, uniqueness, no overlap with what is learnt on, minimal edits, checksums.

    One line for each defect, and exit code 2; else what was proved.
    """
    switch_back()
    from holdfast.pairs.check import check as run
    from holdfast.pairs.learnt import given_sets, packaged_sets

    sets = packaged_sets()
    for file in against or []:
        sets |= given_sets(file)
    for line in run(folder, sets):
        typer.echo(line)
