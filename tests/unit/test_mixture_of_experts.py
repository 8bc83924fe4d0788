"""Mixtures of experts, whose matrices stand stacked in one tensor: what works on them, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from families import SEQUENCES, built
from holdfast.architectures import attention, decoder_layers, decoder_linears, mlp, writer
from holdfast.checkpoints import load_model, load_tokenizer
from holdfast.compression.run import write_compressed
from holdfast.edited_checkpoints import edited_copy
from holdfast.errors import HoldfastError
from holdfast.methods.aird import rank_one
from holdfast.methods.edit_candidates import matrix_inputs
from holdfast.methods.edit_search import edited
from holdfast.refusal.activations import captured_block_inputs
from holdfast.refusal.interventions import ablated, random_unit
from planted import SETTINGS, prompts
from quantized import RECIPES
from tiny import TEXTS, tiny_tokenizer

LAYER = 1
FAMILIES: dict[str, dict[str, Any]] = {
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    # Its first block has an ordinary MLP.
    "Qwen3Moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "head_dim": 8,
        "mlp_only_layers": [0],
    },
}
PRUNINGS: dict[str, dict[str, Any]] = {
    name: {"prune": name, "sparsity": 0.5} for name in ("magnitude", "wanda", "sparsegpt")
}


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = tmp_path_factory.mktemp(request.param) / "tiny"
    tokenizer = tiny_tokenizer()
    sizes = {"vocab_size": len(tokenizer), "num_key_value_heads": 2}
    model = built(request.param, dtype="float32", **sizes, **FAMILIES[request.param])
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


@pytest.fixture
def r() -> torch.Tensor:
    return random_unit(torch.zeros(32), 3)


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([model(input_ids=ids).logits[0] for ids in SEQUENCES])


def refused(error: HoldfastError, *parts: str) -> bool:
    return "\n" not in str(error) and all(part in str(error) for part in parts)


# ---- the parts of a block


def test_the_experts_and_their_router_are_the_mlp(folder: Path) -> None:
    layers = decoder_layers(load_model(folder))
    assert len(layers) == 3
    for layer in layers:
        assert attention(layer) is layer.self_attn
        assert mlp(layer) is layer.mlp
        assert writer(layer, "o_proj") is layer.self_attn.o_proj
    assert layers[LAYER].mlp.experts.down_proj.shape[0] == 4  # stacked, or these tests say nothing


# ---- interventions


def test_ablation_leaves_no_component_at_any_block_input(folder: Path, r: torch.Tensor) -> None:
    model = load_model(folder)
    streams: list[torch.Tensor] = []

    def see(_module: Any, args: tuple[torch.Tensor, ...]) -> None:
        streams.append(args[0])

    # Registered before ablation's own hooks: they see what the block before has written.
    seen_by = [*decoder_layers(model)[1:], model.base_model.norm]
    for module in seen_by:
        module.register_forward_pre_hook(see)
    plain = logits(model)
    assert all((x @ r).abs().max() > 0.05 for x in streams)
    streams.clear()
    with ablated(model, r):
        changed = logits(model)
    assert len(streams) == len(seen_by) * len(SEQUENCES)
    assert all((x @ r).abs().max() < 1e-5 for x in streams)
    assert (changed - plain).abs().max() > 1e-2
    assert torch.equal(logits(model), plain)


def test_ablation_equals_orthogonal_weights_of_every_expert(folder: Path, r: torch.Tensor) -> None:
    model = load_model(folder)
    with ablated(model, r):
        found = logits(model)
    embedding = model.get_input_embeddings().weight
    embedding -= torch.outer(embedding @ r, r)
    for layer in decoder_layers(model):
        experts = getattr(layer.mlp, "experts", layer.mlp).down_proj
        written = [layer.self_attn.o_proj.weight, getattr(experts, "weight", experts)]
        for weight in written:  # [d_model, d_in], or one such matrix per expert
            weight.sub_(r[:, None] * (r @ weight)[..., None, :])
    assert torch.allclose(logits(model), found, atol=1e-4)


def test_block_inputs_are_captured(folder: Path) -> None:
    model = load_model(folder)
    ids = SEQUENCES[0]
    with torch.inference_mode(), captured_block_inputs(model, 4) as found:
        model.base_model(input_ids=ids)
    hidden = model(input_ids=ids, output_hidden_states=True).hidden_states
    for layer in range(3):
        assert torch.allclose(found[layer][0], hidden[layer][0, -4:], atol=1e-5)


# ---- edits


@pytest.mark.parametrize("variant", ["amplify", "centred"])
def test_an_edit_of_o_proj_is_the_same_in_memory_and_on_disk(
    folder: Path, tmp_path: Path, r: torch.Tensor, variant: str
) -> None:
    model = load_model(folder)
    key = (LAYER, "o_proj")
    linear = writer(decoder_layers(model)[LAYER], "o_proj")
    inputs = matrix_inputs(model, load_tokenizer(folder), prompts("harmless", 4), SETTINGS, [key])[key]
    edit = rank_one(variant, linear.weight, r, harmless_inputs=inputs).scaled(2.0)
    with edited(model, {key: edit}, folder):
        in_memory = logits(model)
    assert (in_memory - logits(model)).abs().max() > 1e-3

    name = f"model.layers.{LAYER}.self_attn.o_proj.weight"
    assert edited_copy(folder, tmp_path / "out", {name: edit.applied(linear.weight)}) == [name]
    loaded = load_model(tmp_path / "out")
    assert torch.equal(logits(loaded), in_memory)
    after = dict(loaded.named_parameters())
    assert [n for n, p in model.named_parameters() if not torch.equal(p, after[n])] == [name]
    if variant == "amplify":
        assert torch.allclose(r @ after[name], 3 * (r @ linear.weight), atol=1e-5)


def test_an_edit_of_stacked_experts_is_refused_in_one_line(folder: Path) -> None:
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    layer = decoder_layers(model)[LAYER]
    with pytest.raises(HoldfastError) as error:
        writer(layer, "down_proj")
    told = ("several experts cannot be edited", "down_proj", type(layer.mlp).__name__, "matrices: [o_proj]")
    assert refused(error.value, *told)
    with pytest.raises(HoldfastError, match="several experts"):
        matrix_inputs(model, tokenizer, TEXTS[:1], SETTINGS, [(LAYER, "down_proj")])


def test_the_ordinary_mlp_among_experts_can_be_edited() -> None:
    layers = decoder_layers(built("Qwen3Moe", **FAMILIES["Qwen3Moe"], num_key_value_heads=2))
    assert writer(layers[0], "down_proj") is layers[0].mlp.down_proj


# ---- compression


@pytest.mark.parametrize("name", [*PRUNINGS, *RECIPES])
def test_every_compression_is_refused_in_one_line(folder: Path, tmp_path: Path, name: str) -> None:
    # Attention alone would be a compressed model in name only.
    with pytest.raises(HoldfastError) as error:
        write_compressed(folder, tmp_path, (PRUNINGS | RECIPES)[name], SEQUENCES)
    assert refused(error.value, "expert weights stacked in one tensor (mlp.experts.", "DecoderLayer", "dense")
    assert not list(tmp_path.iterdir())


def test_the_list_of_linears_is_refused_too(folder: Path) -> None:
    with pytest.raises(HoldfastError, match="stacked in one tensor"):  # what auto-gptq starts from
        decoder_linears(load_model(folder))
