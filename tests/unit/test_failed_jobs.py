"""The workflow after a job failed: the rest is done, the tables have gaps, the next run fills them."""

import json
import shutil
from pathlib import Path

import pytest
from workflows import SUMMED_UP, Workflow, study

BROKEN = "edit results/small/tiny/wanda-40/checkpoint results/small/tiny/wanda-40/aird/"


@pytest.fixture
def broken(finished: Workflow, tmp_path: Path) -> Workflow:
    """The finished study run again with another strength, whose edit of one compression fails."""
    shutil.copytree(finished.folder, tmp_path / "copy", symlinks=True)
    workflow, config = Workflow(tmp_path / "copy"), study()
    config["methods"]["aird"]["alpha"] = 3
    workflow.write(config)
    (workflow.folder / "broken").write_text(BROKEN)
    run = workflow.snakemake("--cores", "2", "--quiet", "all")
    assert run.returncode == 1, run.stdout + run.stderr
    assert "missing cells marked: results/small/tables, results/small/report/index.html" in run.stderr
    # Snakemake itself was told to be quiet.
    assert (
        "failed: edit tiny/wanda-40/aird: see results/small/logs/tiny/wanda-40/aird/edit.log\n" in run.stderr
    )
    (workflow.folder / "broken").unlink()
    return workflow


def test_a_failed_job_leaves_the_rest_done_and_tables_with_gaps(broken: Workflow) -> None:
    results = broken.folder / "results/small"
    left = json.loads((results / "logs/undone.json").read_text())
    waiting = {"edit", "generate", "judge", "ability"}
    cells = {tuple(job["cell"]) for job in left if job["stage"] in waiting}
    assert cells == {("tiny", "wanda-40", "aird"), ("tiny", "wanda-40", "random-edit")}
    assert len([job for job in left if job["stage"] in waiting]) == 8
    assert {stage for job in left for stage in job["failed"]} == {"edit"}
    # Made by the run before, from the edit that is no more.
    stale = "tiny/wanda-40/aird/generations/attack.jsonl"
    assert (results / stale).is_file()
    assert stale in [file for job in left for file in job["files"]]
    for written in ("tables/refusal.csv", "figures/asr.svg", "report/index.html"):
        assert "results/small" in (results / written).read_text()
    assert "--undone results/small/logs/undone.json" in (results / "tables/refusal.csv").read_text()
    done = {path.parts[-4] for path in results.glob("tiny/*/aird/ability/perplexity.json")}
    assert done == {"magnitude-20", "wanda-40"}


def test_the_next_run_makes_what_is_missing_and_the_tables(broken: Workflow) -> None:
    cells = dict.fromkeys(("edit", "generate", "judge", "ability"), 2)
    assert broken.planned() == {**cells, **SUMMED_UP}
    run = broken.snakemake("--cores", "2", "--quiet", "all")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "--undone" not in (broken.folder / "results/small/tables/refusal.csv").read_text()
    assert broken.planned() == {}


def test_tables_with_gaps_are_made_again_when_the_missing_cells_are_given_up(
    finished: Workflow, tmp_path: Path
) -> None:
    shutil.copytree(finished.folder, tmp_path / "copy", symlinks=True)
    workflow, config = Workflow(tmp_path / "copy"), study()
    config["compressions"]["rtn"] = {"quantize": "rtn", "bits": 4, "group_size": 64}
    workflow.write(config)
    (workflow.folder / "broken").write_text("compress results/small/tiny/dense/checkpoint")
    assert workflow.snakemake("--cores", "2", "--quiet", "all").returncode == 1
    (workflow.folder / "broken").unlink()
    workflow.write(study())  # as it was finished: the same files, as old and with the same contents
    assert workflow.planned() == SUMMED_UP


def test_tables_that_fail_themselves_are_no_gap(finished: Workflow, tmp_path: Path) -> None:
    shutil.copytree(finished.folder, tmp_path / "copy", symlinks=True)
    workflow = Workflow(tmp_path / "copy")
    (workflow.folder / "results/small/tables/refusal.csv").unlink()
    (workflow.folder / "broken").write_text("holdfast tables")
    run = workflow.snakemake("--cores", "2", "--quiet", "all")
    assert run.returncode == 1
    assert not (workflow.folder / "results/small/logs/undone.json").exists()
