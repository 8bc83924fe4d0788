"""The rows of the round-trip table: a row here is a row there."""

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Row:
    """A checkpoint to carry round.

    Attributes:
        recipe: section ``compressions`` of a study; empty for the dense model.
        layers: of the model's decoder layers, how many; None for all.
        edited: o_proj and down_proj of the middle layer are edited and stored so: dense, or quantized again.
    """

    name: str
    recipe: dict[str, Any]
    layers: int | None = None
    edited: Literal["", "dense", "quantized"] = ""

    @property
    def rounds_activations(self) -> bool:
        """Inputs are rounded to 8 bits, so a difference of one float32 rounding can become one of 1 in 255."""
        return self.recipe.get("quantize") in ("smoothquant", "fp8", "llm-int8")

    @property
    def needs_gptqmodel(self) -> bool:
        return self.recipe.get("format") == "auto-gptq"


DENSE: dict[str, Any] = {}
W4 = {"bits": 4, "group_size": 64}
RTN = {"quantize": "rtn", **W4}
AUTO_GPTQ = {"quantize": "gptq", "format": "auto-gptq", **W4}

# Few layers where a method is slow and its format does not depend on them, and one where the whole model would
# show its noise only.
ROWS = (
    Row("dense", DENSE),
    Row("magnitude 20 %", {"prune": "magnitude", "sparsity": 0.2}),
    Row("Wanda 3:4", {"prune": "wanda", "pattern": "3:4"}),
    Row("magnitude 2:4, 2 layers", {"prune": "magnitude", "pattern": "2:4"}, layers=2),
    Row("SparseGPT 50 %, 2 layers", {"prune": "sparsegpt", "sparsity": 0.5}, layers=2),
    Row("round-to-nearest W4, groups", RTN),
    Row("round-to-nearest W4, channels", {**RTN, "group_size": "channel"}),
    Row("round-to-nearest W8", {**RTN, "bits": 8}),
    Row("round-to-nearest W3", {**RTN, "bits": 3}),
    Row("GPTQ W4, 2 layers", {"quantize": "gptq", **W4}, layers=2),
    Row("AWQ W4, 2 layers", {"quantize": "awq", **W4}, layers=2),
    Row("SmoothQuant W8A8", {"quantize": "smoothquant"}),
    Row("SmoothQuant W8A8, 1 layer", {"quantize": "smoothquant"}, layers=1),
    Row("FP8 dynamic", {"quantize": "fp8"}),
    Row("FP8 dynamic, 1 layer", {"quantize": "fp8"}, layers=1),
    Row("FP8 static", {"quantize": "fp8", "activations": "static"}),
    Row("GPTQ W4, auto-gptq, 2 layers", AUTO_GPTQ, layers=2),
    Row("LLM.int8", {"quantize": "llm-int8"}),
    Row("NF4", {"quantize": "nf4"}),
    Row("dense, edited", DENSE, edited="dense"),
    Row("round-to-nearest W4, edited", RTN, edited="dense"),
    Row("round-to-nearest W4, edited and quantized", RTN, edited="quantized"),
    Row("GPTQ W4, auto-gptq, 2 layers, edited", AUTO_GPTQ, layers=2, edited="dense"),
)
