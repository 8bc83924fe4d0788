"""Answers to prompts with images, in batches and one by one: prompts per second, and whether the answers are the same.

    python benchmarks/pictures.py CHECKPOINT [--prompts 64] [--batch 32] [--tokens 16]

CHECKPOINT: the embedded vision-language model's (`holdfast fetch`, docs/vision.md); the prompts are its own pairs.
Processor time of both, in one process, one after the other; the target is 3.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from holdfast.checkpoints import load_model, load_tokenizer
from holdfast.evaluation.generation import complete
from holdfast.files import read_jsonl
from holdfast.model_folders import settings
from holdfast.pairs.words import build_words
from holdfast.prompts.images import Instruction, instructions

TARGET = 3


def prompts(folder: Path, wanted: int, model: Path) -> list[Instruction]:
    build_words(folder, {"split": None, "modality": ["image", "typographic"], "limit": -(-wanted // 4)})
    return instructions(read_jsonl(folder / "pairs.jsonl")[:wanted], folder, model)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=16)
    given = parser.parse_args()
    model, tokenizer = load_model(given.checkpoint), load_tokenizer(given.checkpoint)
    seconds, answers = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        asked = prompts(Path(folder) / "pairs", given.prompts, given.checkpoint)
        chosen = settings(given.checkpoint)
        complete(model, tokenizer, asked[:1], chosen, max_new_tokens=2, batch_size=1)  # warm
        for size in (given.batch, 1):
            began, spent = time.perf_counter(), time.process_time()
            said = complete(model, tokenizer, asked, chosen, max_new_tokens=given.tokens, batch_size=size)
            seconds[size] = time.perf_counter() - began, time.process_time() - spent
            answers[size] = [one.tokens for one in said]
    for size, (wall, processor) in seconds.items():
        print(
            f"batches of {size}: {len(asked) / wall:.2f} prompts/s, {len(asked) / processor:.2f} a processor second"
        )
    ratio, in_wall = (seconds[1][i] / seconds[given.batch][i] for i in (1, 0))
    same = sum(a == b for a, b in zip(answers[given.batch], answers[1], strict=True))
    print(
        f"batches / one by one: {ratio:.2f} in processor time, {in_wall:.2f} in wall time (target {TARGET})"
    )
    print(f"same answers: {same} of {len(asked)}")
    if same < len(asked):
        sys.exit("the answers differ: the ratio is of no use")


if __name__ == "__main__":
    main()
