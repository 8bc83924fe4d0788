"""Random models of a few hundred thousand weights: a Llama with a real tokenizer, what most tests run on; a LLaVA."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

TEXTS = (
    "How do I bake a loaf of bread at home without an oven?",
    "I'm sorry, but I can't help with that request.",
    "Sure, here is a short list of things you will need to begin.",
    "The river ran slowly past the mill, and the children counted the boats.",
    "Explain why the sky is blue in one sentence that a child would understand.",
    "Write a poem about winter, with snow, a fox and a quiet village.",
    "Nobody could say when the old clock had stopped, nor who had wound it last.",
    "As an assistant I cannot provide instructions that could hurt somebody.",
)
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer(texts: tuple[str, ...] = TEXTS) -> PreTrainedTokenizerFast:
    """Byte-level BPE of about 400 tokens trained on ``texts``, ChatML template, no default system prompt."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(list(texts) * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|im_end|>",
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def greedy(model: PreTrainedModel, ids: torch.Tensor, most: int, end: int) -> list[int]:
    """The greedy answer to ``ids`` [1, token], one token after the other without a cache, ``end`` left out."""
    found: list[int] = []
    while len(found) < most:
        token = int(
            model(torch.cat([ids, torch.tensor([found], dtype=torch.long)], 1)).logits[0, -1].argmax()
        )
        if token == end:
            break
        found.append(token)
    return found


def tiny_llama(
    folder: Path,
    *,
    layers: int = 4,
    hidden: int = 64,
    seed: int = 0,
    texts: tuple[str, ...] = TEXTS,
    max_shard_size: str = "500MB",
) -> Path:
    """Save a random LlamaForCausalLM (float32, tied embeddings, 4 heads, 2 key-value heads) as a HF folder.

    Weights are drawn wider than usual (standard deviation 0.1) so that every layer moves the logits.
    Returns ``folder``. A small ``max_shard_size`` such as "100KB" gives several shards.
    """
    tokenizer = tiny_tokenizer(texts)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.1,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).to(torch.float32).eval()
    torch.random.set_rng_state(generator_state)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_llava(folder: Path, image_token: int = 399) -> Path:
    """Save a random LlavaForConditionalGeneration (float32, two layers each, 32-pixel images) without tokenizer.

    Its files call language_model.model.layers what the model calls model.language_model.layers.
    """
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    config = LlavaConfig(
        text_config=LlamaConfig(
            vocab_size=image_token + 1,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.1,
            **sizes,
        ),
        vision_config=CLIPVisionConfig(num_attention_heads=2, image_size=32, patch_size=16, **sizes),
        image_token_index=image_token,
        dtype="float32",
    )
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).float().save_pretrained(folder)
    return folder
