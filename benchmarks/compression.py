"""Compression against llm-compressor called directly, and its peak memory against the bound.

    python benchmarks/compression.py MODEL [--methods rtn gptq …] [--samples N] [--tokens N] [--repeats N]

MODEL is a dense checkpoint folder, for example results/demo/smollm2-135m/dense/checkpoint, or what
benchmarks/random_llama.py writes. Every run is a process of its own, from loading to the saved checkpoint; Holdfast's
also checks its input and writes provenance (checksums, bits and density of every matrix), the direct one does not.
Runs alternate; the median counts. One line a figure. Targets: 1.05 where llm-compressor does the work, 1.0 where ours
replaces it (wanda, sparsegpt); peak memory at most model + 2 × the largest decoder layer + its activations, over what
the same Python and libraries take with nothing loaded.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from holdfast.architectures import decoder_layers
from holdfast.checkpoints import load_tokenizer
from holdfast.compression.calibration import sequences
from holdfast.model_folders import read_config, weight_files
from holdfast.prompts.sources import package_file
from holdfast.skeletons import skeleton
from measured import Measured, run

W4 = {"bits": 4, "group_size": 64}
RECIPES = {
    "rtn": {"quantize": "rtn", **W4},
    "fp8": {"quantize": "fp8"},
    "gptq": {"quantize": "gptq", **W4},
    "awq": {"quantize": "awq", **W4},
    "smoothquant": {"quantize": "smoothquant"},
    "magnitude": {"prune": "magnitude", "sparsity": 0.5},
    "wanda": {"prune": "wanda", "sparsity": 0.5},
    "wanda-2of4": {"prune": "wanda", "pattern": "2:4"},
    "sparsegpt": {"prune": "sparsegpt", "sparsity": 0.5},
    "sparsegpt-2of4": {"prune": "sparsegpt", "pattern": "2:4"},
}
WITHOUT_RIVAL = ("magnitude",)  # llm-compressor's leaves sparsity 0 in one shot
LIBRARIES = {
    "prune": "import holdfast.compression.pruning",
    "quantize": "import holdfast.compression.modifiers, holdfast.compression.llm_compressor",
}
GB = 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--methods", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--without-rival", action="store_true", help="memory against the bound only")
    given = parser.parse_args()
    empty = {kind: run([sys.executable, "-c", code]).peak_bytes for kind, code in LIBRARIES.items()}
    print("libraries alone: " + ", ".join(f"{kind} {peak / GB:.2f} GB" for kind, peak in empty.items()))
    bound = allowed(given.model, given.samples, given.tokens)
    with tempfile.TemporaryDirectory() as scratch:
        calibration = same_texts(
            given.model, Path(scratch) / "calibration.jsonl", given.samples, given.tokens
        )
        sizes = ["--samples", str(given.samples), "--tokens", str(given.tokens)]
        for method in given.methods:
            recipe = {**RECIPES[method], "samples": given.samples, "tokens": given.tokens}
            ours = [sys.executable, "-m", "holdfast", "compress", str(given.model), f"{scratch}/ours"]
            ours += ["--recipe", json.dumps(recipe), "--calibration", str(calibration)]
            direct = [
                sys.executable,
                str(Path(__file__).with_name("direct_compression.py")),
                str(given.model),
            ]
            direct += [f"{scratch}/direct", "--method", method, "--calibration", str(calibration), *sizes]
            rounds: dict[str, list[Measured]] = {"ours": [], "direct": []}
            for _ in range(given.repeats):
                rounds["ours"].append(run(ours))
                if method not in WITHOUT_RIVAL and not given.without_rival:
                    rounds["direct"].append(run(direct))
            report(method, rounds, empty[next(iter(recipe))], bound)


def same_texts(model: Path, out: Path, samples: int, tokens: int) -> Path:
    """Calibration texts that both cut to the same number of tokens."""
    tokenizer = load_tokenizer(model)
    packaged = package_file("holdfast/data/calibration.jsonl")
    drawn = sequences(packaged, tokenizer, samples=samples, tokens=tokens, seed=0)
    texts = [tokenizer.decode(ids[0]) for ids in drawn]
    out.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return out


def allowed(model: Path, samples: int, tokens: int) -> float:
    """Bytes of the model + 2 × its largest decoder layer + that layer's activations.

    Activations: the layer's input and output of every sequence, and of one sequence what lies between them, for
    which the widest linear's input and output and the attention scores are counted. All in the model's dtype.
    """
    empty = skeleton(model)
    config = read_config(model)
    weights = sum(file.stat().st_size for file in weight_files(model))
    item = next(empty.parameters()).element_size()
    layer = max(sum(p.numel() for p in block.parameters()) for block in decoder_layers(empty)) * item
    width, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    streams = 2 * samples * tokens * width * item
    inside = tokens * (width + 3 * inner) * item + 2 * heads * tokens * tokens * 4
    total = weights + 2 * layer + streams + inside
    print(
        f"bound: {total / GB:.2f} GB = model {weights / GB:.2f} + 2 x layer {layer / GB:.3f} + "
        f"activations {(streams + inside) / GB:.3f}"
    )
    return total


def report(method: str, rounds: dict[str, list[Measured]], empty: int, bound: float) -> None:
    middle = {
        name: Measured(
            statistics.median(m.seconds for m in measured),
            int(statistics.median(m.peak_bytes for m in measured)),
        )
        for name, measured in rounds.items()
        if measured
    }
    ours = middle["ours"]
    line = f"{method}: {ours.seconds:.1f} s, peak {ours.peak_bytes / GB:.2f} GB"
    if direct := middle.get("direct"):
        time, memory = ours.seconds / direct.seconds, ours.peak_bytes / direct.peak_bytes
        line += f"; direct {direct.seconds:.1f} s, {direct.peak_bytes / GB:.2f} GB"
        line += f"; ratio {time:.2f} in time, {memory:.2f} in memory"
    over = (ours.peak_bytes - empty) / bound
    print(
        f"{line}; {(ours.peak_bytes - empty) / GB:.2f} GB over the libraries = {over:.2f} of the bound",
        flush=True,
    )


if __name__ == "__main__":
    main()
