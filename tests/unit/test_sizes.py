"""Sizes from config.json alone, beside the weights of real model classes and the published counts of real models."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import SIZES
from holdfast.cluster.families import FAMILIES
from holdfast.cluster.sizes import PICTURE, guessed, size_of
from holdfast.errors import HoldfastError
from holdfast.model_folders import headers, read_config
from holdfast.pairs.drawing import SIDE
from real_configs import FLAT, LLAMA_2_7B, REAL
from tiny import tiny_llama, tiny_llava

# Options beside families.SIZES that every tiny config needs or that change what is counted.
TINY: list[tuple[str, dict[str, Any]]] = [
    ("Llama", {"num_key_value_heads": 2}),
    ("Llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "head_dim": 12}),
    ("Mistral", {"num_key_value_heads": 2, "sliding_window": None}),
    ("Qwen2", {"num_key_value_heads": 2}),
    ("Qwen3", {"num_key_value_heads": 2, "head_dim": 8}),
    ("Phi3", {"num_key_value_heads": 2}),
    ("Phi", {}),
    ("Gemma", {"head_dim": 8, "num_key_value_heads": 1}),
    ("Gemma2", {"head_dim": 8, "num_key_value_heads": 2}),
    ("Gemma3Text", {"head_dim": 8, "num_key_value_heads": 2}),
    ("Mixtral", {"num_key_value_heads": 2, "num_local_experts": 4}),
    (
        "Qwen2Moe",
        {
            "num_key_value_heads": 2,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 24,
            "mlp_only_layers": [0],
        },
    ),
    (
        "Qwen3Moe",
        {
            "num_key_value_heads": 2,
            "head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "decoder_sparse_step": 2,
        },
    ),
    ("Olmo", {"num_key_value_heads": 2}),
    ("Olmo2", {"num_key_value_heads": 2}),
    ("Granite", {"num_key_value_heads": 2}),
    ("Cohere", {"num_key_value_heads": 2}),
    ("StableLm", {"num_key_value_heads": 2, "use_qkv_bias": True}),
    ("GPTNeoX", {}),
    ("SmolLM3", {"num_key_value_heads": 2}),
    ("Starcoder2", {"num_key_value_heads": 2}),
]
# Families that nobody looked up: never under-estimated, and at most doubled where matrices outweigh norms.
OTHERS = ["Olmoe", "Glm", "Falcon", "OPT", "GPT2", "Bloom", "DeepseekV2"]
WIDE = {**SIZES, "hidden_size": 256, "intermediate_size": 1024, "ffn_dim": 1024}


def weights(config: Any) -> int:
    auto = transformers.AutoModelForCausalLM
    if "vision_config" in config.to_dict():
        auto = transformers.AutoModelForImageTextToText
    with torch.device("meta"):
        return sum(p.numel() for p in auto.from_config(config).parameters())


@pytest.mark.parametrize(
    ("family", "options"), TINY, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_familys_weights_are_counted_exactly(family: str, options: dict[str, Any]) -> None:
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **options})
    size = size_of(config.to_dict())
    assert (size.parameters, size.exact) == (weights(config), True)
    assert (size.layers, size.hidden, size.vocabulary) == (3, 32, 60)


@pytest.mark.parametrize("name", REAL)
def test_real_models_have_their_published_size(name: str) -> None:
    billions, config = REAL[name]
    size = size_of(config)
    assert size.parameters / 1e9 == pytest.approx(billions, abs=0.0006)
    assert size.exact
    assert size.loaded_bytes() == 2 * size.parameters


@pytest.mark.parametrize("name", REAL)
def test_real_models_have_the_weights_of_their_class(name: str) -> None:
    kinds = {"gemma2": "Gemma2", "qwen2": "Qwen2"}
    kind = REAL[name][1]["model_type"]
    config = getattr(transformers, f"{kinds.get(kind, kind.capitalize())}Config")(**REAL[name][1])
    assert size_of(REAL[name][1]).parameters == weights(config)


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_are_not_underestimated(family: str) -> None:
    config = getattr(transformers, f"{family}Config")(**WIDE)
    size = size_of(config.to_dict())
    assert not size.exact
    assert weights(config) <= size.parameters <= 2 * weights(config)


def test_defaults_are_those_of_transformers() -> None:
    for kind, family in FAMILIES.items():
        default = transformers.CONFIG_MAPPING[kind]()
        aliases = {"num_experts": "num_local_experts"} if not hasattr(default, "num_experts") else {}
        for key, value in family.defaults.items():
            stated = getattr(default, aliases.get(key, key), None)
            assert stated is None or stated == value, (kind, key)
        assert bool(getattr(default, "tie_word_embeddings", False)) == family.tied, kind


def test_the_parts_of_mixtral() -> None:
    size = size_of(REAL["Mixtral-8x7B"][1])
    assert size.embedding == 2 * 32000 * 4096
    assert size.attention == 32 * 4096 * (2 * 4096 + 2 * 1024)
    assert size.experts == 32 * (8 * 3 * 4096 * 14336 + 8 * 4096)
    assert size.mlp == 0
    # Its paper (Jiang et al. 2024, arXiv 2401.04088, section 2): each token uses 13 billion, embeddings included.
    assert (size.active + 32000 * 4096) / 1e9 == pytest.approx(12.9, abs=0.05)
    assert size.kv_per_token == 2 * 32 * 8 * 128


def test_the_cache_of_a_latent_is_kept_expanded() -> None:
    config = transformers.DeepseekV2Config(**WIDE)
    each = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
    heads = config.num_hidden_layers * config.num_attention_heads
    assert size_of(config.to_dict()).kv_per_token == heads * each


@pytest.mark.parametrize("made", [tiny_llama, tiny_llava])
def test_a_folders_config_gives_the_weights_in_its_files(made: Any, tmp_path: Path) -> None:
    folder = made(tmp_path / "model")
    stored = headers(folder)
    size = size_of(read_config(folder))
    assert size.loaded_bytes() == size.stored_bytes() == sum(t.bytes for t in stored.values())


@pytest.mark.parametrize("family", ["Gemma3", "LlavaNext"])
def test_vision_towers_and_projectors_count(family: str) -> None:
    if family == "Gemma3":
        tower = transformers.SiglipVisionConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=32
        )
        text = transformers.Gemma3TextConfig(**{**SIZES, "head_dim": 8, "num_key_value_heads": 2})
        config = transformers.Gemma3Config(text_config=text, vision_config=tower, mm_tokens_per_image=4)
    else:
        tower = transformers.CLIPVisionConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=64
        )
        config = transformers.LlavaNextConfig(
            text_config=transformers.LlamaConfig(**SIZES), vision_config=tower
        )
    assert size_of(config.to_dict()).parameters == weights(config)


def test_a_vision_tower_that_is_not_known_is_overestimated() -> None:
    language = size_of(LLAMA_2_7B)
    tower = {"vision_config": {"model_type": "new_tower"}}
    for config in ({"text_config": LLAMA_2_7B} | tower, LLAMA_2_7B | tower):
        size = size_of(config)
        assert (size.exact, size.parameters - language.parameters) == (False, 1_000_000_000)
        assert size.active - language.active == 1_000_000_000


@pytest.mark.parametrize("name", FLAT)
def test_the_vision_tower_of_a_flat_config_counts(name: str) -> None:
    billions, config = FLAT[name]
    size = size_of(config)
    assert not size.exact
    assert billions < size.parameters / 1e9 < 1.25 * billions


LLAVA = REAL["llava-1.5-7b"][1]
QWEN_2_5_VL = FLAT["Qwen2.5-VL-7B"][1]


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        (LLAVA, 24 * 24),
        (LLAVA | {"model_type": "llava_next"}, 5 * 24 * 24),
        (LLAVA | {"model_type": "gemma3", "mm_tokens_per_image": 256}, 256),
        (QWEN_2_5_VL, 18 * 18),
        (FLAT["Qwen2-VL-2B"][1], 18 * 18),
        (QWEN_2_5_VL | {"vision_config": {"patch_size": 16, "spatial_merge_size": 2}}, 16 * 16),
        (LLAVA | {"vision_config": {"model_type": "new", "image_size": [448, 448], "patch_size": 14}}, 1024),
        (LLAVA | {"vision_config": {"model_type": "new", "image_size": 8, "patch_size": 14}}, 1024),
        (LLAMA_2_7B, 1024),
    ],
)
def test_an_image_takes_the_tokens_of_its_tower(config: dict[str, Any], tokens: int) -> None:
    assert size_of(config).image_tokens == tokens


def test_pictures_are_as_large_as_they_are_drawn() -> None:
    assert PICTURE == SIDE


@pytest.mark.parametrize(
    ("quantization", "bits"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, 4 + 20 / 128),
        ({"quant_method": "awq", "bits": 4, "group_size": -1}, 4),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 8),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4.5),
        ({"quant_method": "fp8"}, 8),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 64}}},
            },
            4.25,
        ),
        ({"quant_method": "new"}, None),
    ],
)
def test_quantized_checkpoints_are_smaller_on_disk_only(
    quantization: dict[str, Any], bits: float | None
) -> None:
    size = size_of(LLAMA_2_7B | {"quantization_config": quantization})
    assert size.bits == bits
    assert size.loaded_bytes() == 2 * size.parameters
    linears = size.attention + size.mlp
    assert size.stored_bytes() == round(2 * (size.parameters - linears) + linears * (bits or 16) / 8)


def test_a_config_without_sizes_is_told_in_one_line() -> None:
    with pytest.raises(
        HoldfastError, match=r"^there: no hidden_size, and the family new is not known; state"
    ):
        size_of({"model_type": "new"}, "there")


@pytest.mark.parametrize("name", REAL)
def test_a_stated_number_of_weights_stands_for_a_config(name: str) -> None:
    """Layers and hidden size within a factor of two; the cache within four: some models keep one per head."""
    true = size_of(REAL[name][1])
    size = guessed(true.parameters)
    assert size.parameters == true.parameters
    assert not size.exact
    if not true.experts:
        assert 0.5 < size.hidden / true.hidden < 2
        assert 0.5 < size.layers / true.layers < 2
        assert 0.25 <= size.kv_per_token / true.kv_per_token < 4


def test_sizes_import_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'pandas', 'huggingface_hub'}"
    code = f"import sys, holdfast.cluster.sizes, holdfast.cluster.needs; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "odd",
    [
        {"num_hidden_layers": 10**30},
        {"num_hidden_layers": 10**6},
        {"hidden_size": "4096", "model_type": "new"},
        {"mlp_only_layers": 5, "num_experts": 8},
        {
            "vision_config": {"model_type": "clip_vision_model", "patch_size": [14, 14]},
            "text_config": LLAMA_2_7B,
        },
        {"quantization_config": {"quant_method": "gptq", "bits": "four"}},
        {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": [1]}},
    ],
)
def test_a_config_without_numbers_where_they_belong_is_one_line(odd: dict[str, Any]) -> None:
    with pytest.raises(HoldfastError, match=r"^m/config\.json: .*; state billion_parameters") as caught:
        size_of({**LLAMA_2_7B, **odd}, "m/config.json")
    assert "\n" not in str(caught.value)
