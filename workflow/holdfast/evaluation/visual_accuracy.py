"""Accuracy on benign questions about images (VQA): which answers are right.

A chat model answers in sentences, so where a question has options, an answer is right when it names the right one and
no other; without options it must be one of the given answers, up to case, punctuation and articles (after the
normalisation of Antol et al. 2015, arXiv 1505.00468; its weighting by annotators is left out).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from holdfast.errors import HoldfastError
from holdfast.evaluation.judges import substring_judge
from holdfast.evaluation.judges.verdicts import verdict
from holdfast.evaluation.records import read_answers
from holdfast.files import write_jsonl
from holdfast.prompts.sources import read_records
from holdfast.provenance import Recorder
from holdfast.records import Record, require

ARTICLES = frozenset(("a", "an", "the"))


class _Question(Record):
    id: str
    answers: Annotated[list[str], Field(min_length=1)]
    options: list[str]


def named(text: str, options: Iterable[str]) -> set[str]:
    """Which of ``options`` stand in ``text`` as words of their own, whatever their case; where one is a part of
    another ("left", "top left"), the longer one that stands there."""
    found, rest = set(), text
    for option in sorted(options, key=len, reverse=True):
        rest, times = re.subn(rf"(?<!\w){re.escape(option)}(?!\w)", " ", rest, flags=re.IGNORECASE)
        if times:
            found.add(option)
    return found


def normalised(answer: str) -> str:
    """Small letters, without punctuation and articles."""
    return " ".join(word for word in re.findall(r"\w+", answer.lower()) if word not in ARTICLES)


def right(completion: str, answers: Sequence[str], options: Sequence[str]) -> bool:
    """Whether a completion gives one of ``answers``; with ``options``, names it and none that is not an answer."""
    if options:
        found = named(completion, options)
        return bool(found) and found <= {o for o in options if o.lower() in {a.lower() for a in answers}}
    return normalised(completion) in set(map(normalised, answers)) - {""}


def score(generations: Path, questions: Path, out: Path, recipe: Mapping[str, Any]) -> tuple[int, int]:
    """Write ``out/visual.jsonl``: the substring list's verdict on each answer, with ``right``, which no refusal is;
    None of an answer cut before its first word. Returns how many are right, and of how many.

    Args:
        generations: answers that ``holdfast generate`` wrote.
        questions: what ``holdfast visual`` wrote.
        recipe: ``judge``, a substring list.

    Raises:
        HoldfastError: a file is missing or not in its format, or the answers are to other questions.
    """
    recorder = Recorder("score", dict(recipe))
    remedy = "run `holdfast visual` again"
    known: dict[str, _Question] = {}
    for number, record in enumerate(read_records(questions), 1):
        require(_Question, record, f"{questions}, record {number}", remedy)
        known[record["id"]] = _Question.model_validate(record)
    given = read_answers(generations)
    if {r["prompt_id"] for r in given} != known.keys():
        what = f"answers to other questions than those of {questions}"
        raise HoldfastError(what, str(generations), "generate them again")
    judge = substring_judge(recipe["judge"])
    scored = []
    for record in given:
        asked = known[record["prompt_id"]]
        said = verdict(record, recipe["judge"], judge)
        good = not said["refused"] and right(record["completion"], asked.answers, asked.options)
        scored.append(said | {"right": None if said["label"] == "unfinished" else good})
    write_jsonl(out / f"{generations.stem}.jsonl", scored)
    recorder.write(out / "provenance.json", [generations, questions])
    told = [s["right"] for s in scored if s["right"] is not None]
    return sum(told), len(told)
