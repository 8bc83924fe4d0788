"""One loop for both stages of training: AdamW (Loshchilov & Hutter 2019), warm-up and cosine decay."""

import contextlib
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from tqdm import tqdm


def optimise(
    groups: list[dict[str, Any]], steps: int, loss_of: Callable[[int], torch.Tensor], progress: str
) -> list[float]:
    """Take ``steps`` steps down ``loss_of(step)``; returns the loss of every step.

    Learning rates rise over the first tenth and fall along a cosine; the gradient's norm is at most 1. Forward passes
    are in bfloat16 where the processor multiplies in it, weights and their updates in float32.

    Args:
        groups: parameters (lists) and their peak ``lr``, as AdamW takes them.
    """
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    warm = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warm, 0.5 * (1 + math.cos(math.pi * s / steps)))
    )
    learnt: Iterable[torch.nn.Parameter] = [p for group in groups for p in group["params"]]
    losses = []
    with tqdm(range(steps), desc=progress, mininterval=5) as bar:
        for step in bar:
            with half_precision():
                loss = loss_of(step)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learnt, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            bar.set_postfix(loss=f"{sum(losses[-20:]) / len(losses[-20:]):.3f}", refresh=False)
    return losses


def half_precision() -> contextlib.AbstractContextManager[Any]:
    """bfloat16 autocast on processors that have instructions for it; elsewhere it would be slower than float32."""
    if torch.cpu._is_avx512_bf16_supported():
        return torch.autocast("cpu", dtype=torch.bfloat16)
    return contextlib.nullcontext()
