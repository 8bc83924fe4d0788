"""The sections about images: pairs of harmful and benign inputs, and benign questions."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from holdfast.config import sources
from holdfast.config.prompt_sets import Data, DataSource, PromptSet
from holdfast.config.sources import BadValueError
from holdfast.config.values import Positive, Section, distinct

Modality = Literal["text", "image", "typographic"]


class Pairs(Section):
    """Harmful inputs beside their benign counterfactuals, as text, in scenes and drawn (docs/vision.md)."""

    benchmark: Literal["holdfast", "embedded-words", "vlmsafe-420", "mossbench", "figstep", "xstest"] = Field(
        default="holdfast",
        description="this project's own benchmark, a published one, or embedded-words: the embedded vision-language "
        "model's own closed vocabulary, for that model alone",
    )
    source: Annotated[str, AfterValidator(sources.checked(sources.PAIRS))] | None = Field(
        default=None,
        description="path:FOLDER of a published one; of vlmsafe-420 also hub:ORG/NAME@REVISION",
    )
    split: str | None = Field(
        default=None, description="split of a hub data set; of embedded-words, train, test or null for both"
    )
    modality: Annotated[list[Modality], AfterValidator(distinct)] = Field(
        default=["text", "image", "typographic"],
        min_length=1,
        validate_default=True,
        description="which pairs",
    )
    limit: Positive | None = Field(
        default=None, description="pairs of each modality at most, the first ones; null for all"
    )
    sources: dict[str, Data] = Field(default={}, description="sets that no package carries, by name")

    def pictured(self) -> bool:
        """Whether any of the pairs may have images."""
        return self.modality != ["text"]

    @model_validator(mode="after")
    def fits_benchmark(self) -> "Pairs":
        own, words = self.benchmark == "holdfast", self.benchmark == "embedded-words"
        if (own or words) == bool(self.source):
            what, remedy = (
                ("takes no source", "remove it")
                if self.source
                else ("has no source", "add source: path:FOLDER")
            )
            raise BadValueError(f"{self.benchmark} {what}", remedy)
        if not own and self.sources:
            raise BadValueError(f"{self.benchmark} takes no sets", "remove sources")
        if words:
            if self.split not in (None, "train", "test"):
                raise BadValueError(f"embedded-words has no split {self.split}", "write train, test or null")
            return self
        from_hub = bool(self.source) and str(self.source).startswith("hub:")
        if from_hub and self.benchmark != "vlmsafe-420":
            raise BadValueError(f"{self.benchmark} is read from a folder", "write source: path:FOLDER")
        if from_hub != bool(self.split):
            raise BadValueError("split goes with a hub: source", "give both, or neither")
        return self


class Visual(PromptSet):
    """Benign questions about images, with answers: what a vision-language model still sees (docs/vision.md)."""

    source: DataSource | None = Field(  # type: ignore[assignment]
        default=None,
        description="package:NAME/inner/path, file:PATH or hub:ORG/NAME@REVISION; null of a benchmark",
    )
    benchmark: Literal["embedded-scenes"] | None = Field(
        default=None,
        description="the embedded vision-language model's own closed vocabulary, for that model alone",
    )
    column: str | None = Field(default=None, description="field that holds the question; question if null")
    image: str = Field(
        default="image", description="field that holds the image, or its path from the file's folder"
    )
    answer: str = Field(default="answer", description="field that holds the answer, or a list of right ones")
    options: Annotated[list[str], AfterValidator(distinct)] | None = Field(
        default=None,
        min_length=2,
        description="answers to choose from, as [yes, no]; each row's own options if null, none without them",
    )
    suffix: str = Field(
        default="Answer the question using a single word or phrase.",
        description='line after every question of a source, by default LLaVA-1.5\'s; "" for none',
    )

    @model_validator(mode="after")
    def one_of_both(self) -> "Visual":
        if bool(self.source) == bool(self.benchmark):
            raise BadValueError("names no one set of questions", "give either source or benchmark")
        own = {"limit", "benchmark", "version"}
        if self.benchmark and (idle := sorted(self.model_fields_set - own)):
            raise BadValueError(f"{self.benchmark} takes no {idle[0]}", "remove it")
        return self
