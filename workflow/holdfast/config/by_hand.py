"""Recipes given on the command line: the same sections as a study's, with their defaults and checks."""

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from holdfast.config import sources
from holdfast.config.compressions import Prune, Published, Quantize, compression_kind
from holdfast.config.grid import Aird
from holdfast.config.images import Pairs, Visual
from holdfast.config.judges import JudgeName, ListName
from holdfast.config.measures import (
    Attack,
    Direction,
    Generate,
    Mediation,
    Perplexity,
    Search,
    Transfer,
    ZeroShot,
)
from holdfast.config.prompt_sets import Data, PromptSet
from holdfast.config.reading import dotted, explained
from holdfast.config.rivals import Recalibrate, Steer, SystemPrompt, Tune
from holdfast.config.sources import BadValueError
from holdfast.config.values import Positive, Section
from holdfast.errors import HoldfastError
from holdfast.versions import STAGE_VERSIONS


class Versioned(Section):
    version: int = Field(default=0, description="version of the stage, see versions.py; recorded only")


class PromptsRecipe(PromptSet, Versioned):
    label: Literal["", "harmful", "harmless"] = Field(default="", description="harmful or harmless")
    role: str = Field(default="", description="role of the set in the study; recorded only")
    samples: Positive | None = Field(default=None, description="draw so many records")
    seed: int = Field(default=0, ge=0, description="seed of the draw")


class TextRecipe(Data, Versioned):
    pass


class PairsRecipe(Pairs, Versioned):
    pass


class DownloadRecipe(Versioned):
    source: Annotated[str, AfterValidator(sources.checked({"hub": sources.MODEL["hub"]}))] | None = Field(
        default=None, description="hub:ORG/NAME@REVISION of a model"
    )
    tasks: list[str] = Field(default=[], description="zero-shot tasks that the harness knows")

    @model_validator(mode="after")
    def something(self) -> "DownloadRecipe":
        if bool(self.source) == bool(self.tasks):
            raise BadValueError("names no one thing to download", "give either source or tasks")
        return self


class Draw(Section):
    samples: Positive | None = Field(default=32, description="number of calibration sequences")
    tokens: Annotated[int, Field(gt=1)] | None = Field(
        default=256, description="tokens per calibration sequence"
    )
    seed: int = Field(default=0, ge=0, description="seed of the draw")


class PruneRecipe(Draw, Prune, Versioned):
    pass


class QuantizeRecipe(Draw, Quantize, Versioned):
    pass


class PublishedRecipe(Published, Versioned):
    pass


class DirectionRecipe(Direction, Versioned):
    pass


class CompareRecipe(Versioned):
    seed: int = Field(default=0, ge=0, description="seed of the nulls")


class TransferRecipe(Transfer, Versioned):
    nulls: Annotated[int, Field(ge=3)] = 8
    seed: int = Field(default=0, ge=0, description="seed of the nulls and the bootstrap")


class ImageUseRecipe(Versioned):
    seed: int = Field(default=0, ge=0, description="seed of the bootstrap")


class DrawRecipe(Versioned):
    learnt_on: Literal["prompts", "embedded-words"] = Field(
        default="prompts", description="prompt sets that are given, or embedded-words"
    )
    limit: Positive | None = Field(default=64, description="prompts of each kind at most; null for all")


class ModalitiesRecipe(Versioned):
    pairs: Positive | None = Field(default=32, description="pairs of each modality; null for all")
    nulls: Annotated[int, Field(ge=3)] = Field(default=8, description="directions of each null")
    seed: int = Field(default=0, ge=0, description="seed of the nulls and the bootstrap")


class MediateRecipe(Mediation, Versioned):
    seed: int = Field(default=0, ge=0, description="seed of the first random direction")
    ablation: Literal["plain", "affine"] = Field(default="plain", description="kind of ablation")
    judge: ListName = Field(default="arditi-12", description="refusal judge")
    batch_size: Positive | Literal["auto"] = Field(default="auto", description="prompts at a time")


class EditRecipe(Aird, Versioned):
    edit: Literal["aird"] = Field(default="aird", description="the kind of edit")
    search: Search = Field(default=Search(), description="candidates and bounds of a search")
    judge: ListName = Field(
        default="arditi-12", description="refusal judge that verifies what a search found"
    )


class InstructRecipe(SystemPrompt, Versioned):
    pass


class SteerRecipe(Steer, Versioned):
    search: Search = Field(default=Search(), description="candidates and bounds of a search")
    judge: ListName = Field(
        default="arditi-12", description="refusal judge that verifies what a search found"
    )


class RecalibrateRecipe(Recalibrate, Versioned):
    compress: dict[str, Any] = Field(description="recipe of the compression that is made again")
    judge: ListName = Field(default="arditi-12", description="refusal judge")


