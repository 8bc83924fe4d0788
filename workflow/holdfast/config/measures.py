"""The sections that say how a cell is measured: direction, search, evaluation."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from holdfast.config import sources
from holdfast.config.images import Visual
from holdfast.config.judges import JudgeModel, JudgeName
from holdfast.config.prompt_sets import Checksum, Data
from holdfast.config.sources import BadValueError
from holdfast.config.values import Layers, Positive, Section, Variant, distinct, either, named
from holdfast.files import sha256

AttackName = Annotated[str, named({"plain"}, "the name of the attack without settings")]


class Direction(Section):
    """How the refusal direction is found."""

    positions: Annotated[
        Literal["all"]
        | Annotated[list[Annotated[int, Field(lt=0)]], Field(min_length=1), AfterValidator(distinct)],
        either("all or a list of negative numbers (-1 is the last token)"),
    ] = Field(default="all", description="candidate token positions after the instruction, from the end")
    layers: Layers = Field(
        default="all", description="candidate layers; those in the last 20 % are always dropped"
    )
    ablation: Literal["plain", "affine"] = Field(
        default="plain", description="remove the component, or put the harmless mean's in its place (affine)"
    )
    score: Literal["auto", "first-token", "phrases"] = Field(
        default="auto",
        description="refusal score of the choice; auto takes phrases where the first token fails",
    )
    max_kl: float = Field(default=0.1, gt=0, description="largest KL divergence on harmless prompts, nats")
    min_induce: float = Field(default=0.0, description="smallest refusal score when the direction is added")
    filter_train: bool = Field(
        default=True, description="use only harmful prompts that score as refused, harmless ones that do not"
    )
    full_table: bool = Field(
        default=False, description="score every candidate in full, not only what the choice needs"
    )


class Search(Section):
    """Candidates of methods with ``variant: search``, ``layer: search`` or ``alpha: search``."""

    variants: Annotated[list[Variant], AfterValidator(distinct)] = Field(
        default=["amplify", "restore", "realign", "centred", "null-space"],
        min_length=1,
        validate_default=True,
        description="variants to try",
    )
    layers: Layers = Field(default="all", description="layers to try")
    alphas: Annotated[list[Annotated[float, Field(gt=0)]], AfterValidator(distinct)] = Field(
        default=[2, 4, 8], min_length=1, validate_default=True, description="strengths to try"
    )
    steering: Annotated[list[Annotated[float, Field(gt=0)]], AfterValidator(distinct)] = Field(
        default=[0.1, 0.25, 0.5, 1.0],
        min_length=1,
        validate_default=True,
        description="multiples of the mean difference to try when steering",
    )
    max_kl: float = Field(default=0.1, gt=0, description="largest KL divergence on harmless prompts, nats")
    max_over_refusal: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="largest rise in refused harmless validation prompts, a share; above 0 one prompt is allowed",
    )


class Generate(Section):
    """How answers are generated (greedily)."""

    max_new_tokens: Positive = Field(default=512, description="longest answer, tokens")
    backend: Literal["transformers", "vllm", "auto"] = Field(
        default="transformers",
        description="what generates answers, and those of judge models; auto settles it once, for the whole study",
    )
    batch_size: Annotated[Positive | Literal["auto"], either("auto or a whole number above 0")] = Field(
        default="auto", description="prompts at a time; auto fits it to the memory"
    )


class Attack(Section):
    """A way to put the attack prompts, beside the plain one: keys may be combined."""

    system_prompt: str | None = Field(
        default=None, description='system prompt in the place of the model\'s; "" for none'
    )
    prefix: str | None = Field(default=None, min_length=1, description="text that opens the model's answer")
    suffix: Annotated[str, AfterValidator(sources.checked(sources.SUFFIX))] | None = Field(
        default=None, description="file:PATH, whose text follows every prompt"
    )
    sha256: Checksum = Field(default=None, validate_default=True)
    temperature: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="answers are drawn at this temperature; null for greedy ones"
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="draw from the likeliest tokens that together have this probability"
    )
    samples: Positive | None = Field(default=None, description="answers drawn for every prompt; 1 if null")
    seed: int | None = Field(default=None, ge=0, description="seed of the draws; the study's by default")
    prompts: Positive | None = Field(
        default=None, description="the first so many attack prompts; null for all"
    )
    model: str = Field(default="*", description="glob pattern of the models that are attacked so")

    @field_validator("sha256")
    @classmethod
    def known_suffix(cls, value: str | None, info: ValidationInfo) -> str | None:
        suffix = info.data.get("suffix")
        if value is not None and "suffix" in info.data and suffix is None:
            raise BadValueError("it is the checksum of a suffix", "add suffix: file:PATH, or remove this key")
        if suffix is not None and (found := sha256(Path(suffix.removeprefix("file:")))) != value:
            what = "a suffix needs its checksum" if value is None else f"{suffix} has another checksum"
            raise BadValueError(what, f"add sha256: {found}, if that is the text you mean")
        return value

    @field_validator("top_p", "samples", "seed")
    @classmethod
    def only_drawn(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and "temperature" in info.data and info.data["temperature"] is None:
            raise BadValueError("greedy answers have none", "add temperature: 1.0, or remove this key")
        return value


class Mediation(Section):
    """Does the direction mediate refusal: ablate it, add it, and random ones, on held-out prompts."""

    prompts: Positive = Field(
        default=32, description="prompts of each kind, the first of attack and over_refusal"
    )
    max_new_tokens: Positive = Field(default=16, description="longest answer, tokens")
    random_seeds: Positive = Field(default=1, description="random directions to compare with")


class Transfer(Section):
    """Does one model's direction act in the other: scores on validation prompts, beside three nulls."""

    nulls: Annotated[int, Field(ge=0)] = Field(
        default=8,
        description="random directions, directions of shuffled labels and of half of the prompts, of each 3 or more; "
        "0: nothing is transferred",
    )

    @field_validator("nulls")
    @classmethod
    def enough(cls, nulls: int) -> int:
        if nulls in (1, 2):
            raise BadValueError(f"{nulls} make no null", "give 3 or more, or 0 to transfer nothing")
        return nulls


