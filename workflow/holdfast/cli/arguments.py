"""Arguments that several subcommands share."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from holdfast.errors import HoldfastError
from holdfast.files import apart
from holdfast.removed_checkpoints import restore


def with_weights(folder: Path) -> Path:
    """A checkpoint, made again where its weights were removed."""
    restore(folder)
    return folder


ModelDir = Annotated[Path, typer.Argument(help="A Hugging Face checkpoint folder.", callback=with_weights)]
Out = Annotated[Path, typer.Argument(help="What is written: whole, or not at all.")]
Recipe = Annotated[str, typer.Option(help="The stage's settings as one JSON object.")]
Prompts = Annotated[Path, typer.Option(help="Prompt records, JSONL.")]
Answers = Annotated[
    Path, typer.Option(help="The dense model's answers to training prompts (generate makes them).")
]
Evaluated = Annotated[list[str], typer.Option(help="A prompt set that nothing may be learnt on; repeat.")]


def named_files(pairs: list[str]) -> dict[str, Path]:
    """``NAME=FILE`` pairs; a bare FILE is named by its stem. Raises HoldfastError as :func:`by_name`."""
    split = [pair.partition("=") for pair in pairs]
    return by_name(
        (name if sign else Path(name).stem, Path(file if sign else name)) for name, sign, file in split
    )


def by_stem(files: Sequence[Path]) -> dict[str, Path]:
    """Files by their names less the suffix. Raises HoldfastError as :func:`by_name`."""
    return by_name((file.stem, file) for file in files)


def by_name(named: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    """Raises HoldfastError for a name that cannot be a file's, and where two files would have one name."""
    found: dict[str, Path] = {}
    for name, file in named:
        if not name or name == ".." or Path(name).name != name:
            raise HoldfastError(f"{name!r} cannot be a file's name", str(file), "give it another name")
        if name in found:
            raise HoldfastError(f"is named {name}, as {found[name]} is", str(file), "name them apart")
        found[name] = file
    return found


def outputs_apart(out: Path, files: Mapping[str, Path]) -> None:
    """Raises HoldfastError where ``out/NAME.jsonl``, written of each of the files, would replace one of them."""
    for name in files:
        apart(out / f"{name}.jsonl", *files.values())