class TuneRecipe(Tune, Versioned):
    judge: ListName = Field(default="arditi-12", description="refusal judge")


class GenerateRecipe(Generate, Attack, Versioned):
    pass


class JudgeRecipe(Versioned):
    judges: list[ListName] = Field(min_length=1, description="names of substring lists")


class VisualRecipe(Visual, Versioned):
    pass


class ScoreRecipe(Versioned):
    judge: ListName = Field(default="arditi-12", description="refusal judge")


class AgreementRecipe(Versioned):
    judges: list[ListName] = Field(default=[], description="names of substring lists")
    judge_models: dict[JudgeName, str] = Field(default={}, description="kind of each model judge, by name")


class JudgeByModelRecipe(Versioned):
    name: str = Field(default="", description="name of the judge in its verdicts; its kind by default")
    judge: str = Field(description="llama-guard-3, harmbench, wildguard or strongreject")
    batch_size: Positive | Literal["auto"] = Field(default="auto", description="answers at a time")
    backend: Literal["transformers", "vllm"] = Field(
        default="transformers", description="what asks the judge"
    )


class AbilityRecipe(Versioned):
    zero_shot: ZeroShot = Field(description="zero-shot accuracy")
    perplexity: Perplexity = Field(description="perplexity")


class ActivationsRecipe(Versioned):
    pass


class DisjointRecipe(Versioned):
    held_out: Data | None = Field(default=None, description="text that perplexity is measured on")
    tasks: list[str] = Field(default=[], description="zero-shot tasks")
    folder: str | None = Field(default=None, description="folder with the tasks' data")


RECIPES: dict[str, type[Section]] = {
    "prompts": PromptsRecipe,
    "text": TextRecipe,
    "disjoint": DisjointRecipe,
    "pairs": PairsRecipe,
    "download": DownloadRecipe,
    "activations": ActivationsRecipe,
    "direction": DirectionRecipe,
    "compare": CompareRecipe,
    "transfer": TransferRecipe,
    "mediate": MediateRecipe,
    "image-use": ImageUseRecipe,
    "draw": DrawRecipe,
    "modalities": ModalitiesRecipe,
    "edit": EditRecipe,
    "instruct": InstructRecipe,
    "steer": SteerRecipe,
    "recalibrate": RecalibrateRecipe,
    "tune": TuneRecipe,
    "generate": GenerateRecipe,
    "judge": JudgeRecipe,
    "judge-by-model": JudgeByModelRecipe,
    "visual": VisualRecipe,
    "score": ScoreRecipe,
    "agreement": AgreementRecipe,
    "ability": AbilityRecipe,
}


COMPRESSIONS: dict[str, type[Section]] = {
    "<Dense>": PruneRecipe,  # nothing given: its errors say what is missing
    "<Prune>": PruneRecipe,
    "<Quantize>": QuantizeRecipe,
    "<Published>": PublishedRecipe,
}


def checked(stage: str, recipe: str) -> dict[str, Any]:
    """A stage's recipe, given as JSON, with its defaults; errors as in :func:`validated`."""
    return validated(stage, parsed(recipe))


def validated(stage: str, given: dict[str, Any]) -> dict[str, Any]:
    """A stage's recipe with its defaults.

    Raises HoldfastError naming the first key that is unknown, missing or out of range.
    """
    kind = RECIPES[stage] if stage != "compress" else COMPRESSIONS[compression_kind(given)]
    try:
        full = kind.model_validate({"version": STAGE_VERSIONS[stage]} | given).model_dump()
    except ValidationError as error:
        where, what, remedy = explained(error.errors(include_url=False)[0], kind)
        raise HoldfastError(what, ", ".join(filter(None, ("--recipe", dotted(where)))), remedy) from None
    if stage == "edit" and full["alpha"] is None and full["variant"] not in ("restore", "realign"):
        full["alpha"] = "search"
    if stage == "steer" and full["alpha"] is None and full["matched_to"] is None:
        full["alpha"] = "search"
    if stage in ("edit", "steer", "tune") and full["seed"] is None:
        full["seed"] = 0
    if stage == "generate":
        drawn = {"samples": 1, "seed": 0} if full["temperature"] else {}
        full = drawn | {key: value for key, value in full.items() if value is not None and key != "model"}
    return full


def parsed(recipe: str) -> dict[str, Any]:
    """A JSON object; HoldfastError when it is not one."""
    try:
        value = json.loads(recipe)
    except json.JSONDecodeError as error:
        raise HoldfastError(f"not JSON ({error})", "--recipe", "give one JSON object") from None
    if not isinstance(value, dict):
        raise HoldfastError("not a JSON object", "--recipe", "give one JSON object")
    return value
