"""What happens to jobs on a real Slurm; the tables are always those of an undisturbed run."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from cluster import Cluster
from studies import TABLE, Run, almost_finished, begun, jobs, journal, running, smaller_study
from workflows import Workflow

MISSING = "wanda-40/aird/ability", "dense/as-is/generations", "dense/as-is/verdicts"
ONCE = 'case "$*" in "{stage} "*) mkdir tried-{stage} 2>/dev/null && {trouble};; esac\n'


@pytest.fixture
def workflow(finished: Workflow, tmp_path: Path) -> Workflow:
    """The small study but for the ability of one cell and the answers of another."""
    return almost_finished(finished, tmp_path / "study", *MISSING)


@pytest.fixture
def as_undisturbed(finished: Workflow, workflow: Workflow) -> Callable[[], None]:
    def check() -> None:
        assert (workflow.folder / TABLE).read_text() == (finished.folder / TABLE).read_text()
        assert not [e for e in journal(workflow) if e.event == "second writer"]

    return check


def once(workflow: Workflow, stage: str, trouble: str) -> None:
    """A shell command before the first try of a stage."""
    (workflow.folder / "trouble").write_text(ONCE.format(stage=stage, trouble=trouble))


def test_what_lacks_memory_or_time_is_tried_again_with_more(
    cluster: Cluster, workflow: Workflow, as_undisturbed: Callable[[], None]
) -> None:
    config = smaller_study()
    config["models"]["tiny"] |= {"memory_gb": 0.5, "hours": 1 / 60}
    workflow.write(config)
    # Half a gigabyte beside Snakemake itself, at every try; and a sleep that only the time limit ends, once.
    hungry = "bin/python -c 'import time; held = bytearray(500 * 2**20); time.sleep(4)'"
    once(workflow, "ability", "sleep 600")
    with (workflow.folder / "trouble").open("a") as trouble:
        trouble.write(f'case "$*" in "generate "*) {hungry} || exit 1;; esac\n')
    with running(workflow, cluster) as run:
        run.well()
    tries = [(job.state, job.memory) for job in jobs(cluster, "generate")]
    assert tries[-2:] == [("FAILED", "500M"), ("COMPLETED", "1000M")]
    tries = [(job.state, job.limit) for job in jobs(cluster, "ability")]
    assert tries[-2:] == [("TIMEOUT", "1:00"), ("COMPLETED", "2:00")]
    as_undisturbed()


def test_gpus_of_one_job_are_on_one_node(
    cluster: Cluster, workflow: Workflow, as_undisturbed: Callable[[], None]
) -> None:
    """Two are asked for while two are free on two nodes: Slurm waits for those of one, and refuses no step."""
    config = smaller_study()
    config["models"]["tiny"]["gpus"] = 2
    workflow.write(config)
    before = {job.id for job in jobs(cluster, "ability")}
    [taken] = cluster.run(
        "sbatch", "--parsable", "--nodelist=n2", "--gpus=1", "--output=/dev/null", "--wrap=sleep 600"
    ).split()
    with running(workflow, cluster) as run:
        try:
            run.until(lambda: jobs(cluster, "ability", "PENDING"), "the job to wait")
            time.sleep(5)
            assert jobs(cluster, "ability", "PENDING")
        finally:
            cluster.run("scancel", taken)
        run.well()
    tries = [(job.state, job.gpus) for job in jobs(cluster, "ability") if job.id not in before]
    assert tries == [("COMPLETED", "gres:gpu:2")]
    assert begun(workflow, "ability")[0].node == "n2"
    as_undisturbed()


def test_a_cancelled_job_is_submitted_again(
    cluster: Cluster, workflow: Workflow, as_undisturbed: Callable[[], None]
) -> None:
    once(workflow, "ability", "touch sleeping && sleep 600")
    with running(workflow, cluster) as run:
        run.until((workflow.folder / "sleeping").exists, "the job")
        [job] = jobs(cluster, "ability", "RUNNING")
        cluster.run("scancel", job.id)
        run.well()
    assert len(begun(workflow, "ability")) == 1
    as_undisturbed()


def test_jobs_of_a_node_that_dies_run_elsewhere(
    cluster: Cluster, workflow: Workflow, as_undisturbed: Callable[[], None]
) -> None:
    once(workflow, "ability", "echo $SLURMD_NODENAME > where && sleep 600")
    with running(workflow, cluster) as run:
        run.until((workflow.folder / "where").read_text, "the job")
        node = (workflow.folder / "where").read_text().strip()
        cluster.fail_node(node)
        try:
            run.until(lambda: begun(workflow, "ability"), "the job elsewhere")
            assert begun(workflow, "ability")[0].node != node
        finally:
            cluster.start_node(node)
        run.well()
    as_undisturbed()


def test_a_controller_that_is_away_ends_nothing(
    cluster: Cluster, workflow: Workflow, as_undisturbed: Callable[[], None]
) -> None:
    once(workflow, "ability", "touch sleeping && sleep 20")
    with running(workflow, cluster) as run:
        run.until((workflow.folder / "sleeping").exists, "the job")
        cluster.stop_controller()
        try:
            run.until(lambda: begun(workflow, "ability", "end"), "the job's end")
            time.sleep(5)
        finally:
            cluster.start_controller()
        run.well()
    assert len(begun(workflow, "ability")) == 1  # not done twice
    as_undisturbed()


def test_after_a_kill_the_same_command_goes_on_with_one_writer(
    cluster: Cluster, workflow: Workflow, as_undisturbed: Callable[[], None]
) -> None:
    once(workflow, "ability", "touch sleeping && sleep 30")
    with running(workflow, cluster) as run:
        run.until((workflow.folder / "sleeping").exists, "the job")
        code, log = Run(workflow, cluster).ended()  # refused while the first one lives
        assert code == 2
        assert f"results/small: another run is using it (process {run.process.pid} on " in log
        [orphan] = jobs(cluster, "ability", "RUNNING")
        run.process.kill()
        run.process.wait()
        with running(workflow, cluster) as again:
            log = again.well()
    assert f"1 Slurm jobs that an earlier run left are cancelled: {orphan.id}" in log
    assert [job.state for job in jobs(cluster, "ability") if job.id == orphan.id] == ["CANCELLED"]
    assert len(begun(workflow, "ability")) == 1
    as_undisturbed()


def test_after_ctrl_c_what_slurm_could_not_end_yet_is_waited_for(
    cluster: Cluster, workflow: Workflow, as_undisturbed: Callable[[], None]
) -> None:
    """A job whose step manager does not answer: it is cancelled, and still there."""
    once(workflow, "ability", "touch sleeping && sleep 600")
    with running(workflow, cluster) as run:
        run.until((workflow.folder / "sleeping").exists, "the job")
        [left] = jobs(cluster, "ability", "RUNNING")
        managers = [pid for pid in cluster.processes() if name_of(pid) == "slurmstepd"]
        signal_all(managers, signal.SIGSTOP)
        try:
            run.process.send_signal(signal.SIGINT)
            assert run.ended()[0] != 0
            assert [j.state for j in jobs(cluster, "ability") if j.id == left.id] == ["COMPLETING"]
            with running(workflow, cluster) as again:
                told = "Slurm jobs that an earlier run left are cancelled: "
                again.until(lambda: told in again.log.read_text(), "the wait", seconds=60)
                assert left.id in again.log.read_text().partition(told)[2].splitlines()[0].split()
                assert not begun(workflow, "ability")
                signal_all(managers, signal.SIGCONT)
                again.well()
        finally:
            signal_all(managers, signal.SIGCONT)
    assert len(begun(workflow, "ability")) == 1
    as_undisturbed()


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def signal_all(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def test_a_job_that_fails_for_good_leaves_the_rest_done_and_a_gap(
    cluster: Cluster, workflow: Workflow, as_undisturbed: Callable[[], None]
) -> None:
    (workflow.folder / "trouble").write_text(
        'case "$*" in "ability "*) touch failed-$RANDOM; exit 1;; esac\n'
    )
    with running(workflow, cluster) as run:
        code, log = run.ended()
    assert code == 1
    assert "missing cells marked: results/small/tables" in log
    assert len(list(workflow.folder.glob("failed-*"))) == 3  # retries: 2
    assert len(begun(workflow, "judge", "end")) == 1
    assert begun(workflow, "tables")[0].command.endswith("--undone results/small/logs/undone.json")
    (workflow.folder / "trouble").unlink()
    with running(workflow, cluster) as run:
        run.well()
    assert [len(begun(workflow, stage)) for stage in ("generate", "judge", "ability", "tables")] == [
        1,
        1,
        1,
        2,
    ]
    as_undisturbed()
