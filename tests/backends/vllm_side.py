"""Stages by vLLM, run by vLLM's own interpreter: python vllm_side.py REQUEST.json ANSWER.json

REQUEST: ``[[the arguments of `holdfast`, …], …]``. ANSWER: of each, ``{"prompts": [[token id, …], …], "cached": n}``,
what vLLM was given, and how many tokens of it were taken from the prefix cache; or ``{"error": message}``. With
ENGINE_STEP it reads so many tokens at a time.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from holdfast.cli import app
from holdfast.errors import HoldfastError
from holdfast.evaluation.vllm_backend import Vllm

given: list[list[int]] = []
cached: list[int] = []
started = Vllm.started


def watched(self: Vllm) -> Any:
    """The engine, whose outputs say what it was asked."""
    if "ENGINE_STEP" in os.environ:
        self.options["max_num_batched_tokens"] = int(os.environ["ENGINE_STEP"])
    engine = started(self)
    step = engine.step

    def outputs() -> list[Any]:
        found = step()
        given.extend(list(output.prompt_token_ids) for output in found)
        cached.extend(output.num_cached_tokens or 0 for output in found)
        return found

    engine.step = outputs
    return engine


def main() -> None:
    Vllm.started = watched  # type: ignore[method-assign]
    answers: list[dict[str, Any]] = []
    for arguments in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        given.clear()
        cached.clear()
        try:
            app(arguments, standalone_mode=False)
            answers.append({"prompts": list(given), "cached": sum(cached)})
        except HoldfastError as error:
            answers.append({"error": str(error)})
        Path(sys.argv[2]).write_text(json.dumps(answers), encoding="utf-8")


if __name__ == "__main__":
    main()
