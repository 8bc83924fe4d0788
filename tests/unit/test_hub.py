"""Downloads by the hub's own client from a stand-in on 127.0.0.1: revisions, breaks, checksums, tokens, no network."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hub_stand_in import COMMIT, REPOSITORY, Hub, hub
from tiny import tiny_llama

SOURCE = f"hub:{REPOSITORY}@{COMMIT}"
SECRET = "hf_SecretOfThisTest"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("served") / "tiny"
    tiny_llama(folder)
    return folder


@pytest.fixture
def served(model: Path) -> Iterator[Hub]:
    with hub(model) as server:
        yield server


def holdfast(
    folder: Path, server: Hub, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The command in an environment of its own: the client reads its switches once, when it is imported."""
    inherited = {
        k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_", "HOLDFAST_"))
    }
    own = {"HF_ENDPOINT": server.address, "HF_HOME": str(folder / "cache"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    return subprocess.run(
        [sys.executable, "-m", "holdfast", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=inherited | own | environment,
    )


def download(folder: Path, server: Hub, source: str = SOURCE, **environment: str) -> tuple[int, str]:
    recipe = json.dumps({"source": source})
    done = holdfast(folder, server, "download", "record.json", "--recipe", recipe, **environment)
    return done.returncode, done.stdout + done.stderr


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "record.json").read_text())
    return found


def test_a_branch_is_recorded_as_its_commit_and_every_file_by_its_checksum(
    served: Hub, model: Path, tmp_path: Path
) -> None:
    code, told = download(tmp_path, served, f"hub:{REPOSITORY}@main")
    assert code == 0, told
    assert record(tmp_path)["revision"] == COMMIT
    weights = record(tmp_path)["files"]["model.safetensors"]
    assert weights == {
        "bytes": (model / "model.safetensors").stat().st_size,
        "sha256": served.etag("model.safetensors"),
    }
    assert "config.json" in record(tmp_path)["files"]


def test_what_was_downloaded_becomes_a_checkpoint_with_the_hub_switched_off(
    served: Hub, model: Path, tmp_path: Path
) -> None:
    assert download(tmp_path, served)[0] == 0
    served.asked.clear()
    recipe = json.dumps({"source": SOURCE, "dtype": "float32"})
    done = holdfast(tmp_path, served, "fetch", "checkpoint", "--recipe", recipe, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "checkpoint/model.safetensors").read_bytes() == (
        model / "model.safetensors"
    ).read_bytes()
    assert json.loads((tmp_path / "checkpoint/provenance.json").read_text())["revision"] == COMMIT
    assert served.asked == []


def test_without_a_download_a_job_names_what_is_missing_and_the_command_that_brings_it(
    served: Hub, tmp_path: Path
) -> None:
    recipe = json.dumps({"source": SOURCE})
    done = holdfast(tmp_path, served, "fetch", "checkpoint", "--recipe", recipe, HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"holdfast: {SOURCE}: not downloaded, and the hub is switched off (HF_HUB_OFFLINE); bring it where there is a "
        f"network: holdfast download RECORD.json --recipe '{recipe}'"
    )
    assert "Traceback" not in done.stderr
    assert served.asked == []


def test_a_download_has_back_what_the_user_says_of_the_hub(served: Hub, tmp_path: Path) -> None:
    off = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"), "1")
    assert download(tmp_path, served, **off, HOLDFAST_OFFLINE="1")[0] == 2
    assert served.asked == []
    assert download(tmp_path, served, **off, HOLDFAST_OFFLINE="")[0] == 0


def test_a_broken_connection_is_taken_up_where_it_broke(served: Hub, tmp_path: Path) -> None:
    served.files["model.safetensors"] = os.urandom(25_000_000)  # the client reads 10 MiB at a time
    served.break_once["model.safetensors"] = 15_000_000
    code, told = download(tmp_path, served)
    assert code == 0, told
    first, second = served.downloads("model.safetensors")
    assert first is None
    assert int(str(second).removeprefix("bytes=").rstrip("-")) >= 10 * 2**20
    assert record(tmp_path)["files"]["model.safetensors"]["sha256"] == served.etag("model.safetensors")


def test_a_download_again_brings_only_what_is_not_there(served: Hub, tmp_path: Path) -> None:
    served.damaged.add("model.safetensors")
    assert download(tmp_path, served)[0] == 2
    served.damaged.clear()
    served.asked.clear()
    assert download(tmp_path, served)[0] == 0
    assert served.downloads("model.safetensors") == [None]
    assert served.downloads("config.json") == []


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_another_checksum_is_told_and_the_file_removed(
    served: Hub, tmp_path: Path, name: str, links: bool
) -> None:
    served.damaged.add(name)
    code, told = download(tmp_path, served, **({} if links else {"HF_HUB_DISABLE_SYMLINKS": "1"}))
    assert code == 2
    assert f"holdfast: {SOURCE}: {name} has another checksum than the hub says; run it again" in told
    assert not (tmp_path / "record.json").exists()
    assert not list((tmp_path / "cache").rglob(name))


def test_without_symbolic_links_a_whole_download_is_recorded(served: Hub, tmp_path: Path) -> None:
    code, told = download(tmp_path, served, HF_HUB_DISABLE_SYMLINKS="1")
    assert code == 0, told
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_symlink()]
    assert record(tmp_path)["files"]["model.safetensors"]["sha256"] == served.etag("model.safetensors")