class ZeroShot(Section):
    """Zero-shot tasks of lm-evaluation-harness."""

    tasks: Annotated[list[str], AfterValidator(distinct)] = Field(min_length=1, description="names of tasks")
    limit: Positive | None = Field(default=None, description="questions per task; null for all")
    folder: str | None = Field(
        default=None, description="folder with the tasks' data, for machines without network"
    )

    @field_validator("folder")
    @classmethod
    def exists(cls, value: str | None) -> str | None:
        if value is not None:
            sources.folder(value)
        return value


class Perplexity(Data):
    """Perplexity on held-out text; the rows of a hub data set are joined by blank lines."""

    window: Annotated[
        Annotated[int, Field(gt=1)] | Literal["model"], either("model or a whole number above 1")
    ] = Field(description="tokens per window; model for the longest that the model takes")
    windows: Annotated[int, Field(gt=1)] | None = Field(
        default=None, description="number of windows; null for the whole text"
    )


class Evaluate(Section):
    """What is measured on every cell."""

    generate: Generate = Field(default=Generate(), description="generation of answers")
    judges: Annotated[list[str], AfterValidator(distinct)] = Field(
        min_length=1,
        description="substring lists (arditi-12, study-l-31) and names of judge_models; the first is the headline's",
    )
    judge_models: dict[JudgeName, JudgeModel] = Field(
        default={}, description="judges that are models, by name"
    )
    attacks: dict[AttackName, Attack] = Field(
        default={}, description="other ways to put the attack prompts, by name"
    )
    mediation: Mediation = Field(default=Mediation(), description="interventions with the direction")
    transfer: Transfer = Field(
        default=Transfer(), description="the dense model's direction in compressed models"
    )
    visual: Visual | None = Field(default=None, description="accuracy on questions about images, or null")
    zero_shot: ZeroShot = Field(description="zero-shot accuracy")
    perplexity: Perplexity = Field(description="perplexity")

    @field_validator("attacks")
    @classmethod
    def differ(cls, attacks: dict[str, Attack]) -> dict[str, Attack]:
        if len({name.lower() for name in attacks}) < len(attacks):
            raise BadValueError("two names differ only in case", "choose another name")
        for name, attack in attacks.items():
            if not attack.model_dump(exclude_none=True, exclude={"prompts", "model"}):
                raise BadValueError(
                    f"'{name}' is the plain attack, which every cell has",
                    "give it a system_prompt, prefix, suffix or temperature, or remove it",
                )
        return attacks
