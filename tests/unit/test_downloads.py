"""What the workflow brings from the hub, and that nothing else talks to it."""

import json
import os
import re
from pathlib import Path

import pytest
from workflows import ROOT, SUMMED_UP, Workflow, new_workflow, study, with_judge

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def of_the_hub(config: dict) -> None:
    """Everything that can come from the hub does."""
    hub = {"source": f"hub:tests/data@{COMMIT}", "split": "test"}
    config["models"]["tiny"]["source"] = f"hub:tests/tiny@{COMMIT}"
    config["compressions"] = {"dense": {}, "there": {"source": f"hub:tests/quantized@{COMMIT}"}}
    config["methods"] = {"as-is": {}}
    config["prompts"]["attack"] = hub
    with_judge(config)
    config["evaluate"]["judge_models"]["guard"]["source"] = f"hub:tests/guard@{COMMIT}"
    config["evaluate"]["perplexity"] = {**hub, "window": 16}
    config["evaluate"]["zero_shot"]["tasks"] = ["boolq", "holdfast_choice"]


@pytest.fixture
def from_hub(tmp_path: Path) -> Workflow:
    workflow, config = new_workflow(tmp_path / "fresh"), study()
    of_the_hub(config)
    workflow.write(config)
    return workflow


def test_what_comes_from_the_hub_is_brought_by_local_rules_before_all_else(from_hub: Workflow) -> None:
    run = from_hub.snakemake("--dry-run", "--quiet", "host")
    shown = run.stdout + run.stderr
    assert run.returncode == 0, shown
    brought = dict(
        re.findall(r"holdfast download results/small/downloads/(\S+)\.json --recipe \'(.*?)\'", shown)
    )
    sources = {
        f"tests--{name}@{COMMIT}": f"hub:tests/{name}@{COMMIT}" for name in ("tiny", "quantized", "guard")
    }
    assert {k: json.loads(v).get("source") for k, v in brought.items()} == {
        **sources,
        "zero-shot-tasks": None,
    }
    assert json.loads(brought["zero-shot-tasks"])["tasks"] == ["boolq"]
    rules = dict(re.findall(r"^rule (\w+):\n(.*?)(?=^\S)", rules_text(), re.M | re.S))
    assert [
        name for name in ("download", "prompts", "held_out") if "localrule: True" not in rules[name]
    ] == []
    assert "localrule" not in rules["fetch"]


def test_one_target_brings_all_that_needs_a_network_and_no_more(from_hub: Workflow) -> None:
    before = from_hub.planned()
    run = from_hub.snakemake("--cores", "1", "--quiet", "all", "--", "brought")
    assert run.returncode == 0, run.stdout + run.stderr
    lines = (from_hub.folder / "environment.jsonl").read_text().splitlines()
    assert {json.loads(line)["stage"] for line in lines} == {"download", "prompts", "text"}
    left = from_hub.planned()
    assert {name: before[name] for name in before.keys() - left.keys()} == {
        "download": 4,
        "held_out": 1,
        "prompts": 7,
    }
    assert left == {name: count for name, count in before.items() if name in left}


def rules_text() -> str:
    return "".join(file.read_text() + "#\n" for file in sorted((ROOT / "rules").glob("*.smk")))


def test_jobs_run_with_the_hub_switched_off_and_downloads_with_the_users_switches(from_hub: Workflow) -> None:
    run = from_hub.snakemake("--cores", "2", "--quiet", "all")
    assert run.returncode == 0, run.stdout + run.stderr
    lines = (from_hub.folder / "environment.jsonl").read_text().splitlines()
    seen = [json.loads(line) for line in lines]
    assert {"download", "text", "fetch", "compress", "generate", "ability"} <= {s["stage"] for s in seen}
    assert {(s["HF_HUB_OFFLINE"], s["HF_DATASETS_OFFLINE"]) for s in seen} == {("1", "1")}
    # The commands that download read this one (holdfast.hub.switch_back).
    assert {s["HOLDFAST_OFFLINE"] for s in seen} == {os.environ.get("HF_HUB_OFFLINE", "")}
    results = from_hub.folder / "results/small"
    text = '"perplexity": {"source": "file:results/small/prompts/held_out.txt", "window": 16}'
    assert text in (results / "tiny/dense/as-is/ability/perplexity.json").read_text()
    assert f'"hub:tests/data@{COMMIT}"' in (results / "prompts/held_out.txt").read_text()
    assert '"held_out": {"source": "file:results' in (results / "prompts/disjoint.json").read_text()
    assert from_hub.planned() == {}


def test_another_revision_is_downloaded_and_fetched(from_hub: Workflow) -> None:
    run = from_hub.snakemake("--cores", "2", "--quiet", "all")
    assert run.returncode == 0, run.stdout + run.stderr
    config = study()
    of_the_hub(config)
    config["compressions"]["there"]["source"] = "hub:tests/quantized@" + COMMIT[::-1]
    from_hub.write(config)
    one = dict.fromkeys(("activations", "direction", "compare", "transfer", "mediate"), 1)
    cell = dict.fromkeys(("generate", "judge", "judge_by_model", "ability"), 1)
    assert from_hub.planned() == {"download": 1, "compress": 1, **one, **cell, **SUMMED_UP}
