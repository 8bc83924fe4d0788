"""What a stage reads of another's JSON, checked field by field before it is used."""

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from holdfast.errors import HoldfastError


class Record(BaseModel):
    """The fields that a reader needs; others may stand beside them."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, allow_inf_nan=False)


def require(kind: type[Record], value: Any, where: str, remedy: str) -> None:
    """Raises HoldfastError, naming the first field of a JSON value that is missing or has another type."""
    if not isinstance(value, dict):
        raise HoldfastError("not a JSON object", where, remedy)
    try:
        kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"]))
        missing = first["type"] == "missing"
        what = f"has no {field}" if missing else f"{field} does not fit ({first['msg']})"
        raise HoldfastError(what, where, remedy) from None
