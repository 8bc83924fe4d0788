"""The stage ``instruct``: the compressed model with a safety system prompt in every chat."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from holdfast.checkpoints import load_tokenizer
from holdfast.edited_checkpoints import edited_copy
from holdfast.files import atomic_folder, write_json
from holdfast.model_folders import refuse_steered, settings
from holdfast.prompts.templates import require_system_prompt
from holdfast.provenance import Recorder
from holdfast.weight_statistics import weight_statistics


def instruct_checkpoint(model_dir: Path, out: Path, recipe: Mapping[str, Any]) -> None:
    """Write a copy of a checkpoint whose ``holdfast.json`` has the recipe's ``system_prompt`` instead of its own.

    Raises:
        HoldfastError: the chat template takes no system prompt, or the checkpoint is steered.
    """
    recorder = Recorder("instruct", dict(recipe))
    refuse_steered(model_dir)
    instructed = settings(model_dir) | {"system_prompt": recipe["system_prompt"]}
    remedy = "leave this method out for this model (`cells`)"
    require_system_prompt(load_tokenizer(model_dir), instructed, model_dir, remedy)
    with atomic_folder(out) as folder:
        write_json(folder / "holdfast.json", instructed)
        edited_copy(model_dir, folder, {})
        recorder.write(folder / "provenance.json", [model_dir], **weight_statistics(folder, source=model_dir))
