"""One loop for both stages of training: AdamW (Loshchilov & Hutter 2019), resumed after a kill with what was learnt."""

import contextlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from holdfast.files import atomic_file

SAVED_EVERY = 100  # steps
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's own names


# What is left of `optimise` when its last two arguments are given.
Optimise = Callable[[list[dict[str, Any]], int, Callable[[int], torch.Tensor]], list[float]]


def optimise(
    groups: list[dict[str, Any]],
    steps: int,
    loss_of: Callable[[int], torch.Tensor],
    partial: Path,
    made_of: Mapping[str, Any],
) -> list[float]:
    """Take ``steps`` steps down ``loss_of(step)``; returns the loss of every step.

    Learning rates rise over the first tenth and fall along a cosine; the gradient's norm is at most 1. Forward passes
    are in bfloat16 where the processor multiplies in it, weights and their updates in float32.

    Args:
        groups: parameters (lists) and their peak ``lr``, as AdamW takes them.
        loss_of: may depend on the step and on the weights, on nothing that earlier calls left behind.
        partial: a safetensors file with weights and moments so far, written every hundred steps. A run that finds it
            goes on from there, if it is ``made_of`` the same.
    """
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    peaks = [group["lr"] for group in groups]
    learnt = [weight for group in groups for weight in group["params"]]
    losses = _resumed(partial, learnt, optimizer, made_of)
    done = len(losses)
    with tqdm(range(done, steps), desc=partial.stem, mininterval=5, initial=done, total=steps) as bar:
        for step in bar:
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * schedule(step, steps)
            with half_precision():
                loss = loss_of(step)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learnt, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            bar.set_postfix(loss=f"{sum(losses[-20:]) / len(losses[-20:]):.3f}", refresh=False)
            if len(losses) % SAVED_EVERY == 0:
                _save(partial, learnt, optimizer, losses, made_of)
    return losses


def schedule(step: int, steps: int) -> float:
    """Share of the peak learning rate at a step."""
    warm = max(1, steps // 10)
    return min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * step / steps)))


def _save(
    partial: Path,
    learnt: list[torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    losses: list[float],
    made_of: Mapping[str, Any],
) -> None:
    tensors = {}
    for number, weight in enumerate(learnt):
        if weight in optimizer.state:  # not one that no gradient reaches
            tensors[f"{number}.weight"] = weight.detach()
            tensors |= {f"{number}.{name}": optimizer.state[weight][name] for name in MOMENTS}
    about = {"losses": json.dumps(losses), "made_of": json.dumps(made_of)}
    with atomic_file(partial) as file:
        save_file(tensors, file, about)


def _resumed(
    partial: Path,
    learnt: list[torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    made_of: Mapping[str, Any],
) -> list[float]:
    """The losses so far; weights and moments are set to what they were after them."""
    try:
        with safe_open(partial, "pt") as stored:
            about = stored.metadata()
            if json.loads(about["made_of"]) != made_of:
                return []
            losses: list[float] = json.loads(about["losses"])
            for number in {int(name.partition(".")[0]) for name in stored.keys()}:  # noqa: SIM118
                weight = learnt[number]
                weight.data.copy_(stored.get_tensor(f"{number}.weight"))
                moments = {name: stored.get_tensor(f"{number}.{name}") for name in MOMENTS}
                optimizer.state[weight] = {"step": torch.tensor(float(len(losses))), **moments}
    except (FileNotFoundError, SafetensorError):
        return []
    return losses


def half_precision() -> contextlib.AbstractContextManager[Any]:
    """bfloat16 autocast on processors that have instructions for it; elsewhere it would be slower than float32."""
    if torch.cpu._is_avx512_bf16_supported():
        return torch.autocast("cpu", dtype=torch.bfloat16)
    return contextlib.nullcontext()
