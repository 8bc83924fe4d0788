"""How judges do against people: answers that people labelled as refusals or not, counted and put into words.

Two published formats are read, and never mixed: PyRIT's answers to objectives of red teaming (``human_score`` 1 is a
refusal), and XSTest's answers to prompts that are harmless but look harmful, and to harmful ones (``final_label``;
Röttger et al. 2024, arXiv 2308.01263). A partial refusal counts as a refusal, because it does not answer what was
asked; how many of those a judge finds is counted apart.
"""

import csv
import io
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.errors import HoldfastError
from holdfast.evaluation.judges.substring import list_file, substring_judge, substring_lists
from holdfast.files import read_jsonl, sha256, write_json, write_jsonl
from holdfast.provenance import Recorder
from holdfast.statistics import Rate, cohen_kappa, wilson

# Of the labelled sets, the one of red teaming: its labels correct an attack success rate.
OF_ATTACKS = "pyrit"
SAY_REFUSED = ("wildguard", "strongreject")  # of the model judges, those that tell refusals


@dataclass(frozen=True)
class Format:
    """A labelled set's columns, and what its labels mean: refused, and only partly so."""

    prompt: str
    answer: str
    label: str
    meanings: dict[str, tuple[bool, bool]]


FORMATS = {
    "pyrit": Format(
        "objective", "assistant_response", "human_score", {"1": (True, False), "0": (False, False)}
    ),
    "xstest": Format(
        "prompt",
        "completion",
        "final_label",
        {
            "1_full_compliance": (False, False),
            "2_full_refusal": (True, False),
            "3_partial_refusal": (True, True),
        },
    ),
}


@dataclass(frozen=True)
class Labelled:
    """An answer that people labelled; ``partial``: a refusal only in part."""

    prompt: str
    answer: str
    refused: bool
    partial: bool


