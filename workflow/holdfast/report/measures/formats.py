"""The fields that the tables read of a cell's JSON files, checked when they are read.

A field may be missing, and its measure then is; one that is there must have its type. ``null`` stands where a number
was not finite.
"""

from typing import Annotated, Any

from pydantic import ConfigDict, Field

from holdfast.records import Record


class Band(Record):
    """A value, or the mean of a null, with its interval and n."""

    value: float | None = None
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None


class Place(Record):
    layer: int
    position: int


class Provenance(Record):
    """``provenance.json`` of any stage; density and the like are of checkpoints."""

    recipe: Any = None
    density: float | None = None
    bits_per_weight: float | None = None
    bytes: int | None = None
    added_bytes: int | None = None
    seconds: float | None = None


class ScoreCheck(Record):
    auroc: Band | None = None
    on: str | None = None


class Direction(Record):
    """``direction.json``."""

    layer: int | None = None
    position: int | None = None
    usable: bool | None = None
    passes_published_bounds: bool | None = None
    score: str | None = None
    score_valid: bool | None = None
    score_checked: bool | None = None
    auroc: dict[str, float | None] | None = None
    score_check: dict[str, ScoreCheck] | None = None


class Comparison(Record):
    """``comparison.json``."""

    cosine: Band
    cosine_same_source: Band | None = None
    explained: Band | None = None
    null_split_half: Band | None = None
    null_random: Band | None = None
    null_shuffled: Band | None = None
    p: float | None = None
    dense: Place | None = None


class Transferred(Record):
    """One refusal score of one way of ``transfer.json``, or of one modality of ``modalities.json``."""

    baseline: Band
    own: Band
    other: Band
    other_minus_own: Band
    own_effect: Band | None = None
    other_effect: Band | None = None
    null: Band | None = None
    null_shuffled: Band | None = None
    null_split_half: Band | None = None
    p: float | None = None
    p_shuffled: float | None = None


class Way(Record):
    bypass: Transferred
    induce: Transferred


class Transfer(Record):
    """``transfer.json``."""

    dense_in_compressed: Way
    compressed_in_dense: Way


class Agreement(Record):
    """A cosine of ``modalities.json``."""

    cosine: Band
    null_split_half: Band | None = None
    null_random: Band | None = None
    null_shuffled: Band | None = None
    p_below: float | None = None
    p_chance: float | None = None


class Modalities(Record):
    """``modalities.json``; null where a modality has no difference of means."""

    between: dict[str, Agreement | None]
    to_chosen: dict[str, Agreement | None]
    to_dense: dict[str, Agreement | None] | None = None
    tried: dict[str, Way | None]


class Refused(Record):
    harmful_refused: Band
    harmless_refused: Band


class _Edit(Record):
    variant: str
    layers: Annotated[list[int], Field(min_length=1)]
    alpha: float | None


class Tried(_Edit, Refused):
    pass


class Leader(_Edit):
    refusal_score: float | None
    kl: float | None
    prompts: int
    chosen: bool


class Traced(Record):
    refusal_score: float | None
    prompts: int | None = None


class Validation(Record):
    before: Refused
    tries: list[Tried]


class Edit(Record):
    """``edit.json``."""

    direction: str | None = None
    layers: list[int] | None = None
    alpha: float | None = None
    validation: Validation | None = None
    trace: list[Traced] | None = None
    leaderboard: list[Leader] | None = None


class Steering(Record):
    """``steer.json``."""

    direction: str | None = None
    layer: int | None = None
    alpha: float | None = None


class Perplexity(Record):
    """``perplexity.json``."""

    perplexity: float | None = None
    low: float | None = None
    high: float | None = None
    windows: int | None = None


class Task(Record):
    value: float
    n: int


class ZeroShot(Record):
    """``zero_shot.json``: every task by its name."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Task] = Field(init=False)
