"""The section that finds directions on images and drawn text beside those on text."""

from typing import Annotated, Literal

from pydantic import Field

from holdfast.config.values import Positive, Section


class Modalities(Section):
    """Directions found on text, images and drawn text, tried on pairs of each (docs/vision.md)."""

    learnt_on: Literal["prompts", "embedded-words"] = Field(
        default="prompts",
        description="what they are found on: prompts, the study's own train prompts, as text and drawn; or the train "
        "split of embedded-words, for the embedded vision-language model, which reads nothing else",
    )
    limit: Positive | None = Field(
        default=64, description="prompts of each kind at most, in each modality; null for all"
    )
    pairs: Positive | None = Field(
        default=32,
        description="pairs of each modality that directions are tried on, the first ones; null for all",
    )
    nulls: Annotated[int, Field(ge=3)] = Field(
        default=8, description="random directions and directions of shuffled labels, of each so many"
    )
