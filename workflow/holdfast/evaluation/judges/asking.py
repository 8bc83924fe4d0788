"""Asking a model judge: its prompts are answered like any others, greedily, and go on after a kill."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from holdfast.evaluation.generation import generate_files, started
from holdfast.evaluation.judges.models import ModelJudge, model_judge
from holdfast.evaluation.judges.verdicts import verdict
from holdfast.evaluation.records import read_answers
from holdfast.evaluation.shown import Chat, Whole
from holdfast.files import read_jsonl, write_jsonl
from holdfast.model_folders import SETTINGS
from holdfast.provenance import Recorder, input_checksum

# What marks turns and parts in the text of templates: <|user|>, [INST], <<SYS>>, <END CONVERSATION>.
MARK = re.compile(r"<\|[^|<>\s]+\|>|\[/?[A-Z_]+\]|<</?[A-Z]+>>|<(?:BEGIN|END) [A-Z ]+>")


def marks(judge: ModelJudge, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What stands for a turn of the judge: its special tokens, and the marks that its templates write as plain text.

    The longest first. Of the grader's chat template too, where the judge is asked in one.
    """
    special = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
    written = judge.template + (str(tokenizer.chat_template) if judge.system is not None else "")
    found = {*special, *tokenizer.all_special_tokens, *MARK.findall(written)} - {""}
    return sorted(found, key=lambda mark: (-len(mark), mark))


def disarmed(text: str, marks: Sequence[str]) -> str:
    """The text with every mark broken by a blank after its first character.

    What is judged is untrusted: written out in an answer, an end-of-turn token would let it speak as the judge.
    """
    for mark in marks:
        text = text.replace(mark, f"{mark[0]} {mark[1:]}")
    return text


def asked(
    judge: ModelJudge, records: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, str]]:
    """The judge's prompt for each generation record, as records {id, text}.

    It is asked of the request as it was before an attack's suffix: such a text is no part of the behaviour.
    """
    broken = marks(judge, tokenizer)
    return [
        {
            "id": str(r["id"]),
            "text": judge.prompt(
                disarmed(r.get("request", r["prompt"]), broken), disarmed(r["completion"], broken)
            ),
        }
        for r in records
    ]


def judge_by_model(
    model_dir: Path, generations: Sequence[Path], out: Path, recipe: Mapping[str, Any]
) -> None:
    """Write ``out/NAME.jsonl``, one verdict per completion with the judge's own ``output``.

    ``recipe``: ``name`` (of the judge in the verdicts; empty: its kind), ``judge`` (a key of MODEL_JUDGES),
    ``batch_size``, ``backend`` (``transformers`` where it is not named, or ``vllm``).
    Raises HoldfastError for an unknown judge, a grader that has no chat template where the judge needs one, and as
    :func:`holdfast.evaluation.generation.started`.
    """
    from holdfast.checkpoints import load_tokenizer

    recorder = Recorder("judge-by-model", dict(recipe))
    judge = model_judge(recipe["judge"])
    sets = {path.stem: read_answers(path) for path in generations}
    answering, tokenizer = started(recipe, model_dir), load_tokenizer(model_dir)
    form = (Whole if judge.system is None else Chat)(tokenizer, {**SETTINGS, "system_prompt": judge.system})
    backend = answering(form, None)
    depends = json.dumps([dict(recipe), judge.template, judge.system, input_checksum(model_dir)])
    key = hashlib.sha256(depends.encode()).hexdigest()[:12]
    outputs = {name: out / f"{name}.outputs" for name in sets}
    questions = {outputs[name]: asked(judge, records, tokenizer) for name, records in sets.items()}
    generate_files(backend, questions, judge.max_new_tokens, key)
    unparsed = {}
    for name, records in sets.items():
        said = [r["completion"] for r in read_jsonl(outputs[name])]
        found = [
            {**verdict({**r, "output": o}, recipe["name"] or recipe["judge"], judge), "output": o}
            for r, o in zip(records, said, strict=True)
        ]
        unparsed[name] = sum(v["attack_success"] is None for v in found)
        write_jsonl(out / f"{name}.jsonl", found)
    for left in [*outputs.values(), *out.glob("*.partial")]:
        left.unlink()
    recorder.write(out / "provenance.json", [model_dir, *generations], unparsed=unparsed, **backend.about())