def test_content_in_the_clients_shared_store_is_what_the_hub_says(served: Hub, tmp_path: Path) -> None:
    """What hf_xet brings: blobs/ETAG is a link itself, to a file of the whole cache under Xet's own hash."""
    from huggingface_hub.utils._shared_blobs import publish_blob_to_shared_store

    assert download(tmp_path, served)[0] == 0
    (tmp_path / "record.json").unlink()
    cache, name = tmp_path / "cache/hub", served.etag("model.safetensors")
    [blob] = cache.glob(f"models--*/blobs/{name}")
    size, stored = blob.stat().st_size, {"cache_dir": str(cache), "xet_hash": "0a" * 32}
    assert publish_blob_to_shared_store(
        blob_path=str(blob), expected_size=size, replace_existing=False, **stored
    )
    assert blob.is_symlink()
    code, told = download(tmp_path, served)
    assert code == 0, told
    assert record(tmp_path)["files"]["model.safetensors"] == {"bytes": size, "sha256": name}
    damaged = blob.resolve()
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    code, told = download(tmp_path, served)
    assert code == 2
    assert "has another checksum than the hub says" in told
    assert not damaged.exists()
    assert download(tmp_path, served)[0] == 0


def test_a_gated_model_asks_for_a_token_which_stands_nowhere(served: Hub, tmp_path: Path) -> None:
    served.token = SECRET
    code, told = download(tmp_path, served)
    assert code == 2
    assert "cannot be fetched (GatedRepoError: 401" in told
    assert "HF_TOKEN" in told
    assert "Traceback" not in told
    code, told = download(tmp_path, served, HF_TOKEN=SECRET)
    assert code == 0, told
    assert served.tokens == {f"Bearer {SECRET}"}
    wrong = download(tmp_path, served, source=f"hub:{REPOSITORY}@other", HF_TOKEN=SECRET)
    assert wrong[0] == 2
    written = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert written
    assert not [p for p in written if SECRET.encode() in p.read_bytes()]
    assert SECRET not in told + wrong[1]


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ({}, "names no one thing to download"),
        ({"source": SOURCE, "tasks": ["boolq"]}, "names no one thing to download"),
        ({"source": "path:model"}, "is not a source"),
        ({"source": "hub:a/b"}, "has no revision"),
    ],
)
def test_a_bad_recipe_is_told_in_one_line(
    served: Hub, tmp_path: Path, recipe: dict[str, Any], told: str
) -> None:
    done = holdfast(tmp_path, served, "download", "record.json", "--recipe", json.dumps(recipe))
    assert done.returncode == 2
    assert told in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_the_record_of_task_data_says_what_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness's own lookup needs the network; what it returns is made here of files, by the same library."""
    import lm_eval.tasks
    from datasets import load_dataset
    from holdfast.hub import download_tasks

    def found(rows: int) -> dict[str, Any]:
        lines = [json.dumps({"question": f"{n}?"}) for n in range(rows)]
        (tmp_path / "data.jsonl").write_text("\n".join(lines))
        files, cache = {"test": str(tmp_path / "data.jsonl")}, str(tmp_path / f"cache-{rows}")
        data = load_dataset("json", data_files=files, cache_dir=cache)
        monkeypatch.setattr(
            lm_eval.tasks,
            "get_task_dict",
            lambda *_: {"t": SimpleNamespace(dataset=data, DATASET_PATH="org/data", DATASET_NAME=None)},
        )
        return download_tasks(["t"])["t"]

    first, second = found(3), found(4)
    assert first["dataset"] == ["org/data", None]
    assert first["splits"]["test"]["rows"] == 3
    [checksum] = first["splits"]["test"]["sha256"]
    [arrow] = (tmp_path / "cache-3").rglob("*.arrow")
    assert checksum == hashlib.sha256(arrow.read_bytes()).hexdigest()
    assert [checksum] != second["splits"]["test"]["sha256"]
