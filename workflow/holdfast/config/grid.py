"""The sections that span the grid: models, compressions, methods, and the parts of it to run."""

import difflib
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, ValidationInfo, field_validator

from holdfast.config import sources
from holdfast.config.compressions import Dense, Prune, Published, Quantize
from holdfast.config.needs import Needs
from holdfast.config.rivals import Recalibrate, Steer, SystemPrompt, Tune
from holdfast.config.sources import BadValueError
from holdfast.config.values import (
    WITHOUT_STRENGTH,
    Layer,
    LayerList,
    Section,
    Strength,
    Variant,
    distinct,
    either,
    named,
    not_matched,
    of_random,
)

# Folders that stages write beside what is named by models and methods (docs/formats.md).
RESERVED_MODELS = {
    "prompts",
    "tables",
    "figures",
    "report",
    "logs",
    "benchmarks",
    "judges",
    "downloads",
    "pairs",
    "modalities",
}
RESERVED_METHODS = {
    "checkpoint",
    "activations",
    "direction",
    "comparison",
    "comparison.json",
    "comparison.csv",
    "transfer.json",
    "image-use.json",
    "modalities",
    "mediation",
    "training-answers",
}
STAGES_OWN = "the name of a stage's own folder"


ModelName = Annotated[str, named(RESERVED_MODELS, STAGES_OWN)]
CompressionName = Annotated[str, named()]
MethodName = Annotated[str, named(RESERVED_METHODS, STAGES_OWN)]


class Chat(Section):
    """What a chat model is and how it is talked to."""

    source: Annotated[str, AfterValidator(sources.checked(sources.MODEL))] = Field(
        description="package:NAME, hub:ORG/NAME@REVISION or path:FOLDER (a Hugging Face model folder)"
    )
    adapter: Annotated[str, AfterValidator(sources.checked(sources.ADAPTER))] | None = Field(
        default=None, description="LoRA merged into the model: package:NAME/inner/path or path:FOLDER"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(description="number format of the weights")
    thinking: bool | None = Field(
        default=None, description="the chat template's thinking switch; null leaves the template's default"
    )
    system_prompt: str | None = Field(
        default=None, description="system prompt of every chat, or null for none"
    )
    trust_remote_code: bool = Field(
        default=False, description="run the Python code that comes with the model"
    )


class Model(Needs, Chat):
    """One chat model."""

    vision: Annotated[str, AfterValidator(sources.checked(sources.ADAPTER))] | None = Field(
        default=None,
        description="tower, projector and LoRA that make it see, from holdfast train-vision: "
        "package:NAME/inner/path or path:FOLDER",
    )


class AsIs(Section):
    """The compressed model, not edited."""

    stage: ClassVar[str | None] = None


class Aird(Section):
    """A rank-one edit along a refusal direction (AIRD, a reconstruction), or its random control."""

    stage: ClassVar[str] = "edit"

    edit: Literal["aird"] = Field(description="the kind of edit")
    direction: Literal["dense", "random"] = Field(
        default="dense", description="the dense model's refusal direction, or a random one (a control)"
    )
    seed: int | None = Field(
        default=None, ge=0, description="seed of the random direction; the study's by default"
    )
    matched_to: str | None = Field(
        default=None,
        description="the method whose finished edit gives a random one its variant, matrices, layer, alpha",
    )
    variant: Literal[Variant, "search"] = Field(
        default="search",
        description="formula of the edit, see docs/methods.md; search chooses on the validation prompts",
    )
    matrices: Annotated[list[Literal["o_proj", "down_proj"]], AfterValidator(distinct)] = Field(
        default=["o_proj", "down_proj"], min_length=1, description="matrices to edit"
    )
    layer: Annotated[
        Layer | LayerList | Literal["source", "search"],
        either("search, source (the direction's own), a layer number or a list of them"),
    ] = Field(default="search", description="layer(s) to edit; search chooses on the validation prompts")
    alpha: Strength = Field(
        default=None, description="strength of the edit, a number or search (the default)"
    )
    keep_sparsity: bool = Field(
        default=False, description="change only weights that are not zero, so that a pruned model stays so"
    )
    requantize: bool = Field(
        default=False,
        description="store the edited matrices of a quantized checkpoint quantized again instead of dense",
    )

    only_random = field_validator("seed", "matched_to")(of_random("direction"))
    own = field_validator("variant", "matrices", "layer", "alpha", "keep_sparsity", "requantize")(not_matched)

    @field_validator("alpha")
    @classmethod
    def has_strength(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and info.data.get("variant") in WITHOUT_STRENGTH:
            raise BadValueError(f"the variant {info.data['variant']} has no strength", "remove this key")
        return value


# The key that each kind of method is known by.
KINDS: dict[str, type[Section]] = {
    "edit": Aird,
    "system_prompt": SystemPrompt,
    "steer": Steer,
    "recalibrate": Recalibrate,
    "tune": Tune,
}


def method_kind(section: Any) -> str:
    """Which model a method's section is meant to be, wrong keys and all."""
    if section == {}:
        return "<AsIs>"
    keys = list(section) if isinstance(section, dict) else []
    meant = [k for key in keys for k in difflib.get_close_matches(str(key), KINDS, n=1)]
    known = next((k for k in [*keys, *meant] if k in KINDS), "edit")
    return f"<{KINDS[known].__name__}>"


# The tags stand in pydantic's error locations; the brackets keep them apart from names.
SECTIONS: list[type[Section]] = [Dense, Prune, Quantize, Published, AsIs, *KINDS.values()]
TAGGED = {f"<{section.__name__}>": section for section in SECTIONS}
Method = Annotated[
    Annotated[AsIs, Tag("<AsIs>")]
    | Annotated[Aird, Tag("<Aird>")]
    | Annotated[SystemPrompt, Tag("<SystemPrompt>")]
    | Annotated[Steer, Tag("<Steer>")]
    | Annotated[Recalibrate, Tag("<Recalibrate>")]
    | Annotated[Tune, Tag("<Tune>")],
    Discriminator(method_kind),
]


class Part(Section):
    """One part of the grid to run, by glob patterns."""

    model: str = Field(default="*", description="glob pattern of model names")
    compression: str = Field(default="*", description="glob pattern of compression names")
    method: str = Field(default="*", description="glob pattern of method names")
