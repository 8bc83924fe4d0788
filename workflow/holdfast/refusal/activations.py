"""The residual stream at the post-instruction positions, cached for harmful and harmless prompts.

Written batch by batch, so that memory beyond the model does not grow with the number of prompts.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.architectures import decoder_layers
from holdfast.batching import fitting_batch_size, halving
from holdfast.errors import HoldfastError
from holdfast.files import atomic_folder, on_scratch, read_json, write_json, write_jsonl
from holdfast.prompts.images import Instruction, Pictured, carried, instructions
from holdfast.prompts.processors import mismatch_told
from holdfast.prompts.sources import read_records
from holdfast.prompts.templates import (
    by_length,
    encode,
    forward_inputs,
    post_instruction_tokens,
    token_counts,
)
from holdfast.provenance import Recorder, input_checksum
from holdfast.records import Record, require
from holdfast.safetensors_rows import RowsFile


@contextlib.contextmanager
def captured_block_inputs(model: PreTrainedModel, positions: int) -> Iterator[dict[int, Tensor]]:
    """While active, each forward pass leaves the block inputs of the last ``positions`` tokens, by layer: float32
    [row, position, d_model] on the host. Captured before the block runs (the hook point of Arditi et al. 2024).
    """
    found: dict[int, Tensor] = {}

    def capture(layer: int) -> Any:
        def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else kwargs["hidden_states"]
            found[layer] = x[:, -positions:].float().cpu()

        return hook

    with contextlib.ExitStack() as stack:
        for number, layer in enumerate(decoder_layers(model)):
            stack.callback(layer.register_forward_pre_hook(capture(number), with_kwargs=True).remove)
        yield found


def batches_of_block_inputs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Instruction],
    settings: Mapping[str, Any],
    batch_size: int | None = None,
) -> Iterator[tuple[list[int], Tensor]]:
    """Which prompts, and their block inputs at the post-instruction positions: float32 [row, position, layer,
    d_model].

    Raises:
        HoldfastError: a value is NaN or infinite, or one prompt does not fit in memory.
    """
    after = post_instruction_tokens(tokenizer, settings)
    lengths = token_counts(tokenizer, texts, settings)
    size = batch_size or fitting_batch_size(model, max(lengths))

    def run(rows: Sequence[int]) -> Tensor:
        some = [texts[i] for i in rows]
        inputs = forward_inputs(model, encode(tokenizer, some, settings))
        if any(isinstance(text, Pictured) for text in some):
            refuse_other_ending(inputs["input_ids"], after, tokenizer)
        with (
            torch.inference_mode(),
            mismatch_told(model),
            captured_block_inputs(model, len(after)) as found,
        ):
            model.base_model(**inputs, use_cache=False)  # no logits: the head is never run
        return torch.stack([found[layer] for layer in range(len(found))], 2)

    for rows in tqdm(list(by_length(lengths, size)), desc="activations", unit="batch", mininterval=2):
        values = torch.cat(halving(run, rows))
        if not torch.isfinite(values).all():
            what = "activations hold NaN or infinity"
            raise HoldfastError(what, str(model.name_or_path), "use another dtype or compression")
        yield rows, values


def refuse_other_ending(ids: Tensor, after: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises HoldfastError when a row of token ids [prompt, token] does not end in the post-instruction tokens.

    So it is where a chat template writes images after the instruction: positions would not mean the same.
    """
    if not (ids[:, -len(after) :].cpu() == torch.tensor(list(after))).all():
        what = "its chat template ends otherwise after an image: post-instruction positions differ"
        raise HoldfastError(what, tokenizer.name_or_path, "use prompts of one kind, or another template")


def block_inputs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Instruction],
    settings: Mapping[str, Any],
    batch_size: int | None = None,
) -> Tensor:
    """Block inputs of all prompts in their order, in memory: float32 [prompt, position, layer, d_model]."""
    found: list[Tensor] = [torch.empty(0)] * len(texts)
    for rows, values in batches_of_block_inputs(model, tokenizer, texts, settings, batch_size):
        for row, value in zip(rows, values, strict=True):
            found[row] = value
    return torch.stack(found)


