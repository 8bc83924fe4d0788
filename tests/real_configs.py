"""Configs of real models, and how many weights they have."""

from typing import Any

# As their config.json on the Hub has them, keys that say nothing of the size left out; weights as their model cards
# and papers give them, in billions.
LLAMA_2_7B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
    "max_position_embeddings": 4096,
    "torch_dtype": "float16",
}
REAL: dict[str, tuple[float, dict[str, Any]]] = {
    "Llama-2-7b": (6.738, LLAMA_2_7B),
    "Llama-3.1-8B": (
        8.030,
        LLAMA_2_7B
        | {
            "intermediate_size": 14336,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
            "torch_dtype": "bfloat16",
        },
    ),
    "Qwen2.5-7B": (
        7.616,
        {
            "model_type": "qwen2",
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        },
    ),
    "gemma-2-9b": (
        9.242,
        {
            "model_type": "gemma2",
            "hidden_size": 3584,
            "intermediate_size": 14336,
            "num_hidden_layers": 42,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 256,
            "vocab_size": 256000,
            "torch_dtype": "bfloat16",
        },
    ),
    "Mistral-7B-v0.3": (
        7.248,
        {
            "model_type": "mistral",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 32768,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        },
    ),
    "Mixtral-8x7B": (
        46.703,
        {
            "model_type": "mixtral",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "vocab_size": 32000,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        },
    ),
    "llava-1.5-7b": (  # its language model's sizes are transformers' defaults for a Llama
        7.063,
        {
            "model_type": "llava",
            "text_config": {"model_type": "llama", "vocab_size": 32064, "torch_dtype": "float16"},
            "tie_word_embeddings": False,
            "torch_dtype": "float16",
            "vision_config": {
                "model_type": "clip_vision_model",
                "hidden_size": 1024,
                "image_size": 336,
                "intermediate_size": 4096,
                "num_attention_heads": 16,
                "num_hidden_layers": 24,
                "patch_size": 14,
            },
        },
    ),
}
# Qwen-VL's configs on the Hub are flat: what is of the language model stands beside the vision tower's section.
_QWEN_2_5_VL: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vision_config": {
        "model_type": "qwen2_5_vl",
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
    },
}
FLAT: dict[str, tuple[float, dict[str, Any]]] = {
    "Qwen2.5-VL-7B": (8.292, _QWEN_2_5_VL),
    "Qwen2.5-VL-3B": (
        3.755,
        _QWEN_2_5_VL
        | {
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
    ),
    "Qwen2-VL-2B": (
        2.209,
        {
            "model_type": "qwen2_vl",
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "vision_config": {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "patch_size": 14},
        },
    ),
}
