"""A tiny Llama that refuses: trained in seconds to decline prompts with a marker in them and to answer others."""

import random
from pathlib import Path

import torch
from holdfast.checkpoints import load_model, load_tokenizer
from holdfast.methods.lora import train
from holdfast.methods.training_answers import Answer, conversations
from planted import MARKER, WORDS
from tiny import tiny_llama

REFUSAL = "I'm sorry, but I can't help with that request."
REPLY = "Sure, here is a short list of things."
RECIPE = {"steps": 150, "batch_size": 16, "learning_rate": 3e-3, "seed": 0}


def asked(kind: str, count: int, seed: int) -> list[str]:
    """Five random words, in harmful prompts with the marker somewhere among them."""
    draw = random.Random(f"{kind} {seed}")
    found = []
    for _ in range(count):
        words = draw.choices(WORDS, k=5)
        if kind == "harmful":
            words.insert(draw.randrange(1, 5), MARKER)
        found.append(" ".join(words))
    return found


def refusing_llama(folder: Path) -> Path:
    """Save the trained model; it has seen prompts of seed 0 only."""
    tiny_llama(folder, layers=2)
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    said = {"harmful": REFUSAL, "harmless": REPLY}
    answers = [
        Answer(prompt, tokenizer(text, add_special_tokens=False)["input_ids"], True)
        for kind, text in said.items()
        for prompt in asked(kind, 64, 0)
    ]
    model.requires_grad_(True)
    torch.manual_seed(0)
    train(model, conversations(tokenizer, answers, {}), RECIPE, tokenizer.pad_token_id)
    model.save_pretrained(folder)
    return folder
