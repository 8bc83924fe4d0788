"""How long work takes: what rates are made of, and what comes of them."""

from pathlib import Path
from typing import Any

import pytest
from holdfast.cluster.rates import fitted, shipped, taken
from holdfast.cluster.sizes import size_of
from holdfast.cluster.work import Work
from real_configs import LLAMA_2_7B, REAL

CONFIG = REAL["Llama-3.1-8B"][1]


@pytest.mark.parametrize("text", ["", "s\n", "s\tmax_rss\nNA\t1\n", "other\n1\n"])
def test_a_damaged_benchmark_file_counts_as_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "job.tsv").write_text(text)
    assert taken(tmp_path / "job.tsv") is None
    assert taken(tmp_path / "missing.tsv") is None


def test_rates_are_fitted_to_what_jobs_took() -> None:
    size = size_of(CONFIG)
    done = [
        (Work("compress", 1000.0, method="wanda"), size, 100.0),
        (Work("compress", 3000.0, method="wanda"), size, 280.0),
        (Work("compress", method="rtn"), size, 40.0),
    ]
    found = fitted(done, start=10.0)
    assert found["wanda"].tokens == pytest.approx((90 + 270) / (4 * size.active / 1e9), rel=0.01)
    assert found["rtn"].weights == pytest.approx(30 / (size.parameters / 1e9), rel=0.01)
    assert {name: rate.jobs for name, rate in found.items()} == {"wanda": 2, "rtn": 1}
    no_longer_than_its_start = [(Work("compress", method="fp8"), size, 7.0)]
    assert fitted(done + no_longer_than_its_start, start=10.0) == found


@pytest.mark.parametrize("method", ["magnitude", "rtn", "fp8", "llm-int8", "nf4"])
@pytest.mark.parametrize("config", [LLAMA_2_7B, REAL["Mixtral-8x7B"][1]])
def test_no_compression_takes_no_time(method: str, config: dict[str, Any]) -> None:
    size = size_of(config)
    for tokens in (0, 2 * 128 * 2048):  # fp8 may have its activations' scales calibrated
        work = Work("compress", tokens, method=method)
        assert shipped().seconds(work, size) > 10 * size.parameters / 1e9


def test_what_was_measured_comes_with_the_package() -> None:
    assert {"generate", "ability", "direction", "edit", "transfer", "tune", "wanda", "gptq"} <= set(
        shipped().stages
    )
    assert all(rate.tokens or rate.weights for rate in shipped().stages.values())


def test_a_backend_that_starts_slowly_does_so_once_a_job() -> None:
    size, own = size_of(CONFIG), shipped().stages["vllm"]
    assert own.start > 0
    seconds = [shipped().seconds(Work("generate", tokens, method="vllm"), size) for tokens in (0.0, 1000.0)]
    assert seconds[0] == shipped().start + own.start
    assert seconds[1] - seconds[0] == pytest.approx(size.active / 1e9 * own.tokens)


BILLIONS, ACTIVE = size_of(LLAMA_2_7B).parameters / 1e9, size_of(LLAMA_2_7B).active / 1e9


@pytest.mark.parametrize(
    ("work", "seconds"),
    [
        (Work("activations"), 60 + 2 * BILLIONS),
        (Work("transfer", loads=2), 60 + 4 * BILLIONS),
        (Work("activations", 1e6), 60 + 2 * BILLIONS + 2 * ACTIVE * 10),
        (Work("compress", method="rtn"), 60 + (2 + 8) * BILLIONS),
        (Work("compress", method="awq"), 60 + (2 + 200) * BILLIONS),
        (Work("generate", answers=130, new_tokens=100), 60 + 2 * BILLIONS + 3 * 100 * 0.032),
        (
            Work("generate", answers=800, new_tokens=100, method="vllm"),
            60 + 2 * BILLIONS + 60 + 80_000 * ACTIVE / 40_000,
        ),
    ],
)
def test_seconds_on_a_gpu_are_loading_passes_answers_and_what_a_compression_does(
    work: Work, seconds: float
) -> None:
    """At 1 GB/s, 100 TFLOP/s and 1 ms a layer of a decoding step for 64 answers."""
    assert shipped().seconds(work, size_of(LLAMA_2_7B), gpus=1) == pytest.approx(seconds)


def test_a_decoding_step_of_a_wide_model_reads_its_weights() -> None:
    wide = size_of(CONFIG | {"hidden_size": 16384, "intermediate_size": 65536})
    with_answers, without = (
        shipped().seconds(Work("generate", answers=n, new_tokens=10), wide, gpus=1) for n in (64, 0)
    )
    assert with_answers - without == pytest.approx(10 * 2 * wide.active / 1e12)


def test_seconds_on_a_cpu_are_a_start_for_each_model_and_the_rates() -> None:
    size, known = size_of(LLAMA_2_7B), shipped()
    rtn, generate = known.stages["rtn"].weights, known.stages["generate"].tokens
    for work, seconds in (
        (Work("compress", method="rtn"), 8 + BILLIONS * rtn),
        (Work("generate", 3000.0), 8 + ACTIVE * 3 * generate),
        (Work("judge_by_model", 3000.0, loads=2), 16 + ACTIVE * 3 * generate),  # which nobody measured
        (Work("instruct", loads=0), 8),
        (Work("compress", loads=0, method="published"), 8),  # its weights are linked
    ):
        assert known.seconds(work, size) == pytest.approx(seconds)
