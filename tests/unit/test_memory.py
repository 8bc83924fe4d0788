"""Passes that meet the end of the GPU's memory: the same numbers, in smaller batches."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from holdfast.architectures import decoder_layers
from holdfast.checkpoints import load_model, load_tokenizer
from holdfast.errors import HoldfastError
from holdfast.methods.edit_candidates import matrix_inputs
from holdfast.refusal.activations import block_inputs
from holdfast.refusal.scores import RefusalScore, first_answer_token, learn_openings
from planted import SETTINGS
from tiny import TEXTS, tiny_llama

Pass = Callable[[Any, Any, list[str]], torch.Tensor]


def activations(model: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    return block_inputs(model, tokenizer, texts, SETTINGS)


def refusal_scores(model: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    return RefusalScore(tokenizer, SETTINGS, learn_openings([], tokenizer), "phrases")(model, texts)


def first_tokens(model: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    return first_answer_token(model, tokenizer, texts, SETTINGS)


def inputs_of_matrices(model: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    keys = [(layer, name) for layer in (0, 3) for name in ("o_proj", "down_proj")]
    found = matrix_inputs(model, tokenizer, texts, SETTINGS, keys)
    # By length, not in the order of the prompts, and so the same in smaller batches.
    return torch.cat([found[key].flatten() for key in keys])


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = tiny_llama(tmp_path_factory.mktemp("model") / "tiny", layers=4)
    return load_model(folder), load_tokenizer(folder)


@pytest.fixture
def room(loaded: tuple[Any, Any]) -> Iterator[dict[str, int]]:
    """Rows that fit; of more, the pass ends in its third block, when the hooks before it have run."""
    left = {"rows": 1000, "failed": 0}

    def full(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if len(args[0] if args else kwargs["hidden_states"]) > left["rows"]:
            left["failed"] += 1
            raise torch.cuda.OutOfMemoryError

    handle = decoder_layers(loaded[0])[2].register_forward_pre_hook(full, with_kwargs=True)
    yield left
    handle.remove()


@pytest.mark.parametrize("run", [activations, refusal_scores, first_tokens, inputs_of_matrices])
def test_batches_are_halved_when_memory_runs_out(
    loaded: tuple[Any, Any], room: dict[str, int], run: Pass
) -> None:
    texts = [text[:cut] for cut in (12, 20, 31) for text in TEXTS]
    whole = run(*loaded, texts)
    assert whole.abs().max() > 0
    room["rows"] = 5
    torch.testing.assert_close(run(*loaded, texts), whole, atol=1e-4, rtol=1e-4)
    assert room["failed"]
    room["rows"] = 0
    with pytest.raises(HoldfastError, match="one prompt does not fit in memory"):
        run(*loaded, texts)
