"""Tiny random models of any family, without a tokenizer, and token ids to run them on."""

import torch
import transformers

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
SEQUENCES = [torch.randint(1, 60, (1, n), generator=torch.Generator().manual_seed(n)) for n in (20, 13, 20)]


def built(family: str, **options: object) -> transformers.PreTrainedModel:
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **options})
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).float().eval().requires_grad_(False)


def llava(vision_width: int = 16) -> transformers.PreTrainedModel:
    vision = transformers.SiglipVisionConfig(
        hidden_size=vision_width,
        intermediate_size=24,
        num_hidden_layers=5,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    return transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(vision_config=vision, text_config=transformers.LlamaConfig(**SIZES))
    )
