"""``holdfast plan``: what is left of a study, what it will cost, and what a change runs again and why."""

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from holdfast.cli import app
from holdfast.cluster import jobs as listing
from holdfast.cluster.jobs import FOLLOWS, NEW, Job, changes, why
from holdfast.cluster.needs import Requests
from holdfast.cluster.plan import Plan, cells, longest, plan, planned
from holdfast.cluster.plan_table import lines, rendered
from holdfast.cluster.sizes import Size, size_of
from holdfast.config import load_study
from holdfast.config.reading import ConfigError
from holdfast.errors import HoldfastError
from real_configs import REAL
from rich.console import Console
from typer.testing import CliRunner
from workflows import ROOT, Workflow, new_workflow, study

REFUSAL = Path(__file__).parents[2] / "config/refusal.yaml"
CONFIG = REAL["Llama-3.1-8B"][1]
OWN = {
    "generate",
    "judge",
    "ability",
    "edit",
    "compress",
    "activations",
    "direction",
    "mediate",
    "transfer",
    "compare",
}
SUMMED_UP = {"tables", "figures", "report"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    """A whole study of a model whose config says its size, run once with stages that compute nothing."""
    workflow = new_workflow(tmp_path_factory.mktemp("plan") / "finished")
    (workflow.folder / "model/config.json").write_text(json.dumps(CONFIG))
    run = workflow.snakemake("--cores", "2", "--quiet", "all")
    assert run.returncode == 0, run.stdout + run.stderr
    return workflow


Replanned = Callable[[Callable[[dict[str, Any]], None]], Plan]


@pytest.fixture
def replanned(finished: Workflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Replanned:
    """The plan of a copy of the finished study after a change of its config."""

    def of(change: Callable[[dict[str, Any]], None]) -> Plan:
        shutil.copytree(finished.folder, tmp_path / "copy", symlinks=True)
        config: dict[str, Any] = study()
        change(config)
        Workflow(tmp_path / "copy").write(config)
        monkeypatch.chdir(tmp_path / "copy")
        said: list[str] = []
        found = plan(Path("study.yaml"), said.append)
        assert said == []
        return found

    return of


def left(found: Plan) -> dict[str, int]:
    return {stage.name: stage.left for stage in found.stages if stage.left}


def test_of_a_finished_study_nothing_is_left(replanned: Replanned) -> None:
    found = replanned(lambda config: None)
    assert left(found) == found.reasons == found.cells == {}
    assert (found.path, found.path_seconds) == ([], 0)
    assert (found.total("gpu_hours"), found.total("cpu_hours"), found.total("disk_mb")) == (0, 0, 0)
    assert list(lines(found)) == ["nothing left to run"]
    jobs = {stage.name: stage.jobs for stage in found.stages}
    assert (jobs["generate"], jobs["direction"], jobs["edit"], jobs["prompts"]) == (7, 3, 4, 7)
    # Every job has been measured, and what was predicted of it stands beside it.
    assert all(stage.compared == stage.jobs for stage in found.stages)
    assert all(stage.measured > 0 and stage.predicted > 0 for stage in found.stages)


def test_a_new_model_runs_exactly_its_cells(replanned: Replanned) -> None:
    found = replanned(
        lambda config: config["models"].update(second={"source": "path:model", "dtype": "float32"})
    )
    compressed = [
        f"second/{c}/{m}" for c in ("magnitude-20", "wanda-40") for m in ("as-is", "aird", "random-edit")
    ]
    assert set(found.cells) == {"second/dense/as-is", *compressed}
    assert {tuple(reasons) for reasons in found.cells.values()} == {(NEW,)}
    jobs = 1 + 2 * 3 + 3 * 3 + 4 + 7 * 3  # of a model, a compression, a checkpoint, an edit, a cell
    assert found.reasons == {NEW: jobs, "other inputs than before": 1, FOLLOWS: 2}
    assert set(left(found)) == OWN | SUMMED_UP | {"fetch"}
    assert found.path[0] == "fetch"
    assert found.path[-3:] == ["tables", "figures", "report"]
    # What is left is predicted by what the study itself took, a fraction of a second a job.
    assert 0 < found.total("cpu_hours") + found.total("gpu_hours") < 60 / 3600
    assert found.total("predicted") > 100 * found.total("measured")


def test_a_changed_recipe_is_named_as_the_reason(replanned: Replanned) -> None:
    found = replanned(lambda config: config["methods"]["aird"].update(alpha=3, variant="amplify"))
    reason = next(reason for reason in found.reasons if reason.startswith("changed: "))
    assert set(reason.removeprefix("changed: ").split(", ")[:2]) == {
        "variant search → amplify",
        "alpha search → 3.0",
    }
    assert found.reasons[reason] == 2
    assert set(found.reasons) == {reason, FOLLOWS}
    assert {cell.rpartition("/")[2] for cell in found.cells} == {"aird", "random-edit"}
    assert all(cell.endswith("random-edit") or reasons == [reason] for cell, reasons in found.cells.items())
    assert left(found) == {"edit": 4, "generate": 4, "judge": 4, "ability": 4} | dict.fromkeys(SUMMED_UP, 1)


def test_a_newer_file_is_named_as_the_reason(
    replanned: Replanned, finished: Workflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished.folder, tmp_path / "touched", symlinks=True)
    monkeypatch.chdir(tmp_path / "touched")
    Path("attack.jsonl").write_text('{"id": "other", "text": "other"}\n')
    found = plan(Path("study.yaml"), lambda line: None)
    assert found.reasons["newer: attack.jsonl"] == 1
    assert set(found.reasons) == {"newer: attack.jsonl", FOLLOWS}


def test_packages_that_were_upgraded_since_are_named(
    finished: Workflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished.folder, tmp_path / "upgraded", symlinks=True)
    monkeypatch.chdir(tmp_path / "upgraded")
    for record in Path("results").rglob("provenance.json"):  # whose times say what has to run
        record.write_text(json.dumps({"stage": "fetch", "packages": {"numpy": "1.0", "torch": "1.0"}}))
    assert next(lines(plan(Path("study.yaml"), print))) == (
        "upgraded since results were made, which runs nothing again: numpy, torch (see holdfast stale)"
    )


def test_the_command_prints_a_table_or_json(replanned: Replanned, capsys: pytest.CaptureFixture[str]) -> None:
    replanned(lambda config: None)
    shown = CliRunner().invoke(app, ["plan", "study.yaml"])
    assert shown.exit_code == 0
    assert "study small" in shown.stdout
    assert "nothing left to run" in shown.stdout
    as_json = CliRunner().invoke(app, ["plan", "study.yaml", "--json"])
    said = json.loads(as_json.stdout)
    assert said["total"]["left"] == 0
    assert {stage["name"] for stage in said["stages"]} >= OWN | SUMMED_UP


def test_snakemake_asks_for_what_the_model_needs_and_waits_for_none_of_it_here(finished: Workflow) -> None:
    """The whole study ran on this machine, which has neither the GPU nor the memory that its jobs ask of a cluster."""
    run = finished.snakemake("--dry-run", "--forceall")
    asked = dict(
        re.findall(r"^rule (\w+):$.*?^    resources: ([^\n]*)$", run.stdout + run.stderr, re.M | re.S)
    )
    assert "gpu=1" in asked["edit"]
    assert int(re.search(r"mem_mb=(\d+)", asked["edit"])[1]) > 30_000  # 8 billion weights in float32
    assert "gpu" not in asked["fetch"]
    assert "mem_mb=2000" in asked["judge"]
    assert "threads" not in run.stdout + run.stderr


def test_a_dry_run_with_the_profile_shows_what_its_site_gives(finished: Workflow, tmp_path: Path) -> None:
    workflow = Workflow(shutil.copytree(finished.folder, tmp_path / "copy", symlinks=True))
    config = study()
    config["models"]["tiny"]["gpus"] = 4  # type: ignore[index]
    workflow.write(config)
    shutil.copytree(ROOT / "slurm", workflow.folder / "slurm")
    site = {"gpu_type": "a100", "partitions": {"gpu": {"max_gpu": 2, "max_runtime": 20}}}
    (workflow.folder / "slurm/site.yaml").write_text(yaml.safe_dump(site))
    run = workflow.snakemake("--dry-run", "--forceall", "--profile", "slurm")
    shown = run.stdout + run.stderr
    assert run.returncode == 0, shown
    assert "gpu=4, gpu_model=a100" in shown
    said = "asks for 4 GPUs of type a100 on one node, where the site file's partitions have 2; the Slurm"
    assert shown.count(said) == 1


def test_a_download_takes_the_room_of_its_model() -> None:
    study, size = load_study(REFUSAL), size_of(CONFIG)
    brought = Job("download", {"download": "meta-llama--Llama-3.1-8B-Instruct@main"}, None, [], True, NEW)
    other = Job("download", {"download": "zero-shot-tasks"}, None, [], True, NEW)
    for job, megabytes in ((brought, 16_060), (other, 0)):
        found = planned(study, [job], Requests(study, Known(size)))
        assert found.total("disk_mb") == pytest.approx(megabytes, abs=1)


def test_a_broken_config_is_told_as_check_tells_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("study.yaml").write_text("study: [")
    with pytest.raises(ConfigError, match=r"^study\.yaml: line 1, column 9: not YAML"):
        plan(Path("study.yaml"), print)


def test_a_graph_that_cannot_be_built_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workflow = new_workflow(tmp_path / "study")
    monkeypatch.chdir(workflow.folder)
    # The workflow's own files: without the rules nothing can be listed, and without a Snakefile nothing at all.
    monkeypatch.setattr(listing, "snakefile", lambda: tmp_path / "Snakefile")
    (tmp_path / "Snakefile").write_text("rule all:\n    input:\n        'never-made',\n")
    with pytest.raises(
        HoldfastError, match=r"^study\.yaml: its jobs cannot be listed \(.*\); try snakemake -n"
    ):
        listing.jobs(Path("study.yaml"))


# What follows from jobs and sizes, without Snakemake.


class Known:
    def __init__(self, size: Size | None) -> None:
        self.size = size

    def of(self, kind: str, name: str) -> Size | None:
        return self.size


def job(rule: str, needs: list[int], runs: bool = True, reason: str = NEW, **names: str) -> Job:
    cell = {"model": "llama-2-7b", "compression": "wanda-50", "method": "aird"} | names
    return Job(rule, cell, None, needs, runs, reason if runs else "")


CHAIN = [job("compress", []), job("edit", [0]), job("generate", [1]), job("ability", [1]), job("judge", [2])]


def test_hours_are_gpu_hours_where_gpus_are_asked_for(tmp_path: Path) -> None:
    study, size = load_study(REFUSAL), size_of(CONFIG)
    found = planned(study, CHAIN, Requests(study, Known(size)))
    assert found.total("gpu_hours") > 10 * found.total("cpu_hours") > 0
    assert found.path == ["compress", "edit", "ability"]
    seconds = 3600 * sum(stage.gpu_hours for stage in found.stages if stage.name != "generate")
    assert found.path_seconds == pytest.approx(seconds)
    written = 16_060 + 16_060 / 8 + 10 + 10  # the checkpoint, shards of a few layers, answers, scores
    assert found.total("disk_mb") == pytest.approx(written, abs=2)
    large = planned(study, CHAIN, Requests(study, Known(size_of(REAL["Mixtral-8x7B"][1]))))
    assert large.total("gpu_hours") > 2 * found.total("gpu_hours")


def test_jobs_of_unknown_size_are_counted_and_not_guessed() -> None:
    study = load_study(REFUSAL)
    found = planned(study, CHAIN, Requests(study, Known(None)))
    found.without_size = ["llama-2-7b"]
    assert (found.total("unknown"), found.total("gpu_hours"), found.total("disk_mb")) == (4, 0, 0)
    said = list(lines(found))
    assert "longest path: not known, as most jobs' time is not" in said
    mostly_known = planned(study, CHAIN, Requests(study, Known(size_of(CONFIG))))
    mostly_known.stages[0].unknown = 1
    assert any(line.startswith("longest path: at least ") for line in lines(mostly_known))
    assert "no estimate for 4 jobs: size not known of llama-2-7b" in said


def test_measured_jobs_correct_the_rest(tmp_path: Path) -> None:
    study, size = load_study(REFUSAL), size_of(CONFIG)
    requests = Requests(study, Known(size))
    done = [job("generate", [], runs=False), job("generate", [])]
    alone = planned(study, done, requests).total("gpu_hours")
    (tmp_path / "generate.tsv").write_text(f"s\tmax_rss\n{2 * 3600 * alone}\t1\n")
    done[0] = Job(**vars(done[0]) | {"benchmark": str(tmp_path / "generate.tsv")})
    found = planned(study, done, requests)
    (stage,) = found.stages
    assert stage.correction == pytest.approx(2)
    assert stage.gpu_hours == pytest.approx(2 * alone)
    shown = io.StringIO()
    Console(width=140, file=shown).print(rendered(found))
    assert "-50%" in shown.getvalue()


def test_the_longest_path_goes_through_jobs_that_are_done() -> None:
    chain = [job("compress", [], runs=False), job("edit", [0]), job("generate", [1]), job("ability", [1])]
    assert longest(chain, [0, 5, 1, 7]) == (["edit", "ability"], 12)
    assert longest([], []) == ([], 0.0)


def test_a_cells_own_reason_is_told_rather_than_what_follows() -> None:
    running = [job("generate", [], reason=FOLLOWS), job("edit", [], reason="changed: alpha 1 → 2")]
    running.append(Job("fetch", {"model": "m"}, None, [], True, NEW))
    assert cells(running) == {"llama-2-7b/wanda-50/aird": ["changed: alpha 1 → 2"], "m/dense/as-is": [NEW]}


def test_reasons_are_what_the_user_did() -> None:
    params = SimpleNamespace(
        only_old={repr('{"a": 1, "b": 2}'), "'x'"}, only_new={repr('{"a": 1, "c": [3]}')}
    )
    assert changes(params.only_old, params.only_new) == "b 2 → nothing, c nothing → [3]"
    assert changes({"'x'"}, {"'y'"}) == "its parameters"
    nothing = dict.fromkeys(
        ("forced", "incomplete_output", "code_changed", "software_stack_changed", "missing_output"), False
    )
    nothing |= {"params_changed": None, "input_changed": False, "updated_input": set()}
    assert why(SimpleNamespace(**nothing)) == FOLLOWS
    assert why(SimpleNamespace(**nothing | {"params_changed": params, "missing_output": {"x"}})).startswith(
        "changed"
    )
    assert why(SimpleNamespace(**nothing | {"code_changed": True})) == "its command line in rules/ changed"
    assert why(SimpleNamespace(**nothing | {"updated_input": {"b", "a"}})) == "newer: a, b"
