"""The residual stream at the post-instruction positions, cached for harmful and harmless prompts."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.architectures import decoder_layers
from holdfast.batching import fitting_batch_size
from holdfast.errors import HoldfastError
from holdfast.files import atomic_folder, read_json, write_json, write_jsonl
from holdfast.prompts.sources import read_records
from holdfast.prompts.templates import by_length, encode, forward_inputs, post_instruction_tokens, render
from holdfast.provenance import Recorder


@contextlib.contextmanager
def captured_block_inputs(
    model: PreTrainedModel, positions: int, out: Tensor, rows: Sequence[int]
) -> Iterator[None]:
    """While active, each forward pass writes the block inputs of the last ``positions`` tokens to ``out[rows]``.

    ``out``: [prompt, position, layer, d_model]. Captured before the block runs (the hook point of Arditi et
    al. 2024), not after it.
    """
    index = torch.tensor(rows)

    def capture(layer: int) -> Any:
        def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else kwargs["hidden_states"]
            out[index, :, layer] = x[:, -positions:].float().cpu()

        return hook

    with contextlib.ExitStack() as stack:
        for number, layer in enumerate(decoder_layers(model)):
            stack.callback(layer.register_forward_pre_hook(capture(number), with_kwargs=True).remove)
        yield


def block_inputs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    settings: Mapping[str, Any],
    batch_size: int | None = None,
) -> Tensor:
    """Block inputs at every post-instruction position, float32 [prompt, position, layer, d_model]."""
    count = len(post_instruction_tokens(tokenizer, settings))
    config = model.config.get_text_config()
    out = torch.zeros(len(texts), count, len(decoder_layers(model)), config.hidden_size)
    lengths = [len(i) for i in tokenizer(render(tokenizer, texts, settings))["input_ids"]]
    size = batch_size or fitting_batch_size(model, max(lengths))
    for rows in tqdm(list(by_length(lengths, size)), desc="activations", unit="batch", mininterval=2):
        inputs = forward_inputs(model, encode(tokenizer, [texts[i] for i in rows], settings))
        with torch.inference_mode(), captured_block_inputs(model, count, out, rows):
            model.base_model(**inputs, use_cache=False)  # no logits: the head is never run
    if not torch.isfinite(out).all():
        raise HoldfastError(
            "activations hold NaN or infinity", str(model.name_or_path), "use another dtype or compression"
        )
    return out


def cache_activations(
    model_dir: Path, out: Path, harmful: Path, harmless: Path, recipe: Mapping[str, Any]
) -> None:
    """Write ``activations.safetensors`` (float32), ``means.safetensors`` (float64), the prompts and positions."""
    from holdfast.checkpoints import load_model, load_tokenizer
    from holdfast.model_folders import settings

    recorder = Recorder("activations", dict(recipe))
    model, tokenizer, chosen = load_model(model_dir), load_tokenizer(model_dir), settings(model_dir)
    prompts = {"harmful": read_records(harmful), "harmless": read_records(harmless)}
    cached = {
        name: block_inputs(model, tokenizer, [r["text"] for r in records], chosen)
        for name, records in prompts.items()
    }
    tokens = post_instruction_tokens(tokenizer, chosen)
    with atomic_folder(out) as folder:
        save_file(cached, folder / "activations.safetensors")
        # Means in float64: a float32 mean of a hundred large activations loses the small difference sought.
        save_file({k: v.double().mean(0) for k, v in cached.items()}, folder / "means.safetensors")
        write_json(
            folder / "positions.json",
            {
                "positions": list(range(-len(tokens), 0)),
                "tokens": [tokenizer.decode([t]) for t in tokens],
                "layers": cached["harmful"].shape[2],
            },
        )
        for name, records in prompts.items():
            write_jsonl(folder / f"{name}.jsonl", records)
        recorder.write(folder / "provenance.json", [model_dir, harmful, harmless])


def load_activations(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(``{"harmful", "harmless"}`` float32 [prompt, position, layer, d_model], positions) of a cache folder."""
    positions = read_json(folder / "positions.json")
    return load_file(folder / "activations.safetensors"), positions
