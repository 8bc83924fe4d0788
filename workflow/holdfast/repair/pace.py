"""How long a repair takes: measured on a first few passes, said before the long part, and kept up to date."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from holdfast.evaluation.generation import complete
from holdfast.files import write_json
from holdfast.methods.aird import VARIANTS
from holdfast.prompts.templates import post_instruction_tokens
from holdfast.refusal.passes import Prompts, next_token_logits
from holdfast.refusal.score_check import ANSWER_TOKENS
from holdfast.refusal.selection import DEEPEST
from holdfast.repair.editing import positions
from holdfast.repair.measuring import NEW_TOKENS, WINDOW, WINDOWS
from holdfast.repair.outcome import MODELS

TRIED = 16  # prompts of a timed pass
TOKENS = 8  # of a timed answer
# How many passes over one prompt a candidate costs on average, as counted on the embedded model; seconds that a step
# takes besides loading and passes; tokens of the packaged zero-shot task.
SWEEP_PASSES, SEARCH_PASSES = 24, 6
FIXED = 3.0
ZERO_SHOT_TOKENS = 480 * 20


def timed(model_dir: Path, texts: Sequence[str], out: Path) -> None:
    """Seconds to load the model, of a pass over one prompt, and of one token of one prompt's answer, into ``out``.

    ``texts``: validation prompts.
    """
    from holdfast.architectures import decoder_layers
    from holdfast.checkpoints import load_model, load_tokenizer
    from holdfast.model_folders import settings

    start = time.perf_counter()
    model, tokenizer, chosen = load_model(model_dir), load_tokenizer(model_dir), settings(model_dir)
    load = time.perf_counter() - start
    prompts = Prompts(tokenizer, chosen, list(texts)[:TRIED])
    rows = list(range(len(prompts)))
    next_token_logits(model, prompts, rows)  # the first one warms up
    start = time.perf_counter()
    next_token_logits(model, prompts, rows)
    whole = time.perf_counter() - start
    start = time.perf_counter()
    some = list(texts)[:TRIED]
    complete(model, tokenizer, some, chosen, max_new_tokens=TOKENS, batch_size=TRIED, progress="timing")
    answers = time.perf_counter() - start
    write_json(
        out,
        {
            "load": load,
            "pass": whole / len(rows),
            "token": max(answers - whole, 0.0) / (len(rows) * TOKENS),
            "prompt_tokens": sum(prompts.lengths()) / len(rows),
            "layers": len(decoder_layers(model)),
            "positions": len(post_instruction_tokens(tokenizer, chosen)) if positions() == "all" else 1,
        },
    )


def estimates(
    measured: Mapping[str, float], sizes: Mapping[str, int], strengths: int, quick: bool
) -> dict[str, float]:
    """Seconds of every step, from what one pass and one token take and how many of them a step needs.

    Args:
        measured: see :func:`timed`.
        sizes: prompts of each set.
        strengths: edits tried at a layer.
    """
    load, one, token = measured["load"] + FIXED, measured["pass"], measured["token"]
    train, tested = ((sizes[f"harmful_{r}"] + sizes[f"harmless_{r}"]) for r in ("train", "test"))
    validation = sizes["harmful_validation"] + sizes["harmless_validation"]
    per_text_token = one / measured["prompt_tokens"]
    answers = load + tested * (one + NEW_TOKENS * token)
    # Both scores of the validation prompts, and the answers they are checked against.
    check = load + validation * (5 * one + ANSWER_TOKENS * token)
    sweep = check + DEEPEST * measured["layers"] * measured["positions"] * SWEEP_PASSES * one
    search = load + one * (sizes["harmless_train"] + 2 * validation)
    search += measured["layers"] * strengths * SEARCH_PASSES * one
    search += validation * (
        len(VARIANTS) * one + 2 * ANSWER_TOKENS * token
    )  # the best in full, and their answers
    ability = load + WINDOWS * WINDOW * per_text_token
    ability += 0 if quick else ZERO_SHOT_TOKENS * per_text_token
    found = {"activations": load + train * one, "direction": sweep}
    found |= {"own activations": load + train * one, "own direction": check + 3 * validation * one}
    found |= {"edit": search, "control": load + one * sizes["harmless_train"]}
    for name in MODELS:
        found[f"answers, {name}"] = answers
        if name != "control":
            found[f"ability, {name}"] = ability
    return found


class Pace:
    """One bar over all steps, in seconds as estimated, with what is left of them as they really go."""

    def __init__(self, estimates: Mapping[str, float]) -> None:
        self.estimates = dict(estimates)
        self.expected = self.spent = 0.0
        self.bar: Any = tqdm(
            total=round(sum(self.estimates.values()), 1),
            leave=True,
            bar_format="repair: {percentage:3.0f}% |{bar}| {desc}",
        )

    def begin(self, name: str) -> None:
        left = sum(self.estimates.values()) * (self.spent / self.expected if self.expected else 1.0)
        self.bar.set_description_str(f"{name}, about {minutes(left)} left")

    def end(self, name: str, seconds: float | None) -> None:
        """``seconds`` the step took; None where it was done before or not needed, which says nothing about speed."""
        estimate = self.estimates.pop(name)
        if seconds is not None:
            self.expected, self.spent = self.expected + estimate, self.spent + seconds
        self.bar.update(min(estimate, self.bar.total - self.bar.n))

    def close(self) -> None:
        self.bar.set_description_str("done" if not self.estimates else "stopped")
        self.bar.close()


def minutes(seconds: float) -> str:
    return f"{max(seconds, 0):.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
