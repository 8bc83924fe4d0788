"""Write a Llama with random weights and the embedded model's tokenizer: a size to measure with, not a model to use.

python benchmarks/random_llama.py OUT --tokenizer results/demo/smollm2-135m/dense/checkpoint [--size 1b|7b]
"""

import argparse
from pathlib import Path

import torch
from holdfast.checkpoints import load_tokenizer, save_model
from holdfast.model_folders import SETTINGS
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = {
    # TinyLlama-1.1B's shape.
    "1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
           "num_key_value_heads": 4},
    # Llama-2-7B's shape.
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 32},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--size", choices=SIZES, default="1b")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    given = parser.parse_args()
    tokenizer = load_tokenizer(given.tokenizer)
    config = LlamaConfig(
        vocab_size=len(tokenizer), tie_word_embeddings=False, dtype=given.dtype,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, **SIZES[given.size],
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, given.dtype))
    given.out.mkdir(parents=True)
    model = LlamaForCausalLM(config)
    save_model(model, tokenizer, given.out, settings=SETTINGS)
    print(
        f"{sum(p.numel() for p in model.parameters()) / 1e9:.2f} billion weights, {given.dtype}: {given.out}"
    )


if __name__ == "__main__":
    main()
