"""`holdfast doctor` against a real Slurm (what it reads of larger ones: tests/unit/test_doctor.py)."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, wait_for
from studies import PARTITIONS, copy_profile

NOTHING_SAID: dict[str, Any] = {"partitions": {}}


def doctor(
    folder: Path, cluster: Cluster, site: dict[str, Any], *options: str, **environment: str
) -> tuple[int, str]:
    copy_profile(folder, site)
    done = subprocess.run(
        [sys.executable, "-m", "holdfast", "doctor", *options],
        cwd=folder,
        env={**cluster.environment, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return done.returncode, done.stdout + done.stderr


def test_all_is_well_and_a_job_finds_its_way(cluster: Cluster, tmp_path: Path) -> None:
    site = {"gpu_type": "fake", "gpu_memory_gb": 0, "partitions": PARTITIONS}
    code, told = doctor(tmp_path, cluster, site, "--try-job")
    assert code == 0, told
    assert told.endswith("all well\n")
    assert "well: partition gpu: up, 2 of 2 nodes usable, up to 1 fake GPU or 2 fake GPU each" in told
    for name in PARTITIONS:
        assert f"well: a job in {name}: starts, imports holdfast, and its files are seen here" in told
    assert not list((tmp_path / "results").glob(".doctor*"))


def test_a_gpu_that_torch_does_not_see(cluster: Cluster, tmp_path: Path) -> None:
    code, told = doctor(
        tmp_path, cluster, {"gpu_type": "fake", "partitions": {"gpu": {"max_gpu": 1}}}, "--try-job"
    )
    assert code == 2
    assert "wrong: a job in gpu: was given a GPU, and torch sees none there: " in told


def test_every_difference_from_the_cluster_is_a_line(cluster: Cluster, tmp_path: Path) -> None:
    partitions = {"gpu": {"max_gpu": 3, "max_runtime": "2d"}, "old": {}}
    site = {"gpu_type": "h100", "constraint": "ib", "partitions": partitions}
    code, told = doctor(tmp_path, cluster, site)
    assert code == 2
    assert [line for line in told.splitlines() if line.startswith("wrong")] == [
        "wrong: partition gpu, max_runtime: 2d is above its limit 1-00:00:00; lower it",
        "wrong: partition gpu, max_gpu: 3 is more than any of its nodes has (2); lower it",
        "wrong: partition old: the cluster has none of that name; choose from: cpu, gpu",
        "wrong: gpu_type: no node of gpu, old has h100; choose from: fake",
        "wrong: constraint: no node has ib; choose from: none",
    ]


@pytest.mark.parametrize(("state", "told"), [("DOWN", "is down"), ("UP", "up, 2 of 2 nodes usable")])
def test_a_partition_that_is_down(cluster: Cluster, tmp_path: Path, state: str, told: str) -> None:
    cluster.run("scontrol", "update", "PartitionName=gpu", f"State={state}")
    try:
        assert f"partition gpu: {told}" in doctor(tmp_path, cluster, {"partitions": PARTITIONS})[1]
    finally:
        cluster.run("scontrol", "update", "PartitionName=gpu", "State=UP")


def test_a_controller_that_does_not_answer(cluster: Cluster, tmp_path: Path) -> None:
    cluster.stop_controller()
    try:
        code, told = doctor(tmp_path, cluster, NOTHING_SAID)
    finally:
        cluster.start_controller()
        wait_for(lambda: cluster.nodes_in("idle") == 3, "the nodes")
    assert code == 2
    assert "wrong: scontrol: slurm_load_partitions error: Unable to contact slurm controller" in told


def test_no_slurm_at_all(cluster: Cluster, tmp_path: Path) -> None:
    code, told = doctor(tmp_path, cluster, NOTHING_SAID, PATH=str(tmp_path))
    assert code == 2
    assert "wrong: Slurm: not found: sbatch, squeue, scancel, scontrol, sinfo, srun" in told
