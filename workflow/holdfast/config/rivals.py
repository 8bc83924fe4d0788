"""The section ``methods``, beside AIRD: what else a lab would try to give a compressed model its refusal back."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from holdfast.config.sources import BadValueError
from holdfast.config.values import Positive, Section, Strength, not_matched, of_random


class SystemPrompt(Section):
    """The compressed model with a safety system prompt in every chat."""

    stage: ClassVar[str] = "instruct"

    system_prompt: str = Field(description="text of the system prompt; it takes the place of the model's own")

    @field_validator("system_prompt")
    @classmethod
    def says_something(cls, value: str) -> str:
        if not value.strip():
            raise BadValueError("empty", "give the prompt's text")
        return value


class Steer(Section):
    """The dense model's refusal direction added to the residual stream at run time, or its random control."""

    stage: ClassVar[str] = "steer"

    steer: Literal["dense", "random"] = Field(
        description="the dense model's refusal direction, or a random one of its length (a control)"
    )
    seed: int | None = Field(
        default=None, ge=0, description="seed of the random direction; the study's by default"
    )
    matched_to: str | None = Field(
        default=None, description="the method whose finished steering gives a random one its alpha"
    )
    alpha: Strength = Field(
        default=None,
        description="how many times the mean difference is added, a number or search (the default)",
    )

    only_random = field_validator("seed", "matched_to")(of_random("steer"))
    own = field_validator("alpha")(not_matched)


class Recalibrate(Section):
    """The compression made again, with chats about training prompts in its calibration text."""

    stage: ClassVar[str] = "recalibrate"

    recalibrate: Literal["refusals", "answers"] = Field(
        description="what is mixed in: the dense model's refusals of harmful training prompts, or its answers to "
        "harmless ones (a control)"
    )
    share: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.5,
        description="share of the calibration sequences that they take the place of, between 0 and 1",
    )


class Tune(Section):
    """A short refusal tune of the compressed model: a LoRA, merged."""

    stage: ClassVar[str] = "tune"

    tune: Literal["lora"] = Field(description="the kind of tuning")
    data: Literal["refusals", "answers"] = Field(
        default="refusals",
        description="what is learnt: the dense model's refusals and its answers to harmless training prompts, or "
        "these answers alone (a control)",
    )
    rank: Positive = Field(default=8, description="rank of the LoRA")
    steps: Positive = Field(default=50, description="optimizer steps")
    batch_size: Positive = Field(default=8, description="conversations per step")
    learning_rate: Annotated[float, Field(gt=0)] = Field(default=5e-4, description="peak learning rate")
    seed: int | None = Field(
        default=None, ge=0, description="seed of the LoRA and of the order; the study's by default"
    )
    requantize: bool = Field(
        default=False,
        description="store the tuned matrices of a quantized checkpoint quantized again instead of dense",
    )