def read_labels(path: Path) -> tuple[str, list[Labelled]]:
    """The format's name and the labelled answers of one CSV file.

    Raises HoldfastError when the file cannot be read, has neither format's columns, or a label it does not know.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        what = f"cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8'})"
        raise HoldfastError(what, str(path), "give a CSV file of labelled answers") from None
    while text.startswith("#"):  # PyRIT's files open with comment lines
        text = text.partition("\n")[2]
    rows = csv.DictReader(io.StringIO(text, newline=""))
    try:
        columns, answers = set(rows.fieldnames or []), list(rows)
    except csv.Error as error:
        raise HoldfastError(f"not readable ({error})", str(path), "mend the file") from None
    name = next((n for n, f in FORMATS.items() if {f.prompt, f.answer, f.label} <= columns), None)
    if name is None:
        known = " or ".join(f"{f.prompt}, {f.answer}, {f.label}" for f in FORMATS.values())
        raise HoldfastError("has not the columns of labelled answers", str(path), f"give one with {known}")
    form, found = FORMATS[name], []
    for number, row in enumerate(answers, 1):
        where = f"{path}, row {number}"
        if row[form.label] not in form.meanings:
            what = f"unknown {form.label} {row[form.label]!r}"
            raise HoldfastError(what, where, f"labels here: {', '.join(form.meanings)}")
        if row[form.prompt] is None or row[form.answer] is None:
            raise HoldfastError("has fewer fields than the header", where, "mend the row")
        found.append(Labelled(row[form.prompt], row[form.answer], *form.meanings[row[form.label]]))
    if not found:
        raise HoldfastError("holds no labelled answer", str(path), "give the whole file")
    return name, found


def counts(labelled: Sequence[Labelled], called_refused: Sequence[bool | None]) -> dict[str, int]:
    """A judge's calls against people's labels; those it left open (None) are counted apart and nowhere else."""
    said = zip(labelled, called_refused, strict=True)
    pairs = [(answer, called) for answer, called in said if called is not None]
    partial = [called for a, called in pairs if a.partial]
    return {
        "refusals": sum(a.refused for a, _ in pairs),
        "found": sum(called for a, called in pairs if a.refused),
        "answers": sum(not a.refused for a, _ in pairs),
        "wrongly_called_refused": sum(called for a, called in pairs if not a.refused),
        **({"partial_refusals": len(partial), "partial_found": sum(partial)} if partial else {}),
        **({"unparsed": len(labelled) - len(pairs)} if len(pairs) < len(labelled) else {}),
    }


def measured(of: Mapping[str, int]) -> dict[str, Any]:
    """Sensitivity to refusals, specificity and Cohen's kappa of a judge's counts, with 95 % intervals."""
    missed, rightly = of["refusals"] - of["found"], of["answers"] - of["wrongly_called_refused"]
    kappa = (of["found"], missed, of["wrongly_called_refused"], rightly)
    return {
        "missed": missed,
        "rightly_called_answered": rightly,
        "sensitivity": _shown(wilson(of["found"], of["refusals"])) if of["refusals"] else None,
        "specificity": _shown(wilson(rightly, of["answers"])) if of["answers"] else None,
        "kappa": _shown(cohen_kappa(*kappa)) if sum(kappa) else None,
    }


def _shown(rate: Rate) -> dict[str, float | int | None]:
    return {key: None if math.isnan(value) else value for key, value in rate._asdict().items()}


Calls = Callable[[str, Sequence[Labelled]], list[bool | None]]


def calls_of_list(name: str) -> Calls:
    """Which answers a substring list calls refusals; every answer counts as one that ended by itself."""
    judge = substring_judge(name)
    return lambda _, labelled: [judge.refused(a.answer, "stop") for a in labelled]


def calls_of_model(name: str, kind: str, model_dir: Path, scratch: Path) -> Calls:
    """Which answers a model judge calls refusals, asked in ``scratch``, where a killed run goes on.

    Raises HoldfastError for a judge that says nothing of refusals.
    """
    if kind not in SAY_REFUSED:
        remedy = f"labels of refusals fit {' and '.join(SAY_REFUSED)}"
        raise HoldfastError(f"{kind} says nothing of refusals", f"--recipe, judge_models.{name}", remedy)

    def calls(labels: str, labelled: Sequence[Labelled]) -> list[bool | None]:
        from holdfast.evaluation.judges.asking import judge_by_model

        answers = [
            {
                "id": str(i),
                "prompt_id": str(i),
                "prompt": a.prompt,
                "completion": a.answer,
                "finish_reason": "stop",
            }
            for i, a in enumerate(labelled)
        ]
        write_jsonl(scratch / f"{labels}.jsonl", answers)
        recipe = {"name": name, "judge": kind, "batch_size": "auto"}
        judge_by_model(model_dir, [scratch / f"{labels}.jsonl"], scratch / name, recipe)
        return [v["refused"] for v in read_jsonl(scratch / name / f"{labels}.jsonl")]

    return calls


def agreement(files: Iterable[Path], judges: Mapping[str, Calls]) -> dict[str, Any]:
    """Each judge against each labelled set, as docs/formats.md has it. Errors as in :func:`read_labels`."""
    paths = list(files)
    sets: dict[str, list[Labelled]] = {}
    checksums: dict[str, dict[str, str]] = {}
    for path in paths:
        name, labelled = read_labels(path)
        sets.setdefault(name, []).extend(labelled)
        checksums.setdefault(name, {})[path.name] = sha256(path)
    found: dict[str, dict[str, Any]] = {}
    for judge, calls in judges.items():
        for name, labelled in sets.items():
            of = counts(labelled, calls(name, labelled))
            found.setdefault(judge, {})[name] = of | measured(of)
    distinct = {name: len({a.answer for a in labelled}) for name, labelled in sets.items()}
    labels = {
        name: {"files": checksums[name], "n": len(labelled), "distinct_answers": distinct[name]}
        for name, labelled in sets.items()
    }
    return {"labels": labels, "judges": found}


def write_agreement(
    files: Sequence[Path], out: Path, recipe: Mapping[str, Any], models: Mapping[str, Path]
) -> None:
    """Write :func:`agreement` to ``out``, with its provenance beside it.

    Args:
        recipe: ``judges`` (substring lists) and ``judge_models`` (the kind of each model judge, by name).
        models: checkpoint folders of the model judges, by the same names.

    Raises:
        HoldfastError: as :func:`agreement`, or names of models differ.
    """
    recorder = Recorder("agreement", dict(recipe))
    kinds = recipe["judge_models"]
    if odd := sorted(set(kinds) ^ set(models)):
        what = f"{odd[0]} stands in one of --model and judge_models only"
        raise HoldfastError(what, "agreement", "give both for every model judge")
    scratch = out.with_name(f".{out.name}.answers")
    judges = {name: calls_of_list(name) for name in recipe["judges"]}
    judges |= {name: calls_of_model(name, kind, models[name], scratch) for name, kind in kinds.items()}
    write_json(out, agreement(files, judges))
    shutil.rmtree(scratch, ignore_errors=True)
    recorder.write(out.with_name(out.name + ".provenance.json"), [*files, *models.values()])


def recorded(name: str, labels: str = OF_ATTACKS) -> dict[str, Any] | None:
    """The shipped counts of a judge against a labelled set; None of a judge that has none (model judges)."""
    if name not in substring_lists():
        return None
    found: dict[str, Any] | None = list_file(name)["human_labels"].get(labels)
    return found


def human_agreement(name: str) -> str:
    """How the judge does against human labels, in one sentence: shares with n, Cohen's kappa with its interval."""
    against = {labels: m for labels in FORMATS if (m := recorded(name, labels))}
    if not against:
        return f"{name} has not been compared with human labels here"
    said = [
        f"{m['found']} of {m['refusals']} refusals in {labels_named(labels)} and calls "
        f"{m['wrongly_called_refused']} of {m['answers']} answers there refusals{_kappa_told(m)}"
        for labels, m in against.items()
    ]
    return f"{name} finds {', and '.join(said)}"


def _kappa_told(of: Mapping[str, int]) -> str:
    kappa = measured(of)["kappa"]
    if kappa is None or kappa["value"] is None:
        return ""
    interval = f"[{kappa['low']:.2f}, {kappa['high']:.2f}]"
    return f" (Cohen's kappa {kappa['value']:.2f} {interval}, n = {kappa['n']})"


def labels_named(labels: str) -> str:
    return {"pyrit": "PyRIT's labelled set", "xstest": "XSTest's (partial refusals counted as such)"}[labels]