def cache_activations(
    model_dir: Path, out: Path, harmful: Path, harmless: Path, recipe: Mapping[str, Any]
) -> None:
    """Write ``activations.safetensors`` (float32), the prompts and positions."""
    from holdfast.checkpoints import load_model, load_tokenizer
    from holdfast.model_folders import settings

    recorder = Recorder("activations", dict(recipe))
    sources = {"harmful": harmful, "harmless": harmless}
    prompts = {name: read_records(path) for name, path in sources.items()}
    asked = {name: instructions(prompts[name], path.parent, model_dir) for name, path in sources.items()}
    model, tokenizer, chosen = load_model(model_dir), load_tokenizer(model_dir), settings(model_dir)
    tokens = post_instruction_tokens(tokenizer, chosen)
    layers, width = len(decoder_layers(model)), model.config.get_text_config().hidden_size
    shapes = {name: (len(records), len(tokens), layers, width) for name, records in prompts.items()}
    with atomic_folder(out) as folder:
        with on_scratch(folder / "activations.safetensors") as path, RowsFile(path, shapes) as file:
            for name, texts in asked.items():
                for rows, values in batches_of_block_inputs(model, tokenizer, texts, chosen):
                    file.write(name, rows, values)
        write_json(
            folder / "positions.json",
            {
                "positions": list(range(-len(tokens), 0)),
                "tokens": [tokenizer.decode([t]) for t in tokens],
                "layers": layers,
            },
        )
        for name, records in prompts.items():
            write_jsonl(folder / f"{name}.jsonl", carried(records, sources[name].parent, folder))
        recorder.write(folder / "provenance.json", [model_dir, harmful, harmless])


class _Positions(Record):
    positions: list[int]
    tokens: list[str]
    layers: int


def load_activations(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(``{"harmful", "harmless"}`` float32 [prompt, position, layer, d_model], positions) of a cache folder.

    Raises:
        HoldfastError: a file is missing, damaged, or of another shape.
    """
    remedy = "run holdfast activations again"
    positions = read_json(folder / "positions.json")
    require(_Positions, positions, str(folder / "positions.json"), remedy)
    file = folder / "activations.safetensors"
    found = read_tensors(file, ("harmful", "harmless"), remedy)
    places = len(positions["positions"]), positions["layers"]
    if {(x.dim(), *x.shape[1:3]) for x in found.values()} != {(4, *places)}:
        raise HoldfastError("its tensors do not have the shapes of activations", str(file), remedy)
    return found, positions


class _Provenance(Record):
    inputs: dict[str, str]


def refuse_other_model(folder: Path, model_dir: Path, checksum: str) -> None:
    """Raises HoldfastError when the provenance of the activations in ``folder`` names another checkpoint.

    Wherever either has been moved to; activations without provenance are taken as they are.

    Args:
        checksum: the ``input_checksum`` of the checkpoint ``model_dir``.
    """
    file = folder / "provenance.json"
    if not file.is_file():
        return
    record, remedy = read_json(file), "run holdfast activations again"
    require(_Provenance, record, str(file), remedy)
    if checksum not in record["inputs"].values():
        raise HoldfastError(f"not of the checkpoint {model_dir}", str(folder), f"{remedy}, on that one")


def refuse_other_activations(direction_dir: Path, activations_dir: Path) -> None:
    """Raises HoldfastError when the provenance of a direction names other activations than these.

    One without provenance is taken as it is.
    """
    file = direction_dir / "provenance.json"
    if not file.is_file():
        return
    record, remedy = read_json(file), "run holdfast direction again"
    require(_Provenance, record, str(file), remedy)
    if input_checksum(activations_dir) not in record["inputs"].values():
        raise HoldfastError(
            f"not of the activations {activations_dir}", str(direction_dir), f"{remedy}, on those"
        )


def read_tensors(file: Path, names: Sequence[str], remedy: str) -> dict[str, Tensor]:
    """The named tensors of a safetensors file, in this order; HoldfastError when it is damaged or lacks one."""
    if not file.is_file():
        raise HoldfastError("no such file", str(file), remedy)
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise HoldfastError(f"damaged ({error})", str(file), remedy) from None
    if missing := [name for name in names if name not in tensors]:
        raise HoldfastError(f"holds no {missing[0]}", str(file), remedy)
    if broken := [name for name in names if not torch.isfinite(tensors[name]).all()]:
        raise HoldfastError(f"{broken[0]} holds NaN or infinity", str(file), remedy)
    return {name: tensors[name] for name in names}
