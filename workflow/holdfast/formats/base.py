"""What every weight format answers; the base class is the dense one, where a weight is one stored tensor."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from holdfast.errors import HoldfastError

Parts = dict[str, torch.Tensor]


class Format:
    """How one checkpoint stores the weights of its linears; made by :func:`holdfast.formats.format_of`.

    A module's *parts* are the stored tensors that make up its weight, by their names within the module
    (``weight``; ``qweight``, ``scales``…). Biases are never among them: every format stores those as they are.

    Attributes:
        config: the checkpoint's ``quantization_config``, {} where it is dense.
        loads_dense: whether the model loads with plain linears in place of the packed ones: true where only
            weights are quantized, so that the dense linear computes the same.
    """

    loads_dense = False

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder = folder
        self.config = config

    def part_of(self, entry: str) -> tuple[str, str]:
        """The module a stored tensor belongs to and the tensor's name within it."""
        module, _, part = entry.rpartition(".")
        return module, part

    def modules(self, entries: Iterable[str]) -> dict[str, dict[str, str]]:
        """Stored tensors by module and part: ``{module: {part: entry}}``, biases left out."""
        found: dict[str, dict[str, str]] = {}
        for entry in entries:
            module, part = self.part_of(entry)
            if part != "bias":
                found.setdefault(module, {})[part] = entry
        return found

    def is_quantized(self, parts: Iterable[str]) -> bool:
        """Whether a module with parts of these names is stored quantized."""
        return False

    def dequantized(self, module: str, parts: Parts) -> torch.Tensor:
        """The weight (d_out, d_in) that a module's parts stand for.

        Raises:
            HoldfastError: the checkpoint's config does not say how, or what it says is not supported.
        """
        return parts["weight"]

    def requantized(self, module: str, weight: torch.Tensor, parts: Parts) -> Parts:
        """``weight`` (d_out, d_in) rounded to nearest into the scheme of ``parts``, with scales of its own.

        Args:
            parts: the module's present parts; what does not depend on the weight is taken over from them.

        Raises:
            HoldfastError: a scheme that this cannot write.
        """
        return {"weight": weight.to(parts["weight"].dtype)}

    def without(
        self, config: Mapping[str, Any], modules: Iterable[str], quantized: Iterable[str]
    ) -> dict[str, Any]:
        """A quantization config that leaves ``modules`` dense.

        Args:
            config: the checkpoint's own.
            quantized: all modules that are stored quantized so far.
        """
        return dict(config)

    def unsupported(self, what: str, module: str) -> HoldfastError:
        remedy = "use another checkpoint, or its dense original"
        return HoldfastError(f"{what} (module {module})", str(self.folder), remedy)
