"""Generation records as the stages that judge and learn read them, checked field by field."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from holdfast.errors import HoldfastError
from holdfast.files import read_jsonl
from holdfast.records import Record, require


class _Answer(Record):
    id: str
    prompt_id: str
    prompt: str
    request: str = ""  # the prompt without an attack's suffix, where it has one
    completion: str
    finish_reason: Literal["stop", "length"]
    thought: str | None = None


class _AnswerWithTokens(_Answer):
    tokens: list[Annotated[int, Field(ge=0)]]


def read_answers(path: Path, tokens: bool = False) -> list[dict[str, Any]]:
    """The records of a generations file; ``tokens``: with the ids of their tokens.

    Raises HoldfastError when there is none, or one that ``holdfast generate`` did not write.
    """
    records = read_jsonl(path)
    remedy = "give answers that holdfast generate wrote"
    if not records:
        raise HoldfastError("holds no answer", str(path), remedy)
    for number, record in enumerate(records, 1):
        require(_AnswerWithTokens if tokens else _Answer, record, f"{path}, record {number}", remedy)
    return records
