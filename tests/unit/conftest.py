"""What several test modules start from."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from good_study import GOOD
from holdfast.config import Study, load_study
from planted import planted_llama
from workflows import Workflow, new_workflow
from workflows import study as small_study
from written_results import write_results


@pytest.fixture(scope="module")
def planted_dir(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    return planted_llama(tmp_path_factory.mktemp("planted") / "tiny")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return write_results(tmp_path)


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], Study]:
    monkeypatch.chdir(tmp_path)

    def of(config: dict[str, Any]) -> Study:
        Path("study.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        return load_study(Path("study.yaml"))

    return of


@pytest.fixture
def study(load: Callable[[dict[str, Any]], Study]) -> Study:
    return load(GOOD)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    """A whole study, run once."""
    workflow = new_workflow(tmp_path_factory.mktemp("workflow") / "finished")
    run = workflow.snakemake("--cores", "2", "--quiet", "all")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Report: results/small/report/index.html" in run.stdout + run.stderr
    return workflow


@pytest.fixture
def rerun(finished: Workflow, tmp_path: Path) -> Callable[..., dict[str, int]]:
    """The jobs planned in a copy of the finished study after a change of its config."""

    def planned(change: Callable[[dict], None]) -> dict[str, int]:
        folder = tmp_path / "copy"
        shutil.copytree(finished.folder, folder, symlinks=True)
        config = small_study()
        change(config)
        workflow = Workflow(folder)
        workflow.write(config)
        return workflow.planned()

    return planned
