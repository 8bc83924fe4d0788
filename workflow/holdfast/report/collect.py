"""Every measure of every cell, read from a results folder into one tidy table.

The measures and their units are listed in ``MEASURES``. A file that a listed cell lacks gives rows with an
empty value: a missing cell is marked, never dropped. So is one that a run left undone, whose files may be there but out
of date.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from holdfast.config.cells import AS_IS, DENSE
from holdfast.errors import HoldfastError
from holdfast.evaluation.judges.substring import quick_judge
from holdfast.report.measures import (
    ability,
    answers,
    attacks,
    image_use,
    mechanism,
    methods,
    modalities,
    pairs,
    transfer,
    visual,
)
from holdfast.report.measures.backends import refuse_two_backends
from holdfast.report.measures.formats import ZeroShot
from holdfast.report.measures.reading import json_object, point
from holdfast.report.undone import MEASURES as UNDONE
from holdfast.report.undone import Undone, without

Cell = tuple[str, str, str]
COLUMNS = ["model", "compression", "method", "measure", "value", "n", "low", "high"]
MEASURES = (
    answers.MEASURES
    | attacks.MEASURES
    | pairs.MEASURES
    | image_use.MEASURES
    | visual.MEASURES
    | ability.MEASURES
    | methods.MEASURES
    | mechanism.MEASURES
    | transfer.MEASURES
    | modalities.MEASURES
    | UNDONE
)


def collect(
    results: Path,
    cells: Iterable[Cell],
    judges: Sequence[str],
    stages: Mapping[str, str] | None = None,
    attacked: Callable[[str], Sequence[str]] = lambda model: (),
    *,
    borderline: bool = False,
    paired: bool = False,
    pictured: bool = False,
    transferred: bool = True,
    undone: Undone | None = None,
) -> pd.DataFrame:
    """Read the measures of ``cells`` from ``results/STUDY``.

    Args:
        results: folder that holds ``MODEL/COMPRESSION/METHOD/``.
        cells: (model, compression, method), in the order the table is to have.
        judges: names of the judges; the first is the headline.
        stages: which stage makes each method, by name (``Study.stages``); ``edit`` where none is named.
        attacked: names of the attack settings of a model (``Study.attacks_on``).
        borderline: whether the study has borderline prompts.
        paired: whether it has pairs of harmful and benign inputs.
        pictured: whether it asks benign questions about images.
        transferred: whether it tries directions in each other's models.
        undone: what a run left undone. Its files are not read; the cells it belongs to get rows ``missing[STAGE]``.

    Returns:
        One row per cell and measure, columns ``COLUMNS``; shares are 0..1, missing values are NaN or NA.

    Raises:
        HoldfastError: a file that exists contradicts the format, a judge has no verdicts in it, two
            methods of one compression were judged on different prompts, or two backends answered.
    """
    listed = list(dict.fromkeys(cells))
    if not judges:
        raise HoldfastError("no judge named", "judges", "name at least one judge")
    undone = undone or Undone()
    with without(results, undone.files) as finished:
        refuse_two_backends(finished, listed, attacked)
        rows = list(
            _rows(
                finished,
                listed,
                judges,
                stages or {},
                attacked,
                borderline,
                paired,
                pictured,
                transferred,
                undone,
            )
        )
    return typed(pd.DataFrame(rows, columns=COLUMNS))


def _rows(
    results: Path,
    listed: Sequence[Cell],
    judges: Sequence[str],
    stages: Mapping[str, str],
    attacked: Callable[[str], Sequence[str]],
    borderline: bool,
    paired: bool,
    pictured: bool,
    transferred: bool,
    undone: Undone,
) -> Iterator[dict[str, Any]]:
    zero_shot = [
        json_object(results.joinpath(*cell, "ability/zero_shot.json"), ZeroShot) or {} for cell in listed
    ]
    tasks = list(dict.fromkeys(task for scores in zero_shot for task in scores))
    pair_file = results / "pairs/pairs.jsonl"
    halves = pairs.read_pairs(pair_file) if paired and pair_file.is_file() else []
    question_file = results / "visual/visual.jsonl"
    asked = visual.categories_of(question_file) if pictured and question_file.is_file() else {}
    judge = quick_judge(judges)
    for model, compression, method in listed:
        cell = results / model / compression / method
        measured = answers.answers(cell, judges) | attacks.settings(cell, attacked(model), judges[0])
        measured |= (attacks.borderline(cell, judges) if borderline else {}) | ability.ability(cell, tasks)
        dense = results / model / DENSE / AS_IS
        beside = None if cell == dense else dense
        measured |= pairs.measured(cell, beside, halves, judge) if halves else {}
        measured |= visual.measured(cell, beside, asked, judge) if asked else {}
        if method == AS_IS:
            measured |= mechanism.mechanism(results / model / compression, compression)
            measured |= (
                image_use.image_use(results / model / compression / "image-use.json") if halves else {}
            )
            measured |= modalities.modalities(results / model / compression / "modalities/modalities.json")
            if transferred and compression != DENSE:
                measured |= transfer.transfer(results / model / compression / "transfer.json")
        else:
            of_methods = {
                k: stages.get(k, methods.EDIT)
                for m, c, k in listed
                if (m, c) == (model, compression) and k != AS_IS
            }
            folder = results / model / compression
            measured |= methods.method(folder, method, of_methods, judges[0])
            if halves:
                controls = methods.controls(folder, method, of_methods)
                measured |= pairs.repaired(folder, method, controls, halves, judge)
        missing = undone.missing((model, compression, method))
        measured |= {f"missing[{stage}]": point(count) for stage, count in missing.items()}
        for measure, rate in measured.items():
            interval = {"low": rate.low, "high": rate.high}
            row = {"model": model, "compression": compression, "method": method, "measure": measure}
            yield row | {"value": rate.value, "n": rate.n or None} | interval


def typed(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns' types: text, float64, and Int64 for n."""
    numbers = dict.fromkeys(("value", "low", "high"), "float64")
    return frame.astype(dict.fromkeys(COLUMNS[:4], "str") | numbers).astype({"n": "Int64"})
