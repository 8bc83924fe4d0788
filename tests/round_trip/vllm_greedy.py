"""Greedy tokens of checkpoints in vLLM: run by vLLM's own interpreter, which has no holdfast.

Usage: ``python vllm_greedy.py REQUEST.json ANSWERS.jsonl``

REQUEST: ``{"prompts": [[token id, …], …], "max_new_tokens": n, "end_tokens": [id, …], "dtypes": [name, …],
"checkpoints": {name: folder, …}}``. Of the dtypes the first that vLLM's kernels take is used. ANSWERS gets one
line a checkpoint as soon as it has answered: ``{"name", "version", "dtype", "tokens": [[id, …], …],
"logprobs": [[of each token, …], …]}`` or ``{"name", "version", "error"}``, the error that the last dtype gives.
"""

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

# In this process, so that vLLM's own error is the one recorded and not that its engine did not start.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import vllm
from vllm.distributed import cleanup_dist_env_and_memory


def greedy(folder: str, dtype: str, request: dict[str, Any]) -> dict[str, Any]:
    prompts, new = request["prompts"], request["max_new_tokens"]
    model = vllm.LLM(
        folder,
        dtype=dtype,
        enforce_eager=True,
        skip_tokenizer_init=True,
        max_model_len=max(map(len, prompts)) + new,
        max_num_seqs=len(prompts),
    )
    settings = vllm.SamplingParams(
        temperature=0, max_tokens=new, logprobs=0, detokenize=False, stop_token_ids=request["end_tokens"]
    )
    outputs = model.generate([{"prompt_token_ids": ids} for ids in prompts], settings, use_tqdm=False)
    answers = [output.outputs[0] for output in outputs]
    return {
        "dtype": dtype,
        "tokens": [list(a.token_ids) for a in answers],
        "logprobs": [
            [step[token].logprob for token, step in zip(a.token_ids, a.logprobs, strict=True)]
            for a in answers
        ],
    }


def answer(folder: str, request: dict[str, Any]) -> dict[str, Any]:
    error = ""
    for dtype in request["dtypes"]:
        try:
            return greedy(folder, dtype, request)
        except Exception as refusal:  # whatever vLLM refuses a format with is what the table must say
            error = f"{type(refusal).__name__}: {refusal}"
        finally:
            gc.collect()
            cleanup_dist_env_and_memory()
    return {"error": error}


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    for name, folder in request["checkpoints"].items():
        record = {"name": name, "version": vllm.__version__, **answer(folder, request)}
        with Path(sys.argv[2]).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
