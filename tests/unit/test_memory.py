"""Memory of GPUs, main memory and disk that jobs ask for, counted by hand for Llama 2 7B in float16."""

from typing import Any

import pytest
from asked import CELL, OF_RULE, REFUSAL, asked
from holdfast.cluster.needs import graphics_memory, main_memory
from holdfast.cluster.sizes import Size, size_of
from holdfast.cluster.work import COUNTERS, Work
from holdfast.config import Study, load_study
from holdfast.config.backend import answered_by
from holdfast.config.compressions import Quantize
from real_configs import LLAMA_2_7B, REAL

WIDTH, LAYERS, VOCABULARY = 4096, 32, 32000
LINEARS = LAYERS * (4 * WIDTH**2 + 3 * WIDTH * 11008)
REST = 2 * VOCABULARY * WIDTH + 65 * WIDTH  # embeddings, head, norms
WEIGHTS = 2 * (LINEARS + REST)  # bytes
CACHE = 2 * 2 * LAYERS * WIDTH  # bytes of keys and values a token
SPREAD = 2 * 24 * WIDTH  # bytes of a layer's activations a token
LOGITS = 16 * VOCABULARY * 8
EMBEDDING = 2 * VOCABULARY * WIDTH * 4  # with the head, in float32
GB = 1e9
ANSWERED = 48 + 512  # tokens of a prompt and its answer


def working(tokens: int, cached: int) -> float:
    """Bytes beside the weights: the cache of so many tokens, and 16 sequences of ``tokens`` going through."""
    return cached * CACHE + 16 * tokens * SPREAD + LOGITS


ANSWERING = working(ANSWERED, 16 * ANSWERED)
CALIBRATING = working(2048, 2048) + WEIGHTS / 8
PASSING = working(48, 16 * 48)
TRAINING = WEIGHTS + 8 * ANSWERED * (
    LAYERS * 2 * SPREAD + 12 * VOCABULARY
)  # beside float16: all is in float32


@pytest.fixture(scope="module")
def study() -> Study:
    return load_study(REFUSAL)


@pytest.fixture(scope="module")
def size() -> Size:
    return size_of(LLAMA_2_7B)


@pytest.mark.parametrize(
    ("stage", "names", "beside"),
    [
        ("generate", {}, ANSWERING),
        ("activations", {}, PASSING),
        ("compress", {}, CALIBRATING),
        ("compress", {"compression": "rtn-w4"}, PASSING),
        ("tune", {}, TRAINING),
    ],
)
def test_memory_beside_the_weights(
    stage: str, names: dict[str, str], beside: float, study: Study, size: Size
) -> None:
    names = OF_RULE.get(stage, CELL) | names
    work = COUNTERS[stage](study, names, size)
    assert graphics_memory(work, size, "float16") == WEIGHTS + beside
    copies = {"compress": 2.5, "tune": 2.0}.get(stage, 1.5)
    without_gpu = asked(study, LLAMA_2_7B, stage, names=names, gpu_memory_gb=0.0)
    assert without_gpu.mem_mb == pytest.approx((2 * GB + copies * WEIGHTS + beside) / 1e6, abs=1)


def test_bfloat16_is_trained_as_it_is(study: Study, size: Size) -> None:
    work = COUNTERS["tune"](study, OF_RULE["tune"], size)
    assert 2 * graphics_memory(work, size, "bfloat16") == pytest.approx(
        graphics_memory(work, size, "float16"), rel=0.05
    )


@pytest.mark.parametrize(
    ("stage", "megabytes"),
    [
        ("generate", 8 * GB + 1.25 * WEIGHTS),
        ("compress", 8 * GB + 2 * WEIGHTS),
        ("edit", 8 * GB + 2 * WEIGHTS),
        ("tune", 8 * GB + 1.5 * WEIGHTS),
        ("fetch", 2 * GB + 2 * EMBEDDING),
        ("instruct", 2 * GB),
    ],
)
def test_main_memory_beside_gpus(stage: str, megabytes: float, study: Study) -> None:
    assert asked(study, LLAMA_2_7B, stage).mem_mb == pytest.approx(megabytes / 1e6, abs=1)


def test_a_checkpoint_that_is_made_is_made_in_float32(size: Size) -> None:
    made = main_memory(Work("fetch", method="made"), size, "float16", 0)
    assert made == 2 * GB + 2.5 * 4 * (LINEARS + REST)


def test_vllm_has_room_for_256_answers_on_a_cpu(study: Study) -> None:
    by_vllm = answered_by(study, "vllm")
    for attack, rows in (("opening", 100), ("drawn", 256)):
        found = asked(by_vllm, LLAMA_2_7B, "attack", names={"attack": attack}, gpu_memory_gb=0.0)
        needed = 4 * GB + 1.5 * WEIGHTS + working(ANSWERED, rows * ANSWERED)
        assert found.mem_mb == pytest.approx(needed / 1e6, abs=1)


def stored(bits: float) -> float:
    return 2 * REST + LINEARS * bits / 8


@pytest.mark.parametrize(
    ("compression", "bits"),
    [
        ("wanda-50", 16),
        ("gptq-w4", 4 + 32 / 128),
        ("smoothquant-w8a8", 8),
        ("fp8", 8),
        ("int8", 8),
        ("nf4", 4.5),
    ],
)
def test_compressed_checkpoints_on_disk(compression: str, bits: float, study: Study) -> None:
    found = asked(study, LLAMA_2_7B, "compress", names={"compression": compression})
    assert found.disk_mb == pytest.approx(stored(bits) / 1e6, abs=1)


@pytest.mark.parametrize(("bits", "in_bits"), [(2, 4), (3, 4), (4, 4), (5, 8), (8, 8)])
def test_bits_that_no_number_has_are_stored_in_the_next_larger(bits: int, in_bits: int, study: Study) -> None:
    section = Quantize(quantize="rtn", bits=bits, group_size=64)
    changed = study.model_copy(update={"compressions": {**study.compressions, "own": section}})
    found = asked(changed, LLAMA_2_7B, "compress", names={"compression": "own"})
    assert found.disk_mb == pytest.approx(stored(in_bits + 32 / 64) / 1e6, abs=1)


MIXTRAL = 2 * size_of(REAL["Mixtral-8x7B"][1]).parameters


@pytest.mark.parametrize(
    ("stage", "config", "compression", "written"),
    [
        ("fetch", LLAMA_2_7B, "gptq-w4", WEIGHTS),
        ("tune", LLAMA_2_7B, "gptq-w4", WEIGHTS),  # what is tuned is stored dense
        ("edit", LLAMA_2_7B, "gptq-w4", 2 * 500e6),  # two shards, or an eighth of all
        ("edit", REAL["Mixtral-8x7B"][1], "wanda-50", MIXTRAL / 8),
        ("edit", LLAMA_2_7B | {"num_hidden_layers": 1}, "wanda-50", 2 * (LINEARS / 32 + REST - 62 * WIDTH)),
        ("activations", LLAMA_2_7B, "gptq-w4", 2 * 128 * 6 * LAYERS * WIDTH * 4),
        ("generate", LLAMA_2_7B, "gptq-w4", 10e6),
    ],
)
def test_disk_that_stages_fill(
    stage: str, config: dict[str, Any], compression: str, written: float, study: Study
) -> None:
    names = OF_RULE.get(stage, CELL) | {"compression": compression}
    assert asked(study, config, stage, names=names).disk_mb == pytest.approx(written / 1e6, abs=1)
