"""How judges do against people: answers that people labelled as refusals or not, counted and put into words.

Two published formats are read, and never mixed: PyRIT's answers to objectives of red teaming (``human_score`` 1 is a
refusal), and XSTest's answers to prompts that are harmless but look harmful, and to harmful ones (``final_label``;
Röttger et al. 2024, arXiv 2308.01263). A partial refusal counts as a refusal, because it does not answer what was
asked; how many of those a judge finds is counted apart.
"""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.errors import HoldfastError
from holdfast.evaluation.judges.substring import list_file, substring_judge, substring_lists
from holdfast.files import sha256, write_json
from holdfast.provenance import Recorder
from holdfast.statistics import Rate, cohen_kappa, wilson

# Of the labelled sets, the one of red teaming: its labels correct an attack success rate.
OF_ATTACKS = "pyrit"


@dataclass(frozen=True)
class Format:
    """A labelled set's columns, and what its labels mean: refused, and only partly so."""

    answer: str
    label: str
    meanings: dict[str, tuple[bool, bool]]


FORMATS = {
    "pyrit": Format("assistant_response", "human_score", {"1": (True, False), "0": (False, False)}),
    "xstest": Format(
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
    columns = set(rows.fieldnames or [])
    name = next((n for n, f in FORMATS.items() if {f.answer, f.label} <= columns), None)
    if name is None:
        known = " or ".join(f"{f.answer}, {f.label}" for f in FORMATS.values())
        raise HoldfastError("has not the columns of labelled answers", str(path), f"give one with {known}")
    form, found = FORMATS[name], []
    for row in rows:
        if row[form.label] not in form.meanings:
            what = f"unknown {form.label} {row[form.label]!r}"
            raise HoldfastError(what, f"{path}:{rows.line_num}", f"labels here: {', '.join(form.meanings)}")
        found.append(Labelled(row[form.answer], *form.meanings[row[form.label]]))
    if not found:
        raise HoldfastError("holds no labelled answer", str(path), "give the whole file")
    return name, found


def counts(labelled: Sequence[Labelled], called_refused: Sequence[bool]) -> dict[str, int]:
    """A judge's calls against people's labels: refusals found and missed, answers called rightly and wrongly."""
    pairs = list(zip(labelled, called_refused, strict=True))
    partial = [called for a, called in pairs if a.partial]
    return {
        "refusals": sum(a.refused for a, _ in pairs),
        "found": sum(called for a, called in pairs if a.refused),
        "answers": sum(not a.refused for a, _ in pairs),
        "wrongly_called_refused": sum(called for a, called in pairs if not a.refused),
        **({"partial_refusals": len(partial), "partial_found": sum(partial)} if partial else {}),
    }


def measured(of: Mapping[str, int]) -> dict[str, Any]:
    """Sensitivity to refusals, specificity and Cohen's kappa of a judge's counts, with 95 % intervals."""
    missed, rightly = of["refusals"] - of["found"], of["answers"] - of["wrongly_called_refused"]
    kappa = cohen_kappa(of["found"], missed, of["wrongly_called_refused"], rightly)
    return {
        "missed": missed,
        "rightly_called_answered": rightly,
        "sensitivity": _shown(wilson(of["found"], of["refusals"])) if of["refusals"] else None,
        "specificity": _shown(wilson(rightly, of["answers"])) if of["answers"] else None,
        "kappa": _shown(kappa),
    }


def _shown(rate: Rate) -> dict[str, float | int | None]:
    return {key: None if math.isnan(value) else value for key, value in rate._asdict().items()}


def agreement(files: Iterable[Path], judges: Sequence[str]) -> dict[str, Any]:
    """Each substring list against each labelled set, as docs/formats.md has it.

    Every answer counts as one that ended by itself. Errors as in :func:`read_labels` and for an unknown judge.
    """
    paths = list(files)
    sets: dict[str, list[Labelled]] = {}
    checksums: dict[str, dict[str, str]] = {}
    for path in paths:
        name, labelled = read_labels(path)
        sets.setdefault(name, []).extend(labelled)
        checksums.setdefault(name, {})[path.name] = sha256(path)
    found: dict[str, dict[str, Any]] = {}
    for judge_name in judges:
        judge = substring_judge(judge_name)
        for name, labelled in sets.items():
            of = counts(labelled, [judge.refused(a.answer, "stop") for a in labelled])
            found.setdefault(judge_name, {})[name] = of | measured(of)
    distinct = {name: len({a.answer for a in labelled}) for name, labelled in sets.items()}
    labels = {
        name: {"files": checksums[name], "n": len(labelled), "distinct_answers": distinct[name]}
        for name, labelled in sets.items()
    }
    return {"labels": labels, "judges": found}


def write_agreement(files: Sequence[Path], out: Path, recipe: Mapping[str, Any]) -> None:
    """Write :func:`agreement` of the recipe's ``judges`` to ``out``, with its provenance beside it."""
    recorder = Recorder("agreement", dict(recipe))
    write_json(out, agreement(files, recipe["judges"]))
    recorder.write(out.with_name(out.name + ".provenance.json"), files)


def recorded(name: str, labels: str = OF_ATTACKS) -> dict[str, Any] | None:
    """The shipped counts of a judge against a labelled set; None of a judge that has none (model judges)."""
    if name not in substring_lists():
        return None
    found: dict[str, Any] | None = list_file(name)["human_labels"].get(labels)
    return found


def human_agreement(name: str) -> str:
    """How the judge does against human labels, in one sentence, with n."""
    against = {labels: m for labels in FORMATS if (m := recorded(name, labels))}
    if not against:
        return f"{name} has not been compared with human labels here"
    said = [
        f"{m['found']} of {m['refusals']} refusals in {labels_named(labels)} and calls "
        f"{m['wrongly_called_refused']} of {m['answers']} answers there refusals"
        for labels, m in against.items()
    ]
    return f"{name} finds {', and '.join(said)}"


def labels_named(labels: str) -> str:
    return {"pyrit": "PyRIT's labelled set", "xstest": "XSTest's (partial refusals counted as such)"}[labels]
