"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685): how Holdfast trains them, on answer tokens only."""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tqdm import tqdm

from holdfast.methods.training_answers import Example


def collate(batch: Sequence[Example], pad: int) -> dict[str, torch.Tensor]:
    """Right-padded ``input_ids``, ``attention_mask`` and ``labels``, int64 [example, token]."""
    width = max(len(ids) for ids, _ in batch)
    return {
        "input_ids": torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in batch]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in batch]),
        "labels": torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in batch]),
    }


def train(model: Any, data: Sequence[Example], recipe: Mapping[str, Any], pad: int) -> list[float]:
    """AdamW with linear warm-up (10 %) and cosine decay; returns the loss of every step.

    Every example is seen once before any is seen again, in an order drawn by the seed.

    Args:
        model: with the adapter's weights as its only trainable parameters.
        recipe: ``steps``, ``batch_size``, ``learning_rate`` (its peak), ``seed``.
        pad: token id to fill up with; masked, and without loss.
    """
    draw = random.Random(recipe["seed"])
    steps, size = recipe["steps"], recipe["batch_size"]
    learnt = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=recipe["learning_rate"])
    warm = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warm, 0.5 * (1 + math.cos(math.pi * s / steps)))
    )
    order: list[int] = []
    losses = []
    model.train()
    for _ in tqdm(range(steps), desc="tuning", mininterval=5):
        while len(order) < size:
            order += draw.sample(range(len(data)), len(data))
        batch, order = [data[i] for i in order[:size]], order[size:]
        inputs = {name: tensor.to(model.device) for name, tensor in collate(batch, pad).items()}
        loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learnt, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses
