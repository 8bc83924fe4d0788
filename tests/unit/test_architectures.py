import pytest
import torch
import transformers
from families import llava
from holdfast.architectures import (
    attention,
    decoder_layers,
    decoder_linears,
    layer_linears,
    mlp,
    module_name,
    part_linears,
    writer,
)
from holdfast.errors import HoldfastError

SIZES = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}


def built(family: str, **more: object) -> transformers.PreTrainedModel:
    config = getattr(transformers, f"{family}Config")(**{**SIZES, "pad_token_id": 0, **more})
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(
    ("family", "options", "o_proj", "down_proj"),
    [
        ("Llama", {"intermediate_size": 48}, "self_attn.o_proj", "mlp.down_proj"),
        ("Qwen3", {"intermediate_size": 48, "head_dim": 8}, "self_attn.o_proj", "mlp.down_proj"),
        ("Gemma2", {"intermediate_size": 48, "head_dim": 8}, "self_attn.o_proj", "mlp.down_proj"),
        ("Phi", {"intermediate_size": 48}, "self_attn.dense", "mlp.fc2"),
        ("Phi3", {"intermediate_size": 48}, "self_attn.o_proj", "mlp.down_proj"),
        ("GPTNeoX", {"intermediate_size": 48}, "attention.dense", "mlp.dense_4h_to_h"),
        ("Falcon", {}, "self_attention.dense", "mlp.dense_4h_to_h"),
        ("Bloom", {"n_layer": 3, "n_head": 4}, "self_attention.dense", "mlp.dense_4h_to_h"),
    ],
)
def test_writers_are_found_whatever_their_names(
    family: str, options: dict[str, object], o_proj: str, down_proj: str
) -> None:
    model = built(family, **options)
    layers = decoder_layers(model)
    assert len(layers) == 3
    for layer in layers:
        assert writer(layer, "o_proj") is layer.get_submodule(o_proj)
        assert writer(layer, "down_proj") is layer.get_submodule(down_proj)
        assert attention(layer) is layer.get_submodule(o_proj.partition(".")[0])
        assert mlp(layer) is layer.get_submodule("mlp")
    prefix = module_name(model, layers[1])
    assert module_name(model, writer(layers[1], "o_proj")) == f"{prefix}.{o_proj}"
    names = [n for n in decoder_linears(model) if n.startswith(prefix + ".")]
    assert names == [f"{prefix}.{n}" for n in layer_linears(layers[1])]
    assert not any("head" in name or "embed_out" in name for name in decoder_linears(model))


def qwen(family: str) -> transformers.PreTrainedModel:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    text = {
        **SIZES,
        "intermediate_size": 48,
        "num_key_value_heads": 2,
        "rope_parameters": rope,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    # The tower is as wide as the language model where the family's config allows it.
    widths = {"embed_dim": 32, "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 24}
    vision = {**widths, "depth": 5, "num_heads": 2, "deepstack_visual_indexes": [1, 3]}
    config = getattr(transformers, f"{family}Config")(text_config=text, vision_config=vision)
    return getattr(transformers, f"{family}ForConditionalGeneration")(config)


def test_a_vision_towers_blocks_are_not_the_decoders_even_if_there_are_more() -> None:
    with torch.device("meta"):
        model = llava()
    assert [module_name(model, layer) for layer in decoder_layers(model)] == [
        f"model.language_model.layers.{i}" for i in range(3)
    ]


def test_stacked_experts_are_refused_in_one_line() -> None:
    model = built("Mixtral", intermediate_size=48, num_key_value_heads=2)
    with pytest.raises(HoldfastError, match="stacked in one tensor") as error:
        layer_linears(decoder_layers(model)[0])
    assert "\n" not in str(error.value)


def test_transposed_linears_are_refused() -> None:
    config = transformers.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4)
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(config)
    with pytest.raises(HoldfastError, match=r"no torch\.nn\.Linear"):
        decoder_linears(model)


def test_linears_in_the_block_itself_are_no_mlp_module() -> None:
    config = transformers.OPTConfig(
        vocab_size=50,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=32,
    )
    with torch.device("meta"):
        model = transformers.OPTForCausalLM(config)
    layer = decoder_layers(model)[0]
    assert writer(layer, "o_proj") is layer.self_attn.out_proj
    with pytest.raises(HoldfastError, match="candidates for the MLP module"):
        writer(layer, "down_proj")


def test_a_foreign_module_has_no_name() -> None:
    with pytest.raises(HoldfastError, match="not part of it"):
        module_name(built("Llama", intermediate_size=48), torch.nn.Linear(2, 2))


@pytest.mark.parametrize("width", [16, 32])
def test_the_parts_of_llava(width: int) -> None:
    with torch.device("meta"):
        model = llava(width)
    vision, projector = part_linears(model, ["vision"]), part_linears(model, ["projector"])
    assert {name.split(".")[1] for name in vision} == {"vision_tower"}
    assert len(vision) == 5 * 6 + 3  # six in a block, three in the pooling head
    assert list(projector) == [f"model.multi_modal_projector.linear_{i}" for i in (1, 2)]
    assert part_linears(model, ["language"]).keys() == decoder_linears(model).keys()
    together = part_linears(model, ["projector", "language", "vision"])
    assert together.keys() == vision.keys() | projector.keys() | decoder_linears(model).keys()
    assert "lm_head" not in together


@pytest.mark.parametrize(("family", "mergers"), [("Qwen2VL", 1), ("Qwen2_5_VL", 1), ("Qwen3VL", 3)])
def test_mergers_inside_the_towers_module_are_its_projector(family: str, mergers: int) -> None:
    with torch.device("meta"):
        model = qwen(family)
    vision, projector = part_linears(model, ["vision"]), part_linears(model, ["projector"])
    assert all(name.startswith("model.visual.blocks.") for name in vision)
    assert len({name.split(".")[3] for name in vision}) == 5
    assert all("merger" in name for name in projector)
    assert len(projector) == 2 * mergers
