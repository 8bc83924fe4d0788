"""One cluster for all of these tests; skipped, with the reason, where there can be none."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cluster import CannotStartError, Cluster, running
from studies import Workflow, new_study


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    try:
        with running() as cluster:
            yield cluster
    except CannotStartError as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    """The small study, run on this machine without trouble."""
    workflow = new_study(tmp_path_factory.mktemp("finished") / "study")
    run = workflow.snakemake("--cores", "2", "--quiet", "all")
    assert run.returncode == 0, run.stdout + run.stderr
    return workflow
