"""A checkpoint's model class and its modules without their weights."""

import copy
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedModel

from holdfast.errors import HoldfastError, first_line
from holdfast.model_folders import read_config, settings
from holdfast.silence import quiet


def skeleton(folder: Path) -> PreTrainedModel:
    """The model without its weights (meta tensors): to look up names and shapes. Quantized linears come dense.

    Raises:
        HoldfastError: no such folder, no config.json, or a family transformers does not know.
    """
    trust = bool(settings(folder)["trust_remote_code"])
    with quiet(), torch.device("meta"):
        config = dense_config(folder)
        return auto_class(config, folder).from_config(config, trust_remote_code=trust)


def stored_modules(folder: Path, modules: Collection[str]) -> dict[str, str]:
    """What the checkpoint's files call a module, by its name in the model.

    They differ where transformers renames weights while it loads, as it does for most vision-language models.

    Args:
        modules: as the files call them.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    model = skeleton(folder)
    weights = model.state_dict()
    found = {module: module for module in modules if f"{module}.weight" in weights}
    renamed_ones = [module for module in modules if module not in found]
    if not renamed_ones:
        return found
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    for module in renamed_ones:
        name = f"{module}.weight"
        renamed, _ = rename_source_key(name, renamings, converters, model.base_model_prefix, weights)
        if renamed not in weights:
            renamed, _ = rename_source_key(name, [], [], model.base_model_prefix, weights)
        found[renamed.removesuffix(".weight")] = module
    return found


def dense_config(folder: Path) -> Any:
    """The model's config without its quantization."""
    config = copy.deepcopy(model_config(folder))
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def model_config(folder: Path) -> Any:
    """transformers' config of the checkpoint; errors as in :func:`skeleton`."""
    read_config(folder)
    trust = bool(settings(folder)["trust_remote_code"])
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError) as error:
        raise unloadable(error, folder) from error


def auto_class(config: Any, folder: Path) -> Any:
    """transformers' auto class that builds the model; HoldfastError where none answers prompts."""
    questions = transformers.AutoModelForVisualQuestionAnswering
    named: Any = questions._model_mapping.get(type(config), None)
    if named is not None and named.__name__ in (config.architectures or []):
        return questions
    for auto in (transformers.AutoModelForCausalLM, transformers.AutoModelForImageTextToText):
        if type(config) in auto._model_mapping or auto.__name__ in getattr(config, "auto_map", {}):
            return auto
    what = f"a {config.model_type} model does not answer prompts"
    raise HoldfastError(what, str(folder), "use a causal or image-text-to-text language model")


def answers_questions(folder: Path) -> bool:
    """Whether the model is an encoder-decoder that answers questions about images (BLIP), no chat model; errors as in
    :func:`skeleton`."""
    return auto_class(model_config(folder), folder) is transformers.AutoModelForVisualQuestionAnswering


def takes_images(folder: Path) -> bool:
    """Whether the model has a vision tower; errors as in :func:`skeleton`."""
    return getattr(model_config(folder), "vision_config", None) is not None


def unloadable(error: Exception, folder: Path) -> HoldfastError:
    """What transformers said, in one line."""
    what = f"the model cannot be loaded ({first_line(error)})"
    return HoldfastError(what, str(folder), "check that the folder is complete and its family is supported")
