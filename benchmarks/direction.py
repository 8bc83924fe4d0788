"""The fast sweep against the exhaustive procedure: time, work, and that both choose the same candidate.

    python benchmarks/direction.py MODEL [--score first-token|phrases] [--prompts N] [--stride N] [--affine]
        [--bounds MAX_KL MIN_INDUCE]...

MODEL is a dense checkpoint folder, for example results/demo/smollm2-135m/dense/checkpoint. Candidates are all
post-instruction positions at every STRIDE-th layer; both get the same prompts, candidates and batch size. The
exhaustive procedure is Arditi et al.'s as one would write it down: three passes a candidate over whole prompts, hooks,
logits at every position; one table of it serves all bounds. Work is counted in token-layers: tokens (padding included)
times decoder layers run. Where other work runs on the machine, the ratio in processor seconds says more than that in
time. Target: 1/5 in time.
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
from holdfast.refusal.candidate_scores import Candidate, Sweep
from holdfast.refusal.interventions import ablated, added
from holdfast.refusal.scores import RefusalScore, kl_divergence, learn_openings, log_odds
from holdfast.refusal.selection import best_failing, choose
from holdfast.refusal.sweep import run_sweep

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


@dataclass
class Cost:
    seconds: float = 0.0
    processor: float = 0.0
    token_layers: int = 0

    def __str__(self) -> str:
        work = f"{self.token_layers / 1e6:.2f} million token-layers"
        return f"{self.seconds:.1f} s, {self.processor:.1f} processor s, {work}"


@contextmanager
def measured(model: Any) -> Iterator[Cost]:
    """What is run meanwhile. Counts tokens that go through an attention: blocks that a pass skips have none run."""
    cost = Cost()

    def add(_module: Any, args: Any, kwargs: Any) -> None:
        x = args[0] if args else kwargs["hidden_states"]
        cost.token_layers += x.shape[0] * x.shape[1]

    blocks = decoder_layers(model)
    hooks = [attention(block).register_forward_pre_hook(add, with_kwargs=True) for block in blocks]
    start = time.perf_counter(), time.process_time()
    try:
        yield cost
    finally:
        cost.seconds, cost.processor = time.perf_counter() - start[0], time.process_time() - start[1]
        for hook in hooks:
            hook.remove()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--score", choices=["first-token", "phrases"], default="first-token")
    parser.add_argument("--prompts", type=int, default=32, help="validation prompts of each kind")
    parser.add_argument("--stride", type=int, default=4, help="every so many layers")
    parser.add_argument("--affine", action="store_true", help="affine ablation")
    parser.add_argument("--bounds", nargs=2, type=float, action="append", metavar=("MAX_KL", "MIN_INDUCE"))
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
    print(
        f"{len(candidates)} candidates, {given.prompts} prompts of each kind, batch {size}, {given.score}",
        flush=True,
    )
    found = []
    for bounds in given.bounds or [(0.1, 0.0)]:
        with measured(model) as fast:
            sweep = Sweep(model, score, candidates, harmful, harmless, size)
            _, number, usable = run_sweep(sweep, layers, *bounds)
        place = candidates[number].position, candidates[number].layer
        print(f"fast, {bounds}: {fast}, chose {place}, usable {usable}", flush=True)
        found.append((bounds, fast, place, usable))
    with measured(model) as whole:
        table = Exhaustive(model, score, harmful, harmless, size).table(candidates)
    print(f"exhaustive: {whole}")
    for bounds, fast, place, usable in found:
        picked = choose(table, layers, *bounds) if usable else best_failing(table, layers, bounds[1])
        there = int(picked["position"]), int(picked["layer"])
        print(
            f"{bounds}: fast / exhaustive {fast.seconds / whole.seconds:.3f} in time, "
            f"{fast.processor / whole.processor:.3f} in processor seconds, "
            f"{fast.token_layers / whole.token_layers:.3f} in token-layers; exhaustive chose {there}; "
            f"same choice: {place == there}"
        )


if __name__ == "__main__":
    main()
