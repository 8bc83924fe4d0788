"""Drawn answers that can be drawn again: every answer has a stream of chance of its own."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper


@dataclass(frozen=True)
class Sampling:
    """``samples`` answers to every prompt, from softmax(logits / ``temperature``), cut to the ``top_p`` nucleus
    (Holtzman et al. 2020, section 3.1) where it is given."""

    temperature: float
    top_p: float | None = None
    samples: int = 1
    seed: int = 0

    def tries(self, prompt: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The prompt once a sample: ``id`` tells them apart, ``prompt_id`` and ``sample`` say whose they are,
        ``draw`` is the seed of the answer, which depends on the study's seed, the prompt's id and the sample alone."""
        name = str(prompt["id"])
        return [
            {**prompt, "id": f"{name}#{i}", "prompt_id": name, "sample": i, "draw": self._seed(name, i)}
            for i in range(self.samples)
        ]

    def _seed(self, prompt: str, sample: int) -> int:
        text = json.dumps([self.seed, prompt, sample])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])

    def processors(self, seeds: Sequence[int]) -> LogitsProcessorList:
        """What makes a greedy ``generate`` draw, given the seed of every row."""
        nucleus = [] if self.top_p is None else [TopPLogitsWarper(self.top_p)]
        return LogitsProcessorList([TemperatureLogitsWarper(self.temperature), *nucleus, Draw(seeds)])


class Draw(LogitsProcessor):
    """Leaves each row one token, drawn by inverse transform (Devroye 1986, III.2) from the row's own stream.

    ``generate`` itself draws all rows of a batch from one stream: an answer would depend on what it shared a batch
    with, and a resumed run would give others. Here every row takes one uniform number a token from its own.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.streams = [np.random.default_rng(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """``scores`` [row, token]: 0 at the drawn token, minus infinity elsewhere."""
        cumulative = scores.softmax(-1).cumsum(-1, dtype=torch.float64)
        uniform = torch.tensor([[s.random()] for s in self.streams], dtype=torch.float64)
        # Above, not at: a token without probability has the cumulative one of the token before it.
        drawn = torch.searchsorted(cumulative, uniform.to(scores.device) * cumulative[:, -1:], right=True)
        return torch.full_like(scores, -torch.inf).scatter(1, drawn.clamp(max=scores.shape[1] - 1), 0.0)
