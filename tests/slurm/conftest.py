"""One cluster for all of these tests, and a limit on their time together.

They are skipped, with the reason, where there can be no cluster; with HOLDFAST_WHOLE set (make test WHOLE=1) they fail.
"""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cluster import CannotStartError, Cluster, running
from studies import Workflow, new_study

TOGETHER = 30 * 60  # seconds, on the slowest machine; they take 8 to 15 minutes


@pytest.fixture(scope="session", autouse=True)
def in_time() -> Iterator[None]:
    """Ends all of them when they hang, and the cluster with them."""

    def over(_signal: int, _frame: object) -> None:
        pytest.exit(f"tests/slurm took more than {TOGETHER // 60} minutes", returncode=1)

    signal.signal(signal.SIGALRM, over)
    signal.alarm(TOGETHER)
    yield
    signal.alarm(0)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    try:
        with running() as cluster:
            yield cluster
    except CannotStartError as reason:
        if os.environ.get("HOLDFAST_WHOLE"):
            raise
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    """The small study, run on this machine without trouble."""
    workflow = new_study(tmp_path_factory.mktemp("finished") / "study")
    run = workflow.snakemake("--cores", "2", "--quiet", "all")
    assert run.returncode == 0, run.stdout + run.stderr
    return workflow
