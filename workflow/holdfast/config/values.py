"""What the sections of a config are built from: their base, and values that several sections share."""

import re
from collections.abc import Callable, Collection
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from holdfast.config.sources import BadValueError


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def either(expected: str) -> WrapValidator:
    """One mistake for a value of several possible types, not one for each type."""

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise BadValueError(f"{value!r} is not possible here", f"give {expected}") from None

    return WrapValidator(check)


def named(reserved: Collection[str] = (), meaning: str = "") -> AfterValidator:
    """A name becomes a folder: safe characters only, and none of the ``reserved`` ones, whose ``meaning`` is told."""

    def check(name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
            raise BadValueError(
                f"'{name}' cannot be a folder's name",
                "use up to 64 letters, digits, '.', '_' and '-', first a letter or digit",
            )
        if name.lower() in reserved:
            raise BadValueError(f"'{name}' is {meaning}", "choose another name")
        return name

    return AfterValidator(check)


def of_random(key: str) -> Callable[[Any, ValidationInfo], Any]:
    """A check of values that only a random direction has; the section's ``key`` says whether it is one."""

    def check(value: Any, info: ValidationInfo) -> Any:
        if value is not None and info.data.get(key) == "dense":
            raise BadValueError("only a random direction has it", f"write {key}: random, or remove this key")
        return value

    return check


def not_matched(value: Any, info: ValidationInfo) -> Any:
    """A check of values that a section with ``matched_to`` takes from that method."""
    if value is not None and (target := info.data.get("matched_to")):
        raise BadValueError(f"taken from '{target}' by matched_to", "remove this key, or matched_to")
    return value


def distinct(values: list[Any]) -> list[Any]:
    if twice := sorted({str(v) for v in values if values.count(v) > 1}):
        raise BadValueError(f"{', '.join(twice)} given twice", "name each once")
    return values


Positive = Annotated[int, Field(gt=0)]
Layer = Annotated[int, Field(ge=0)]
LayerList = Annotated[list[Layer], Field(min_length=1), AfterValidator(distinct)]
Layers = Annotated[Literal["all"] | LayerList, either("all or a list of layer numbers, counted from 0")]
Variant = Literal["amplify", "restore", "realign", "centred", "null-space"]
WITHOUT_STRENGTH = ("restore", "realign")  # variants that have no α
# How strong an edit or a steering is; None where nothing is said, which means search if the method has a strength.
Strength = (
    Annotated[Annotated[float, Field(ge=0)] | Literal["search"], either("search or a number, 0 or more")]
    | None
)
