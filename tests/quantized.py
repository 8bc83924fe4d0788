"""Tiny models quantized by every method, and what their linears are given on calibration text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from holdfast.architectures import decoder_layers, decoder_linears
from holdfast.checkpoints import load_model, save_model
from holdfast.compression import bits_and_bytes, llm_compressor
from tiny import tiny_llama

Model = transformers.PreTrainedModel
GROUP = 32
RECIPES: dict[str, dict[str, Any]] = {
    "rtn-8": {"quantize": "rtn", "bits": 8, "group_size": GROUP},
    "rtn-4": {"quantize": "rtn", "bits": 4, "group_size": GROUP},
    "rtn-3": {"quantize": "rtn", "bits": 3, "group_size": GROUP},
    "rtn-channel": {"quantize": "rtn", "bits": 4, "group_size": "channel"},
    "gptq": {"quantize": "gptq", "bits": 3, "group_size": GROUP},
    "gptq-channel": {"quantize": "gptq", "bits": 4, "group_size": "channel"},
    "awq": {"quantize": "awq", "bits": 4, "group_size": GROUP},
    "smoothquant": {"quantize": "smoothquant"},
    "fp8": {"quantize": "fp8"},
    "fp8-static": {"quantize": "fp8", "activations": "static"},
    "llm-int8": {"quantize": "llm-int8"},
    "nf4": {"quantize": "nf4"},
}


def sequences() -> list[torch.Tensor]:
    """Of different lengths, 300 tokens in all: more than the widest linear has inputs."""
    draw = torch.Generator().manual_seed(1)
    return [torch.randint(5, 300, (1, n), generator=draw) for n in (80, 17, 64, 50, 33, 56)]


IDS = sequences()[0]


def outlier_llama(folder: Path) -> Path:
    """A tiny Llama with outlier channels, as trained models have: a few norm weights are 20 times the others."""
    tiny_llama(folder / "plain", layers=2)
    model = load_model(folder / "plain")
    for block in decoder_layers(model):
        block.input_layernorm.weight.data[[3, 40]] *= 20
        block.post_attention_layernorm.weight.data[[11, 50]] *= 20
    save_model(model, None, folder / "outliers")
    return folder / "outliers"


class Compressed:
    """One method's model as it stood in memory, its logits there, and the folder it was saved to."""

    def __init__(self, dense: Path, recipe: dict[str, Any], folder: Path) -> None:
        self.folder = folder
        if recipe["quantize"] in bits_and_bytes.QUANTIZED:
            self.model = bits_and_bytes.load_quantized(dense, recipe)
            save_model(self.model, None, folder)
            self.logits = logits(self.model)
        else:
            self.model = load_model(dense)
            llm_compressor.quantize(self.model, recipe, sequences())
            self.logits = logits(self.model)
            self.weights = {n: m.weight.detach().clone() for n, m in decoder_linears(self.model).items()}
            llm_compressor.save(self.model, folder)


@torch.no_grad()
def logits(model: Model) -> torch.Tensor:
    return model(IDS).logits


@torch.no_grad()
def inputs(model: Model, names: list[str]) -> dict[str, torch.Tensor]:
    """What these linears are given on all calibration tokens, (tokens, d_in) each."""
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _m, args, name=name: seen[name].append(args[0][0].detach().clone())
        )
        for name in names
    ]
    for ids in sequences():
        model(ids)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(rows) for name, rows in seen.items()}


def error(weight: torch.Tensor, quantized: torch.Tensor, x: torch.Tensor) -> float:
    return float((x.double() @ (weight.double() - quantized.double()).T).square().sum())


def random_model(folder: Path, family: str, **options: Any) -> Model:
    """A tiny model of another family with the tokenizer of the tiny Llama, loaded from its folder."""
    tiny_llama(folder, layers=1)
    sizes = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    config = getattr(transformers, f"{family}Config")(
        **{**sizes, "num_hidden_layers": 2, "pad_token_id": 0, "initializer_range": 0.2, **options}
    )
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)
    return load_model(folder)


def made_once(dense: Path, folders: Any) -> Callable[[str], Compressed]:
    """Each method's model when it is first asked for; ``folders`` is pytest's ``tmp_path_factory``."""
    made: dict[str, Compressed] = {}

    def get(name: str) -> Compressed:
        if name not in made:
            made[name] = Compressed(dense, RECIPES[name], folders.mktemp(name))
        return made[name]

    return get
