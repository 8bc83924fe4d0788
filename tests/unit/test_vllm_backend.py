"""What is decided before vLLM starts, without vLLM; the real one is in tests/backends."""

from pathlib import Path
from typing import Any

import pytest
from holdfast.checkpoints import load_tokenizer
from holdfast.errors import HoldfastError
from holdfast.evaluation.generation import generate
from holdfast.evaluation.shown import Chat
from holdfast.evaluation.vllm_backend import (
    CPU_CACHE,
    cache_bytes,
    computes_in,
    generation_config,
    said,
    tensor_parallel,
)
from holdfast.files import read_json, write_json, write_jsonl
from holdfast.model_folders import STEERING
from holdfast.skeletons import model_config
from pydantic import BaseModel, ValidationError, field_validator
from tiny import tiny_llama
from transformers import LlamaConfig

RECIPE = {"max_new_tokens": 4, "backend": "vllm"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "model")


def told(model: Path, tmp_path: Path, **recipe: Any) -> str:
    write_jsonl(tmp_path / "prompts.jsonl", [{"id": "a", "text": "hello"}])
    with pytest.raises(HoldfastError) as error:
        generate(model, tmp_path / "out", {"attack": tmp_path / "prompts.jsonl"}, RECIPE | recipe)
    assert not (tmp_path / "out").exists()
    return str(error.value)


def test_where_vllm_is_not_installed_one_line_says_where_it_is(model: Path, tmp_path: Path) -> None:
    assert told(model, tmp_path) == (
        "evaluate.generate.backend: vLLM is not there (No module named 'vllm'); run "
        ".environments/vllm-cpu/bin/holdfast (made by `make environments`), or use transformers"
    )


def test_a_steered_checkpoint_is_refused(model: Path, tmp_path: Path) -> None:
    (model / STEERING).parent.mkdir()
    (model / STEERING).touch()
    assert "vLLM does not steer at run time; set evaluate.generate.backend" in told(model, tmp_path)


def test_a_temperature_that_vllm_does_not_draw_at_is_refused(model: Path, tmp_path: Path) -> None:
    assert told(model, tmp_path, temperature=3.0) == (
        "temperature 3: vLLM draws at temperatures from 0.01 to 2; "
        "choose one, or set evaluate.generate.backend: transformers"
    )


def test_auto_is_no_backend_of_a_stage(model: Path, tmp_path: Path) -> None:
    with pytest.raises(HoldfastError, match="auto is settled for a whole study"):
        generate(model, tmp_path, {}, {**RECIPE, "backend": "auto"})


W4 = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 4}}}}
W8A8 = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {"input_activations": {"num_bits": 8}}},
}


@pytest.mark.parametrize(
    ("dtype", "quantization", "on_cpu", "expected"),
    [
        ("float32", None, True, "float32"),
        ("bfloat16", None, False, "bfloat16"),
        ("bfloat16", W4, True, "bfloat16"),
        ("float32", W4, True, "float16"),
        ("float32", {"quant_method": "gptq", "bits": 4}, True, "float16"),
        ("float32", W8A8, True, "float32"),
        ("float32", W8A8, False, "float16"),
    ],
)
def test_it_computes_in_the_checkpoints_dtype_where_its_kernels_do(
    model: Path, dtype: str, quantization: dict[str, Any] | None, on_cpu: bool, expected: str
) -> None:
    config = read_json(model / "config.json") | {"dtype": dtype}
    write_json(
        model / "config.json", config | ({"quantization_config": quantization} if quantization else {})
    )
    assert computes_in(model, on_cpu=on_cpu) == expected


@pytest.mark.parametrize(
    ("heads", "shared", "gpus", "expected"),
    [(32, 8, 0, 1), (32, 8, 1, 1), (32, 8, 4, 4), (32, 8, 6, 4), (9, 3, 2, 1), (9, 3, 8, 3), (64, 8, 16, 16)],
)
def test_a_model_is_split_over_as_many_gpus_as_its_heads_allow(
    heads: int, shared: int, gpus: int, expected: int
) -> None:
    config = LlamaConfig(num_attention_heads=heads, num_key_value_heads=shared, hidden_size=64 * heads)
    assert tensor_parallel(config, gpus) == expected


def test_the_cache_holds_what_is_asked_within_the_free_memory(model: Path) -> None:
    config = LlamaConfig(
        num_hidden_layers=10, num_attention_heads=8, num_key_value_heads=4, hidden_size=512, vocab_size=64
    )
    a_token = 2 * 10 * 4 * 64
    needed = (63 + 1) * (1024 + 32) * a_token
    assert cache_bytes(config, "float32", 1024, 63) == max(4 * needed, CPU_CACHE["least"])
    assert cache_bytes(config, "bfloat16", 1024, 63) == max(2 * needed, CPU_CACHE["least"])
    assert cache_bytes(config, "float32", 8, 1) == CPU_CACHE["least"]
    assert CPU_CACHE["least"] < cache_bytes(config, "float32", 10**6, 10**4) < 10**12


def test_what_would_change_greedy_answers_and_is_not_passed_on_is_refused(model: Path) -> None:
    config = model_config(model)
    write_json(
        model / "generation_config.json", {"eos_token_id": 2, "repetition_penalty": 1.1, "temperature": 0.6}
    )
    found = generation_config(model, config)
    assert (found.eos_token_id, found.repetition_penalty) == (2, 1.1)
    write_json(model / "generation_config.json", {"no_repeat_ngram_size": 3})
    with pytest.raises(
        HoldfastError, match=r"generation_config\.json: no_repeat_ngram_size: 3 is not passed on"
    ):
        generation_config(model, config)


def test_errors_of_vllms_checks_are_told_without_their_wrapping() -> None:
    class Options(BaseModel):
        length: int

        @field_validator("length")
        @classmethod
        def fits(cls, value: int) -> int:
            raise ValueError(f"max_model_len ({value}) is too long\nand more")

    with pytest.raises(ValidationError) as error:
        Options(length=9)
    assert said(error.value) == "max_model_len (9) is too long"
    assert said(RuntimeError("no kernel\nat all")) == "no kernel"
    assert said(RuntimeError()) == "RuntimeError"


def test_token_ids_are_those_of_the_padded_batch(model: Path) -> None:
    tokenizer = load_tokenizer(model)
    form = Chat(tokenizer, {"thinking": None, "system_prompt": None}, "Sure")
    texts = ["hello", "How do I bake a loaf of bread at home?"]
    batch = form.encoded(texts)
    short, long = form.token_ids(texts)
    assert long == batch["input_ids"][1].tolist()
    padding = len(long) - len(short)
    assert batch["input_ids"][0].tolist() == [tokenizer.pad_token_id] * padding + short
    assert form.token_ids(texts[:1]) == [short]
