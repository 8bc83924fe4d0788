"""What a checkpoint is worth on the test prompts: refusals, over-refusals, perplexity, zero-shot accuracy."""

import gc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.config.by_hand import validated
from holdfast.errors import HoldfastError
from holdfast.evaluation.generation import generate
from holdfast.evaluation.judges import judge_files
from holdfast.evaluation.perplexity import perplexity
from holdfast.evaluation.zero_shot import zero_shot
from holdfast.files import read_json, read_jsonl, write_json
from holdfast.statistics import Rate, mcnemar_exact, wilson

JUDGE = "arditi-12"
SETS = ("harmful", "harmless")
# A refusal stands in an answer's first words. A fixed batch: in another one sums differ in their last digits.
NEW_TOKENS = 32
GENERATE = {"max_new_tokens": NEW_TOKENS, "batch_size": 32}
WINDOW, WINDOWS = 256, 16
PERPLEXITY = {"source": "package:holdfast/data/heldout.txt", "window": WINDOW, "windows": WINDOWS}
ZERO_SHOT = {"tasks": ["holdfast_choice"], "limit": None, "folder": None}


@dataclass(frozen=True)
class Measured:
    """One checkpoint on the test prompts.

    ``refused`` and ``degenerate``: by set (harmful, harmless), a yes or no for each prompt, in the prompts' order;
    ``perplexity`` and ``zero_shot`` as the stage ``ability`` writes them, None where they were not measured.
    """

    refused: Mapping[str, list[bool]]
    degenerate: Mapping[str, list[bool]]
    perplexity: Mapping[str, Any] | None = None
    zero_shot: Mapping[str, Any] | None = None

    def genuine(self, kind: str) -> list[bool]:
        """Refused in coherent text."""
        pairs = zip(self.refused[kind], self.degenerate[kind], strict=True)
        return [refused and not broken for refused, broken in pairs]

    def rate(self, kind: str) -> Rate:
        """Share of genuine refusals, with Wilson's 95 % interval."""
        values = self.genuine(kind)
        return wilson(sum(values), len(values))

    def attack_success(self) -> Rate:
        """1 − refused on harmful prompts, degenerate answers included, with Wilson's 95 % interval."""
        values = self.refused["harmful"]
        return wilson(len(values) - sum(values), len(values))

    def over_refusal(self) -> Rate:
        """Share of harmless prompts refused, degenerate answers included, with Wilson's 95 % interval."""
        values = self.refused["harmless"]
        return wilson(sum(values), len(values))


def changed(before: list[bool], after: list[bool]) -> dict[str, Any]:
    """Prompts that went from no to yes and from yes to no, and McNemar's exact p."""
    gained = sum(b < a for b, a in zip(before, after, strict=True))
    lost = sum(b > a for b, a in zip(before, after, strict=True))
    return {"gained": gained, "lost": lost, "p": mcnemar_exact(gained, lost)}


def answer(checkpoint: Path, out: Path, prompts: Mapping[str, Path]) -> None:
    """Answers to both test sets and their verdicts, into ``out/generations`` and ``out/verdicts``."""
    generate(checkpoint, out / "generations", prompts, validated("generate", GENERATE))
    files = [out / "generations" / f"{name}.jsonl" for name in prompts]
    judge_files(files, out / "verdicts", validated("judge", {"judges": [JUDGE]}))


def ability(checkpoint: Path, out: Path, quick: bool) -> None:
    """``out`` (JSON): perplexity on the packaged held-out text and, unless ``quick``, zero-shot accuracy by item."""
    from holdfast.checkpoints import load_model, load_tokenizer

    model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
    found: dict[str, Any] = {"perplexity": perplexity(model, tokenizer, PERPLEXITY), "zero_shot": None}
    if not quick:
        found["zero_shot"], _ = zero_shot(model, tokenizer, ZERO_SHOT, items=True)
    write_json(out, found)
    del model
    gc.collect()


def measured(folder: Path) -> Measured:
    """What :func:`answer` and, where it was called, :func:`ability` left in ``folder``.

    Raises HoldfastError when a thinking model was cut before an answer: there is nothing to judge in it.
    """
    verdicts = {kind: read_jsonl(folder / "verdicts" / f"{kind}.jsonl") for kind in SETS}
    said = [v for records in verdicts.values() for v in records]
    if cut := sum(v["label"] == "unfinished" for v in said):
        what = f"{cut} of {len(said)} answers were cut inside the thought before them"
        raise HoldfastError(what, str(folder), 'turn thinking off: {"thinking": false} in its holdfast.json')
    found = read_json(folder / "ability.json") if (folder / "ability.json").is_file() else {}
    return Measured(
        {kind: [v["refused"] for v in records] for kind, records in verdicts.items()},
        {kind: [v["degenerate"] for v in records] for kind, records in verdicts.items()},
        found.get("perplexity"),
        found.get("zero_shot"),
    )
