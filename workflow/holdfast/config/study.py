"""A study: all sections of a config together.

A section checks what can be told from itself; what must hold between sections (names,
``matched_to``, ``cells``) is checked in ``holdfast.config.cells``.
"""

from fnmatch import fnmatchcase
from typing import Annotated

from pydantic import Field

from holdfast.config import recipes
from holdfast.config.cells import Cell, expand
from holdfast.config.compressions import Compression
from holdfast.config.grid import CompressionName, Method, MethodName, Model, ModelName, Part
from holdfast.config.images import Pairs
from holdfast.config.measures import Direction, Evaluate, Search
from holdfast.config.modalities import Modalities
from holdfast.config.prompt_sets import Calibration, Prompts
from holdfast.config.values import Section


class Study(Section):
    """A study: models by compressions by methods, and how each cell is measured."""

    study: Annotated[str, Field(pattern="^[a-z0-9][a-z0-9._-]*$")] = Field(
        description="name of the results folder: small letters, digits, '.', '_' and '-'"
    )
    seed: int = Field(default=0, ge=0, description="seed of everything random")
    models: dict[ModelName, Model] = Field(min_length=1, description="the chat models, by name")
    compressions: dict[CompressionName, Compression] = Field(
        min_length=1, description="the compressions, by name"
    )
    methods: dict[MethodName, Method] = Field(
        min_length=1, description="what is done after compression, by name"
    )
    parts: list[Part] | None = Field(
        default=None, alias="cells", min_length=1, description="parts of the grid to run; null for all"
    )
    keep_checkpoints: bool = Field(
        default=True,
        description="keep compressed and edited checkpoints; false removes their weights once nothing needs them",
    )
    calibration: Calibration = Field(description="text that compression methods are calibrated on")
    prompts: Prompts = Field(description="prompt sets, by role")
    pairs: Pairs | None = Field(
        default=None, description="harmful inputs beside their benign counterfactuals, or null"
    )
    modalities: Modalities | None = Field(
        default=None, description="directions found on images and drawn text, tried on the pairs, or null"
    )
    direction: Direction = Field(default=Direction(), description="how the refusal direction is found")
    search: Search = Field(default=Search(), description="what variant, layer and alpha: search try")
    evaluate: Evaluate = Field(description="what is measured")

    def cells(self) -> list[Cell]:
        """The cells to run, in the config's order."""
        compressions = {name: c.model_dump(exclude_none=True) for name, c in self.compressions.items()}
        methods = {name: m.model_dump(exclude_none=True) for name, m in self.methods.items()}
        patterns = [(p.model, p.compression, p.method) for p in self.parts or [Part()]]
        return expand(list(self.models), compressions, methods, patterns)

    def stages(self) -> dict[str, str]:
        """The stage that makes each method's checkpoint, by the method's name; as-is has none."""
        return {name: method.stage for name, method in self.methods.items() if method.stage}

    def attacks_on(self, model: str) -> list[str]:
        """The attack settings of one model's cells, by name."""
        return [name for name, attack in self.evaluate.attacks.items() if fnmatchcase(model, attack.model)]

    def recipe(
        self,
        stage: str,
        model: str | None = None,
        compression: str | None = None,
        method: str | None = None,
        role: str | None = None,
        attack: str | None = None,
        judge: str | None = None,
    ) -> recipes.Recipe:
        """Exactly what a stage's job depends on, see ``holdfast.recipes``."""
        names = {"model": model, "compression": compression, "method": method}
        return recipes.recipe(self, stage, **names, role=role, attack=attack, judge=judge)
