"""The fast sweep against the exhaustive procedure: time, work, and that both choose the same candidate.

    python benchmarks/direction.py MODEL [--score first-token|phrases] [--prompts N] [--stride N] [--affine]

MODEL is a dense checkpoint folder, for example results/demo/smollm2-135m/dense/checkpoint. Candidates are all
post-instruction positions at every STRIDE-th layer; both get the same prompts, candidates and batch size. The
exhaustive procedure is Arditi et al.'s as one would write it down: three passes a candidate over whole prompts, hooks,
logits at every position. Work is counted in token-layers: tokens (padding included) times decoder layers run.
Target: 1/5 in time.
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from holdfast.architectures import attention, decoder_layers
from holdfast.batching import fitting_batch_size
from holdfast.checkpoints import load_model, load_tokenizer
from holdfast.model_folders import settings
from holdfast.prompts.sources import read_prompts
from holdfast.prompts.templates import encode, forward_inputs
from holdfast.refusal.activations import block_inputs
from holdfast.refusal.interventions import ablated, added
from holdfast.refusal.scores import RefusalScore, kl_divergence, learn_openings, log_odds
from holdfast.refusal.selection import best_failing, choose
from holdfast.refusal.sweep import Candidate, Sweep, run_sweep

HARMFUL = {"source": "package:pyrit/datasets/seed_datasets/local/adv_bench.prompt"}
HARMLESS = {"source": "package:holdfast/data/harmless.jsonl"}


class Exhaustive:
    """Every candidate, every score, every prompt, from the first token to the last layer."""

    def __init__(
        self, model: Any, score: RefusalScore, harmful: list[str], harmless: list[str], size: int
    ) -> None:
        self.model, self.score, self.size = model, score, size
        self.harmful, self.harmless = harmful, harmless

    def logits(self, texts: list[str], follow: list[int]) -> torch.Tensor:
        """After each prompt and the tokens of ``follow``: [prompt, 1 + follow, vocabulary]."""
        found = []
        for start in range(0, len(texts), self.size):
            batch = encode(self.score.tokenizer, texts[start : start + self.size], self.score.settings)
            if follow:
                more = torch.tensor([follow]).expand(len(batch["input_ids"]), -1)
                batch["input_ids"] = torch.cat([batch["input_ids"], more], -1)
                batch["attention_mask"] = torch.cat([batch["attention_mask"], torch.ones_like(more)], -1)
            with torch.inference_mode():
                output = self.model(**forward_inputs(self.model, batch), use_cache=False)
            found.append(output.logits[:, -1 - len(follow) :].float().log_softmax(-1).cpu())
        return torch.cat(found)

    def refusal(self, texts: list[str]) -> float:
        """Mean log-odds of the openings; one pass a longest opening, its prefixes read on the way."""
        if self.score.kind == "first-token":
            first = self.logits(texts, [])[:, 0].exp()
            return log_odds(first[:, sorted({o[0] for o in self.score.openings})].sum(-1)).mean().item()
        total = torch.zeros(len(texts), dtype=torch.float64)
        for opening in self.score.openings:
            said = self.logits(texts, opening[:-1])
            steps = torch.stack([said[:, i, token] for i, token in enumerate(opening)])
            total += steps.double().sum(0).exp()
        return log_odds(total).mean().item()

    def table(self, candidates: list[Candidate]) -> pd.DataFrame:
        before = self.logits(self.harmless, [])[:, 0]
        rows = []
        for candidate in candidates:
            with ablated(self.model, candidate.unit, candidate.harmless):
                bypass = self.refusal(self.harmful)
            with added(self.model, candidate.difference, candidate.layer):
                induce = self.refusal(self.harmless)
            with ablated(self.model, candidate.unit, candidate.harmless):
                kl = kl_divergence(before, self.logits(self.harmless, [])[:, 0]).mean().item()
            rows.append((candidate.position, candidate.layer, bypass, induce, kl))
        return pd.DataFrame(rows, columns=["position", "layer", "bypass", "induce", "kl"])


@contextmanager
def token_layers(model: Any) -> Iterator[list[int]]:
    """Counts tokens that go through an attention; blocks that a pass skips have none run."""
    count = [0]

    def add(_module: Any, args: Any, kwargs: Any) -> None:
        x = args[0] if args else kwargs["hidden_states"]
        count[0] += x.shape[0] * x.shape[1]

    hooks = [
        attention(layer).register_forward_pre_hook(add, with_kwargs=True) for layer in decoder_layers(model)
    ]
    try:
        yield count
    finally:
        for hook in hooks:
            hook.remove()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--score", choices=["first-token", "phrases"], default="first-token")
    parser.add_argument("--prompts", type=int, default=32, help="validation prompts of each kind")
    parser.add_argument("--stride", type=int, default=4, help="every so many layers")
    parser.add_argument("--affine", action="store_true", help="affine ablation")
    parser.add_argument("--max-kl", type=float, default=0.1)
    parser.add_argument("--min-induce", type=float, default=0.0)
    given = parser.parse_args()
    model, tokenizer, chosen = load_model(given.model), load_tokenizer(given.model), settings(given.model)

    def texts(source: dict[str, str], start: int, count: int) -> list[str]:
        return [r["text"] for r in read_prompts({**source, "rows": f"{start}:{start + count}"})]

    train = [block_inputs(model, tokenizer, texts(s, 300, 32), chosen) for s in (HARMFUL, HARMLESS)]
    harmful, harmless = texts(HARMFUL, 400, given.prompts), texts(HARMLESS, 400, given.prompts)
    means = [values.double().mean(0) for values in train]
    layers = len(decoder_layers(model))
    candidates = [
        Candidate(
            p, layer, (means[0] - means[1])[p, layer].float(), means[1][p].float() if given.affine else None
        )
        for p in range(-train[0].shape[1], 0)
        for layer in range(1, layers, given.stride)
    ]
    score = RefusalScore(tokenizer, chosen, learn_openings([], tokenizer), given.score)
    lengths = score.prompts(harmful + harmless).lengths()
    size = fitting_batch_size(model, max(lengths))
    bounds = given.max_kl, given.min_induce
    print(
        f"{len(candidates)} candidates, {given.prompts} prompts of each kind, batch {size}, {given.score}",
        flush=True,
    )
    with token_layers(model) as fast_work:
        start = time.perf_counter()
        sweep = Sweep(model, score, candidates, harmful, harmless, size)
        _, number, usable = run_sweep(sweep, layers, *bounds)
        fast = time.perf_counter() - start
    place = candidates[number].position, candidates[number].layer
    print(
        f"fast: {fast:.1f} s, {fast_work[0] / 1e6:.2f} million token-layers, chose {place}, usable {usable}",
        flush=True,
    )
    with token_layers(model) as whole_work:
        start = time.perf_counter()
        table = Exhaustive(model, score, harmful, harmless, size).table(candidates)
        whole = time.perf_counter() - start
    picked = choose(table, layers, *bounds) if usable else best_failing(table, layers)
    there = int(picked["position"]), int(picked["layer"])
    print(f"exhaustive: {whole:.1f} s, {whole_work[0] / 1e6:.2f} million token-layers, chose {there}")
    print(
        f"fast / exhaustive: {fast / whole:.3f} in time, {fast_work[0] / whole_work[0]:.3f} in token-layers"
    )
    print(f"same choice: {place == there}")


if __name__ == "__main__":
    main()
