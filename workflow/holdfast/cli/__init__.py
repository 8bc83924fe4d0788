"""Subcommands, nothing else: parse, call one function, write one output."""

import atexit
import gc
import os
import sys
from pathlib import Path

import typer

from holdfast.cli import cluster, evaluation, models, pairs, plan, refusal, study
from holdfast.errors import HoldfastError
from holdfast.provenance import Recorder
from holdfast.removed_checkpoints import MAKERS

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Does refusal hold when an aligned model is compressed, why not, and can it be repaired?",
)
for room in (study, plan, models, refusal, evaluation, pairs, cluster):
    app.add_typer(room.commands)


def freeze() -> None:
    """Nothing is looked at when the process ends, but where triton is loaded: it would list what is left as leaked."""
    if "triton" not in sys.modules:
        gc.freeze()


def main() -> None:
    """The ``holdfast`` command: a user's mistake ends in one line and exit code 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Importing the model libraries makes millions of objects that stay. With Python's own thresholds the collector
    # looks at them over and over, and once more when the process ends: a third of what a stage spends around its work.
    gc.set_threshold(200_000, 30, 30)
    atexit.register(freeze)
    program, *arguments = sys.argv
    if arguments and arguments[0] in MAKERS:
        # Of another environment's command the way to it; this one's is found wherever it is installed.
        Recorder.command = [
            program if ".environments" in Path(program).parts[:-3] else "holdfast",
            *arguments,
        ]
    try:
        app()
    except HoldfastError as error:
        for line in getattr(error, "mistakes", None) or [str(error)]:
            print(f"holdfast: {line}", file=sys.stderr)
        sys.exit(error.exit_code)
