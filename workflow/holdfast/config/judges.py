"""The judges of a study: substring lists by name, and models under names that the study gives them."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from holdfast.config import sources
from holdfast.config.cells import Found, closest
from holdfast.config.needs import Needs
from holdfast.config.values import named
from holdfast.evaluation.judges.substring import substring_lists

# Its verdicts lie in a folder beside these files of the substring lists.
FILES = {"attack.jsonl", "over_refusal.jsonl", "provenance.json"}
JudgeName = Annotated[str, named(FILES, "the name of a file of theirs")]


def known_list(name: str) -> str:
    """Raises BadValueError for a name that no substring list has."""
    if name not in (lists := substring_lists()):
        raise sources.BadValueError(f"unknown judge {name!r}", f"choose from: {', '.join(lists)}")
    return name


ListName = Annotated[str, AfterValidator(known_list)]


class JudgeModel(Needs):
    """A published judge, as a model that is asked."""

    judge: Literal["llama-guard-3", "harmbench", "wildguard", "strongreject"] = Field(
        description="the published prompt and output it goes by; strongreject: any chat model as its grader"
    )
    source: Annotated[str, AfterValidator(sources.checked(sources.CHECKPOINT))] = Field(
        description="hub:ORG/NAME@REVISION or path:FOLDER (a Hugging Face model folder)"
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        default=None, description="number format of the weights; null for as they are stored"
    )


def judge_mistakes(config: Mapping[str, Any]) -> Iterator[Found]:
    """Judges that nobody defined, names taken by a substring list, and a study without such a list."""
    section = config.get("evaluate")
    evaluate = section if isinstance(section, dict) else {}
    models, judges = evaluate.get("judge_models"), evaluate.get("judges")
    lists, asked = substring_lists(), list(models) if isinstance(models, dict) else []
    for name in set(asked) & set(lists):
        where = ("evaluate", "judge_models", name)
        yield where, "the name of a substring list", "choose another name"
    given = [name for name in judges if isinstance(name, str)] if isinstance(judges, list) else []
    for number, name in enumerate(given):
        if name not in [*lists, *asked]:
            remedy = f"{closest(name, [*lists, *asked])}choose from: {', '.join([*lists, *asked])}"
            yield ("evaluate", "judges", number), f"{name!r} is not known", remedy
    if given and all(name in asked for name in given):
        what = "no substring list, which mediation and refusal rates are judged by"
        yield ("evaluate", "judges"), what, f"add one of {', '.join(lists)}"
