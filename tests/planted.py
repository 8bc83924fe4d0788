"""A tiny Llama with a refusal direction planted by hand, and prompts that show it."""

from pathlib import Path
from typing import Any

import torch
from holdfast.architectures import attention, decoder_layers, writer
from holdfast.checkpoints import load_model, load_tokenizer
from holdfast.files import write_jsonl
from holdfast.refusal.activations import cache_activations
from holdfast.refusal.direction import find_direction
from holdfast.refusal.interventions import component, random_unit
from tiny import TEXTS, tiny_llama

SETTINGS: dict[str, Any] = {"thinking": None, "system_prompt": None}
WORDS = [
    *("the", "river", "mill", "clock", "bread", "boats", "winter", "snow"),
    *("fox", "village", "sky", "list", "oven", "children", "home", "poem"),
]
MARKER = "!"
REFUSAL = "Sorry"
PLANTED_LAYER = 2


def prompts(kind: str, count: int, start: int = 0) -> list[str]:
    """Short sentences; the harmful ones hold the marker token at varying places, the harmless ones never."""
    found = []
    for i in range(start, start + count):
        words = [WORDS[(i * k + k) % len(WORDS)] for k in (1, 3, 5, 7, 2)]
        if kind == "harmful":
            words.insert(i % 5, MARKER)
        found.append(" ".join(words))
    return found


def planted_llama(
    folder: Path, word: str = "I", strength: float = 3.0, *, once: bool = True
) -> tuple[Path, torch.Tensor]:
    """A tiny Llama with a refusal direction r planted by hand, and r.

    ``word`` opens its refusals. With REFUSAL, and a strength above the marker's, its greedy answers to harmful prompts
    are refusals, to the judge study-l-31: the word and an end, or unless ``once`` the word again and again, as babble.

    The marker token's embedding carries r; attention of one block moves it to later positions and amplifies it;
    the token that refusals open with reads it. Nothing else writes along r.
    """
    tiny_llama(folder, layers=6, texts=TEXTS if word == "I" else (*TEXTS, word))
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    r = random_unit(torch.zeros(model.config.hidden_size), 11)
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        embedding.sub_(component(embedding, r))
        for layer in decoder_layers(model):
            for kind in ("o_proj", "down_proj"):
                weight = writer(layer, kind).weight
                # A tenth, so that what the marker changes elsewhere stays small beside the plant.
                weight.copy_(0.1 * (weight - torch.outer(r, r @ weight)))
        marker = tokenizer(f" {MARKER}", add_special_tokens=False)["input_ids"][-1]
        embedding[marker] += 3 * r
        block = attention(decoder_layers(model)[PLANTED_LAYER - 1])
        block.v_proj.weight[0] = 4 * r  # the first value channel reads r
        block.o_proj.weight[:, 0] = 12 * r  # and the first query head that uses it writes it
        refusing = tokenizer(word, add_special_tokens=False)["input_ids"][0]
        embedding[refusing] += strength * r
    if word == REFUSAL and once:
        model.generation_config.sequence_bias = [[[refusing, tokenizer.eos_token_id], 1e4]]
    model.save_pretrained(folder)
    return folder, r


def files(folder: Path, train: int = 24, validation: int = 12) -> dict[str, Path]:
    made = {}
    for kind in ("harmful", "harmless"):
        for name, start, count in (("train", 0, train), ("validation", 100, validation)):
            path = folder / f"{kind}_{name}.jsonl"
            write_jsonl(
                path, [{"id": f"{kind}{i}", "text": t} for i, t in enumerate(prompts(kind, count, start))]
            )
            made[f"{kind}_{name}"] = path
    return made


RECIPE = {
    **{"positions": "all", "layers": "all", "ablation": "plain", "score": "first-token"},
    **{"max_kl": 50.0, "min_induce": -50.0, "filter_train": False, "full_table": False},
}


def studied(model: Path, root: Path, validation: int = 12, **changed: Any) -> dict[str, Path]:
    """The prompt files of :func:`files`, ``activations`` and ``direction`` of a model, all under ``root``.

    ``changed``: what differs from RECIPE.
    """
    made = files(root, validation=validation)
    made |= {name: root / name for name in ("activations", "direction")}
    cache_activations(model, made["activations"], made["harmful_train"], made["harmless_train"], {})
    held_out = made["harmful_validation"], made["harmless_validation"]
    find_direction(model, made["direction"], made["activations"], *held_out, {**RECIPE, **changed})
    return made


def refusing_llama(folder: Path, strength: float) -> Path:
    """A tiny Llama that answers prompts with the marker by "I'm sorry" and an end, others by anything else.

    ``strength``: how strongly attention of one block writes the planted direction r. At 1 all harmful prompts are
    refused, at 0.2 few: a model that lost its refusals to compression. A direction q of its own ends a refusal.
    """
    tiny_llama(folder, layers=6)
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens(["I'm sorry"])
    model: Any = load_model(folder)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.tie_word_embeddings = False
    r, q = (random_unit(torch.zeros(model.config.hidden_size), seed) for seed in (11, 12))
    q = (q - (q @ r) * r) / (q - (q @ r) * r).norm()
    embedding = model.get_input_embeddings().weight
    with torch.no_grad():
        for layer in decoder_layers(model):
            for kind in ("o_proj", "down_proj"):
                weight = writer(layer, kind).weight
                weight.mul_(0.1)
                for planted in (r, q):
                    weight.sub_(torch.outer(planted, planted @ weight))
        for planted in (r, q):
            embedding.sub_(component(embedding, planted))
        head = embedding.clone()
        refusing = tokenizer.convert_tokens_to_ids("I'm sorry")
        head[refusing], head[tokenizer.eos_token_id] = 3 * r, 5 * q
        embedding[tokenizer(f" {MARKER}", add_special_tokens=False)["input_ids"][-1]] += 3 * r
        embedding[refusing] = 10 * q
        block = attention(decoder_layers(model)[PLANTED_LAYER - 1])
        block.v_proj.weight[0] = 4 * r
        block.o_proj.weight[:, 0] = strength * r
        model.lm_head.weight = torch.nn.Parameter(head, requires_grad=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
