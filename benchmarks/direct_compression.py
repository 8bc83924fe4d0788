"""llm-compressor as its own README calls it: what benchmarks/compression.py compares Holdfast with.

python benchmarks/direct_compression.py MODEL OUT --method METHOD --calibration FILE.jsonl --samples N --tokens N
"""

import argparse
import json
from pathlib import Path

from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from transformers import AutoModelForCausalLM, AutoTokenizer

W4 = {
    "targets": ["Linear"],
    "weights": {"num_bits": 4, "strategy": "group", "group_size": 64, "symmetric": True},
}
W4_ASYMMETRIC = {"targets": ["Linear"], "weights": {**W4["weights"], "symmetric": False}}
HEAD = {"ignore": ["lm_head"]}
RECIPES = {
    "rtn": lambda: QuantizationModifier(config_groups={"group_0": W4}, **HEAD),
    "gptq": lambda: GPTQModifier(config_groups={"group_0": W4}, **HEAD),
    "awq": lambda: [AWQModifier(), QuantizationModifier(config_groups={"group_0": W4_ASYMMETRIC}, **HEAD)],
    "smoothquant": lambda: [
        SmoothQuantModifier(smoothing_strength=0.5),
        QuantizationModifier(targets="Linear", scheme="W8A8", **HEAD),
    ],
    "fp8": lambda: QuantizationModifier(targets="Linear", scheme="FP8_DYNAMIC", **HEAD),
    "wanda": lambda: WandaPruningModifier(sparsity=0.5, targets=["Linear"], **HEAD),
    "wanda-2of4": lambda: WandaPruningModifier(
        sparsity=0.5, mask_structure="2:4", targets=["Linear"], **HEAD
    ),
    "sparsegpt": lambda: SparseGPTModifier(sparsity=0.5, targets=["Linear"], **HEAD),
    "sparsegpt-2of4": lambda: SparseGPTModifier(
        sparsity=0.5, mask_structure="2:4", targets=["Linear"], **HEAD
    ),
}
UNCALIBRATED = ("rtn", "fp8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--method", choices=RECIPES, required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--samples", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    given = parser.parse_args()
    if given.method == "awq":
        # It pins memory for an accelerator that is not there, and stops.
        IntermediatesCache.pin_memory = lambda *_: None  # type: ignore[method-assign]
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    options = {}
    if given.method not in UNCALIBRATED:
        texts = [json.loads(line)["text"] for line in given.calibration.read_text().splitlines()]
        encoded = tokenizer(texts[: given.samples], truncation=True, max_length=given.tokens)
        options = {
            "dataset": Dataset.from_dict(dict(encoded)),
            "num_calibration_samples": given.samples,
            "max_seq_length": given.tokens,
        }
    oneshot(model=model, recipe=RECIPES[given.method](), **options)
    model.save_pretrained(given.out, save_compressed=True)
    tokenizer.save_pretrained(given.out)


if __name__ == "__main__":
    main()
