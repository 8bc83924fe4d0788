"""What a config.json leaves unsaid about a family of models: which projections have biases, how many norms a block
has, and the family's own defaults, which hub configs leave out (LLaVA 1.5 states none of its language model's sizes).

All of it is read off transformers' modeling files; tests count the weights of every family's real classes.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    """How a decoder block of a family is built.

    ``gated``: the MLP has three matrices, not two. ``qkv_bias``, ``o_bias``, ``mlp_bias``: a key of the config that
    says so, or True or False. ``norms``: of a block. ``norm_bias``: they, and the last one, have a bias too.
    ``norm_weight``: they have a weight. ``qk_norm``: norms of queries and keys, of one head or of all ("whole").
    ``exact``: False where the numbers are an over-estimate for families that nobody looked up.
    """

    gated: bool = True
    qkv_bias: str | bool = False
    o_bias: str | bool = False
    mlp_bias: str | bool = False
    norms: int = 2
    norm_weight: bool = True
    norm_bias: bool = False
    qk_norm: str = ""
    head_bias: bool = False
    tied: bool = False
    exact: bool = True
    defaults: dict[str, Any] = field(default_factory=dict)


def sizes(
    hidden: int, middle: int, layers: int, heads: int, kv_heads: int, vocabulary: int, **more: Any
) -> dict[str, Any]:
    """Defaults under the keys of a config; ``kv_heads`` 0 where there are as many as heads."""
    return {
        "hidden_size": hidden,
        "intermediate_size": middle,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        **more,
    }


BIASED = "attention_bias"
LLAMA = sizes(4096, 11008, 32, 32, 32, 32000)
FAMILIES: dict[str, Family] = {
    "llama": Family(qkv_bias=BIASED, o_bias=BIASED, mlp_bias="mlp_bias", defaults=LLAMA),
    "granite": Family(qkv_bias=BIASED, o_bias=BIASED, mlp_bias="mlp_bias", defaults=LLAMA),
    "smollm3": Family(
        qkv_bias=BIASED,
        o_bias=BIASED,
        mlp_bias="mlp_bias",
        tied=True,
        defaults=sizes(2048, 11008, 36, 16, 4, 128256),
    ),
    "mistral": Family(defaults=sizes(4096, 14336, 32, 32, 8, 32000)),
    "qwen2": Family(qkv_bias=True, defaults=sizes(4096, 22016, 32, 32, 32, 151936)),
    "qwen3": Family(
        qkv_bias=BIASED,
        o_bias=BIASED,
        qk_norm="head",
        defaults=sizes(4096, 22016, 32, 32, 32, 151936, head_dim=128),
    ),
    "phi3": Family(defaults=sizes(3072, 8192, 32, 32, 32, 32064)),
    "phi": Family(
        gated=False,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        norms=1,
        norm_bias=True,
        head_bias=True,
        defaults=sizes(2048, 8192, 24, 32, 32, 51200),
    ),
    "gemma": Family(
        qkv_bias=BIASED,
        o_bias=BIASED,
        tied=True,
        defaults=sizes(3072, 24576, 28, 16, 16, 256000, head_dim=256),
    ),
    "gemma2": Family(
        qkv_bias=BIASED,
        o_bias=BIASED,
        norms=4,
        tied=True,
        defaults=sizes(2304, 9216, 26, 8, 4, 256000, head_dim=256),
    ),
    "gemma3_text": Family(
        qkv_bias=BIASED,
        o_bias=BIASED,
        norms=4,
        qk_norm="head",
        tied=True,
        defaults=sizes(2304, 9216, 26, 8, 4, 262208, head_dim=256),
    ),
    "mixtral": Family(
        defaults=sizes(4096, 14336, 32, 32, 8, 32000, num_local_experts=8, num_experts_per_tok=2)
    ),
    "qwen2_moe": Family(
        qkv_bias=True,
        defaults=sizes(
            2048,
            5632,
            24,
            16,
            16,
            151936,
            num_experts=60,
            num_experts_per_tok=4,
            moe_intermediate_size=1408,
            shared_expert_intermediate_size=5632,
        ),
    ),
    "qwen3_moe": Family(
        qkv_bias=BIASED,
        o_bias=BIASED,
        qk_norm="head",
        defaults=sizes(
            2048, 6144, 24, 32, 4, 151936, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768
        ),
    ),
    "olmo": Family(
        qkv_bias=BIASED, o_bias=BIASED, norm_weight=False, defaults=sizes(4096, 11008, 32, 32, 32, 50304)
    ),
    "olmo2": Family(
        qkv_bias=BIASED, o_bias=BIASED, qk_norm="whole", defaults=sizes(4096, 11008, 32, 32, 32, 50304)
    ),
    "cohere": Family(
        qkv_bias=BIASED, o_bias=BIASED, norms=1, tied=True, defaults=sizes(8192, 22528, 40, 64, 64, 256000)
    ),
    "stablelm": Family(
        qkv_bias="use_qkv_bias", norm_bias=True, defaults=sizes(2560, 6912, 32, 32, 32, 50304)
    ),
    "gpt_neox": Family(
        gated=False,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        norm_bias=True,
        defaults=sizes(6144, 24576, 44, 64, 0, 50432),
    ),
    "starcoder2": Family(
        gated=False,
        qkv_bias="use_bias",
        o_bias="use_bias",
        mlp_bias="use_bias",
        norm_bias=True,
        tied=True,
        defaults=sizes(3072, 12288, 30, 24, 2, 49152, use_bias=True),
    ),
}
# Of a family that is not above: all that other families have, so that what it needs is over-estimated.
UNKNOWN = Family(
    qkv_bias=True, o_bias=True, mlp_bias=True, norms=4, norm_bias=True, qk_norm="whole", exact=False
)
# Where other families' configs keep the same sizes.
ALIASES = {
    "hidden_size": ("n_embd", "d_model", "dim"),
    "intermediate_size": ("ffn_dim", "n_inner", "ffn_hidden_size"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("n_head", "n_heads"),
    "num_key_value_heads": ("n_head_kv", "num_kv_heads"),
    "num_experts": ("num_local_experts", "n_routed_experts"),
    "num_experts_per_tok": ("moe_top_k",),
    "max_position_embeddings": ("n_positions", "max_sequence_length"),
}
