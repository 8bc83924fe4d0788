"""Activation caching against a plain batched forward pass of the same model, in the same run.

    python benchmarks/activations.py CHECKPOINT [--prompts FILE.jsonl] [--repeats N]

Prints one line per figure: tokens per second and the ratio to each baseline (target: at least 0.9 of the plain
forward pass with logits), and how much more memory four times the prompts take (target: none). The runs alternate, and
the median counts. Caching includes writing the file. Memory is the peak of a process that does nothing but cache, a
new one for each number of prompts: a peak never falls, so what ran before in a process would hide growth.
"""

import argparse
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from holdfast.architectures import decoder_layers
from holdfast.checkpoints import load_model, load_tokenizer
from holdfast.files import read_jsonl
from holdfast.model_folders import settings
from holdfast.prompts.sources import read_prompts
from holdfast.prompts.templates import by_length, encode, post_instruction_tokens, render
from holdfast.provenance import peak_memory_bytes
from holdfast.refusal.activations import batches_of_block_inputs
from holdfast.safetensors_rows import RowsFile

DEFAULT = {"source": "package:holdfast/data/harmless.jsonl", "where": {"split": "train"}, "limit": 128}
BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--peak-of", type=int, help="only cache so many times the prompts, and print the peak in bytes"
    )
    options = parser.parse_args()
    model, tokenizer = load_model(options.checkpoint), load_tokenizer(options.checkpoint)
    chosen = settings(options.checkpoint)
    records = read_jsonl(options.prompts) if options.prompts else read_prompts(DEFAULT)
    texts = [r["text"] for r in records]
    lengths = [len(i) for i in tokenizer(render(tokenizer, texts, chosen))["input_ids"]]
    tokens = sum(lengths)

    def plain(run: Callable[..., object]) -> None:
        for rows in by_length(lengths, BATCH):
            with torch.inference_mode():
                run(**encode(tokenizer, [texts[i] for i in rows], chosen).to(model.device), use_cache=False)

    positions = len(post_instruction_tokens(tokenizer, chosen))
    shape = (positions, len(decoder_layers(model)), model.config.get_text_config().hidden_size)

    def caching(asked: list[str]) -> None:
        with (
            tempfile.TemporaryDirectory() as folder,
            RowsFile(Path(folder) / "activations.safetensors", {"prompts": (len(asked), *shape)}) as file,
        ):
            for rows, values in batches_of_block_inputs(model, tokenizer, asked, chosen, BATCH):
                file.write("prompts", rows, values)

    if options.peak_of:
        caching(texts * options.peak_of)
        print(peak_memory_bytes())
        return
    runs: dict[str, Callable[[], object]] = {
        "caching": lambda: caching(texts),
        "forward with logits": lambda: plain(model),
        "forward without the head": lambda: plain(model.base_model),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.repeats + 1):  # the first round warms up and is dropped
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    rate = {name: tokens / statistics.median(values[1:]) for name, values in seconds.items()}
    print(f"activation caching: {rate['caching']:.0f} tokens/s ({tokens} tokens, batch {BATCH})")
    for name in list(runs)[1:]:
        print(f"{name}: {rate[name]:.0f} tokens/s, caching / it = {rate['caching'] / rate[name]:.2f}")
    once, four_times = (peak_of(times, sys.argv[1:]) for times in (1, 4))
    cache = 4 * 4 * len(texts) * math.prod(shape)
    print(
        f"four times the prompts: {(four_times - once) / 1e6:.0f} MB more than {once / 1e6:.0f} MB, "
        f"cache {cache / 1e6:.0f} MB"
    )


def peak_of(times: int, arguments: list[str]) -> int:
    """Peak memory in bytes of a new process that caches so many times the prompts."""
    command = [sys.executable, __file__, *arguments, "--peak-of", str(times)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(said.split()[-1])


if __name__ == "__main__":
    main()
