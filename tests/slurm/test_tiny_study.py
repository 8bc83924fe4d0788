"""The whole study of a tiny model, every stage for real, through `--profile slurm`: GPUs as GRES, two partitions."""

import os
import sys
from pathlib import Path

from cluster import Cluster
from integration.test_study import make_study, run, save
from studies import PARTITIONS, ROOT, copy_profile, jobs, running
from workflows import Workflow

WITHOUT_TIMES = ("refusal.csv", "claims.csv", "leaderboard.csv")  # the others say how long it took


class TinyStudy(Workflow):
    """With the stages of this installation, not with stand-ins."""

    def command(self, configfile: str) -> list[str]:
        snakefile = ["--snakefile", str(ROOT / "Snakefile"), "--configfile", configfile]
        return [sys.executable, "-m", "snakemake", *snakefile]

    def paths(self) -> str:
        return os.environ.get("PYTHONPATH", "")


def test_the_tables_are_those_of_a_run_on_one_machine(cluster: Cluster, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        config = make_study(folder)
        config["models"]["tiny"]["gpus"] = 1
        del config["methods"]["random-edit"]  # the same stages once more
        save(folder, config)
    copy_profile(there, {"gpu_type": "fake", "partitions": PARTITIONS})
    before = {job.id for job in jobs(cluster, "all")}
    with running(TinyStudy(there), cluster) as of_cluster:
        of_cluster.well()
    run(here)
    for name in WITHOUT_TIMES:
        tables = [(folder / "results/tiny/tables" / name).read_text() for folder in (here, there)]
        assert tables[0] == tables[1], name
    ran = [job for job in jobs(cluster, "all") if job.id not in before]
    assert {job.state for job in ran} == {"COMPLETED"}
    asked = {(job.comment.split("_")[1], job.partition, job.gpus) for job in ran}
    assert {("generate", "gpu", "gres:gpu:fake:1"), ("fetch", "cpu", "N/A")} <= asked
    assert {partition for _, partition, gpus in asked if gpus == "N/A"} == {"cpu"}
    # These GPUs are not real, and a job that has such ones says so.
    unseen = "and torch sees none: it runs on the CPU"
    for folder, told in ((there, True), (here, False)):
        assert (unseen in (folder / "results/tiny/logs/tiny/dense/as-is/generate.log").read_text()) is told
