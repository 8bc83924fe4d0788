"""The sections that name data: texts, prompts by role, calibration."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from holdfast.config import sources
from holdfast.config.sources import BadValueError
from holdfast.config.values import Positive, Section

DataSource = Annotated[str, AfterValidator(sources.checked(sources.DATA))]
Checksum = Annotated[
    str | None, Field(pattern="^[0-9a-f]{64}$", description="sha256 of the file, 64 hex digits, or null")
]


class Data(Section):
    """Texts, one a record, of a file or a hub data set."""

    source: DataSource = Field(description="package:NAME/inner/path, file:PATH or hub:ORG/NAME@REVISION")
    sha256: Checksum = None
    column: str | None = Field(
        default=None, description="field that holds the text; found by its usual names if null"
    )
    split: str | None = Field(default=None, validate_default=True, description="split of a hub data set")
    config: str | None = Field(default=None, description="configuration of a hub data set")

    @field_validator("split", "config")
    @classmethod
    def fits_source(cls, value: str | None, info: ValidationInfo) -> str | None:
        if (source := info.data.get("source")) is None:
            return value
        from_hub = source.startswith("hub:")
        if value is not None and not from_hub:
            raise BadValueError("only a hub: source has it", "remove this key")
        if value is None and from_hub and info.field_name == "split":
            raise BadValueError("a hub: source needs it", "add it, for example split: test")
        return value


class Calibration(Data):
    """Plain text on which compression methods measure a model's inputs; never evaluation data."""

    samples: Positive = Field(description="number of sequences")
    tokens: Annotated[int, Field(gt=1)] = Field(description="tokens per sequence")


class PromptSet(Data):
    """A set of prompts."""

    rows: str | None = Field(
        default=None, description='rows to keep as "start:stop", counted from 0, stop excluded'
    )
    where: dict[str, str | int | float | bool] | None = Field(
        default=None, min_length=1, description="keep records whose fields have these values"
    )
    limit: Positive | None = Field(default=None, description="keep at most so many, the first ones")

    @field_validator("rows")
    @classmethod
    def is_slice(cls, value: str | None) -> str | None:
        remedy = 'write "start:stop", for example "0:100"'
        if value is None:
            return value
        match = re.fullmatch(r"(-?\d*):(-?\d*)", value)
        try:
            start, stop = (int(part) if part else None for part in match.groups()) if match else (None, 0)
        except ValueError:
            match = None
        if not match:
            raise BadValueError(f"'{value}' is not a range of rows", remedy)
        same_end = start is None or stop is None or (start < 0) == (stop < 0)
        if stop == 0 or (same_end and start is not None and stop is not None and start >= stop):
            raise BadValueError(f"'{value}' keeps no row", remedy)
        return value


class Prompts(Section):
    """Six roles, and one that a study may add; no prompt may stand in two of them."""

    harmful_train: PromptSet = Field(description="harmful prompts the direction is computed from")
    harmful_validation: PromptSet = Field(description="harmful prompts directions and edits are chosen on")
    harmless_train: PromptSet = Field(description="harmless prompts the direction is computed from")
    harmless_validation: PromptSet = Field(description="harmless prompts directions and edits are chosen on")
    attack: PromptSet = Field(description="harmful prompts of the evaluation, used for nothing else")
    over_refusal: PromptSet = Field(description="harmless prompts of the evaluation, used for nothing else")
    borderline: PromptSet | None = Field(
        default=None,
        description="harmless prompts of the evaluation that sound harmful, as XSTest's safe ones, or null",
    )

    def roles(self) -> list[str]:
        """The roles that have prompts."""
        return [role for role in type(self).model_fields if getattr(self, role) is not None]
