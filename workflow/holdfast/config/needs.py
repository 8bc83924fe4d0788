"""What a model's jobs ask of a cluster, where its config.json does not say enough. Nothing of it touches a result."""

from typing import Annotated

from pydantic import Field

from holdfast.config.values import Section

# Bounds that no cluster reaches: above them is a slip, such as bytes for gigabytes.
PositiveNumber = Annotated[float, Field(gt=0, le=100_000)]


class Needs(Section):
    """Keys that a study's models and judges share; no recipe holds them, so that a change runs nothing again."""

    billion_parameters: PositiveNumber | None = Field(
        default=None,
        description="number of weights in billions, where the config.json cannot be had before the download",
    )
    gpus: Annotated[int, Field(ge=0, le=1024)] | None = Field(
        default=None, description="GPUs of each of its jobs, 0 for none; worked out from its size by default"
    )
    memory_gb: PositiveNumber | None = Field(
        default=None, description="main memory of each of its jobs, in GB; worked out by default"
    )
    hours: PositiveNumber | None = Field(
        default=None, description="time limit of each of its jobs; worked out by default"
    )


KEYS = set(Needs.model_fields)
