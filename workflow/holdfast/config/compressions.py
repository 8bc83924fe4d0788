"""The section ``compressions``: pruning, quantization, and checkpoints that others published."""

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, ValidationInfo, field_validator

from holdfast.config import sources
from holdfast.config.sources import BadValueError
from holdfast.config.values import Positive, Section, distinct, either

Parts = Annotated[
    Annotated[list[Literal["language", "vision", "projector"]], Field(min_length=1)], AfterValidator(distinct)
]
# Which keys each quantization takes; the first value is told when a key is missing.
QUANTIZATIONS: dict[str, tuple[str, ...]] = {
    "rtn": ("bits", "group_size"),
    "gptq": ("bits", "group_size", "format"),
    "awq": ("bits", "group_size"),
    "smoothquant": (),
    "fp8": ("activations",),
    "llm-int8": (),
    "nf4": (),
}
NEEDED = ("bits", "group_size")
DEFAULTS = {"format": "compressed-tensors", "activations": "dynamic"}
AUTO_GPTQ_BITS = (2, 3, 4, 8)


class Calibrated(Section):
    """What every compression of ours may say of its calibration and of the parts it acts on."""

    samples: Positive | None = Field(
        default=None, description="calibration sequences, fewer than the study's; the study's by default"
    )
    tokens: Annotated[int, Field(gt=1)] | None = Field(
        default=None, description="tokens per calibration sequence; the study's by default"
    )
    parts: Parts = Field(default=["language"], description="parts of the model to compress")


class Dense(Section):
    """The model as it came: no compression."""


class Prune(Calibrated):
    """Weights set to zero."""

    prune: Literal["magnitude", "wanda", "sparsegpt"] = Field(
        description="which weights go: the smallest, by Wanda's score, or by SparseGPT"
    )
    pattern: str | None = Field(
        default=None,
        description='n:m, so many weights kept of every m inputs of a row, for example "2:4"',
    )
    sparsity: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        validate_default=True,
        description="share of each layer's weights set to zero, between 0 and 1",
    )
    compare: Literal["row", "layer"] | None = Field(
        default=None,
        description="weights compete within their row (Wanda's default) or their matrix (magnitude's)",
    )

    @field_validator("pattern")
    @classmethod
    def is_pattern(cls, value: str | None) -> str | None:
        if value is None:
            return value
        kept, colon, group = value.partition(":")
        if not (colon and kept.isdecimal() and group.isdecimal()) or not 0 < int(kept) < int(group):
            raise BadValueError(f"'{value}' is not a pattern n:m with n below m", 'write "2:4" or "4:8"')
        return value

    @field_validator("sparsity")
    @classmethod
    def or_pattern(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is None and info.data.get("pattern", "") is None:
            what = cls.model_fields["sparsity"].description
            raise BadValueError("missing", f'add it ({what}), or pattern: "2:4"')
        if value is not None and info.data.get("pattern") is not None:
            raise BadValueError("a pattern says how sparse already", "remove sparsity or pattern")
        return value

    @field_validator("compare")
    @classmethod
    def fits(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return value
        if info.data.get("prune") == "sparsegpt":
            raise BadValueError("SparseGPT compares within blocks of 128 columns", "remove this key")
        if info.data.get("pattern") is not None:
            raise BadValueError("a pattern compares within its groups", "remove this key, or pattern")
        return value


class Quantize(Calibrated):
    """Weights, and with some methods activations, in fewer bits."""

    quantize: Literal["rtn", "gptq", "awq", "smoothquant", "fp8", "llm-int8", "nf4"] = Field(
        description="round-to-nearest, GPTQ, AWQ, SmoothQuant (W8A8), FP8, LLM.int8 or NF4"
    )
    format: Literal["compressed-tensors", "auto-gptq"] | None = Field(
        default=None, validate_default=True, description="how GPTQ's result is stored"
    )
    bits: Annotated[int, Field(ge=2, le=8)] | None = Field(
        default=None, validate_default=True, description="bits per weight, 2 to 8"
    )
    group_size: (
        Annotated[Positive | Literal["channel"], either("channel or a whole number above 0")] | None
    ) = Field(
        default=None,
        validate_default=True,
        description="weights of a row that share one scale; channel for the whole row",
    )
    activations: Literal["dynamic", "static"] | None = Field(
        default=None,
        validate_default=True,
        description="scales of the activations: measured as they come, or calibrated",
    )

    @field_validator("format", "bits", "group_size", "activations")
    @classmethod
    def fits(cls, value: Any, info: ValidationInfo) -> Any:
        method, key = info.data.get("quantize"), str(info.field_name)
        if method is None:
            return value
        if key not in QUANTIZATIONS[method]:
            if value is not None:
                raise BadValueError(f"{method} has none", "remove this key")
            return value
        if value is None and key in NEEDED:
            raise BadValueError(f"{method} needs it", f"add it ({cls.model_fields[key].description})")
        if key == "bits" and info.data.get("format") == "auto-gptq" and value not in AUTO_GPTQ_BITS:
            raise BadValueError(f"auto-gptq cannot store {value} bits", "use 2, 3, 4 or 8")
        return DEFAULTS.get(key) if value is None else value


class Published(Section):
    """A compressed checkpoint that exists already, in any format that Holdfast reads."""

    source: Annotated[str, AfterValidator(sources.checked(sources.CHECKPOINT))] = Field(
        description="hub:ORG/NAME@REVISION or path:FOLDER (a Hugging Face model folder)"
    )
    of: str | None = Field(
        default=None, description="the model it was made from, where the study has several"
    )


def calibrated(keys: Mapping[str, Any]) -> bool:
    """Whether a compression measures the model's inputs on calibration text."""
    return (
        keys.get("prune") in ("wanda", "sparsegpt")
        or keys.get("quantize") in ("gptq", "awq", "smoothquant")
        or keys.get("activations") == "static"
    )


def compression_kind(section: Any) -> str:
    """Which model a compression's section is meant to be, wrong keys and all."""
    if not isinstance(section, dict) or "prune" in section:
        return "<Prune>"
    if not section:
        return "<Dense>"
    if "source" in section:
        return "<Published>"
    meant = any(difflib.get_close_matches(str(key), Quantize.model_fields) for key in section)
    return "<Quantize>" if meant else "<Prune>"


Compression = Annotated[
    Annotated[Dense, Tag("<Dense>")]
    | Annotated[Prune, Tag("<Prune>")]
    | Annotated[Quantize, Tag("<Quantize>")]
    | Annotated[Published, Tag("<Published>")],
    Discriminator(compression_kind),
]
