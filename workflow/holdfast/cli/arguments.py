"""Arguments that several subcommands share."""

from pathlib import Path
from typing import Annotated

import typer

ModelDir = Annotated[Path, typer.Argument(help="A Hugging Face checkpoint folder.")]
Out = Annotated[Path, typer.Argument(help="What is written: whole, or not at all.")]
Recipe = Annotated[str, typer.Option(help="The stage's settings as one JSON object.")]
Prompts = Annotated[Path, typer.Option(help="Prompt records, JSONL.")]
Answers = Annotated[
    Path, typer.Option(help="The dense model's answers to training prompts (generate makes them).")
]
Evaluated = Annotated[list[str], typer.Option(help="A prompt set that nothing may be learnt on; repeat.")]


def named_files(pairs: list[str]) -> dict[str, Path]:
    """``NAME=FILE`` pairs; a bare FILE is named by its stem."""
    split = [pair.partition("=") for pair in pairs]
    return {name if sign else Path(name).stem: Path(file if sign else name) for name, sign, file in split}
