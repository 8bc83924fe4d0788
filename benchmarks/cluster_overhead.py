"""What Slurm costs: the same cells of a tiny model through `--profile slurm` as shipped, and on this machine alone.

    python benchmarks/cluster_overhead.py [--cells 40]

Every cell is a compression of its own, its answers and their verdicts: two Slurm jobs of a few seconds each, the
hardest case for a scheduler. The cluster is that of tests/slurm (three jobs at a time, as on
this machine; installed where it is missing).
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/slurm")]

from cluster import Cluster, running, stop_on_signals  # noqa: E402
from integration.test_study import make_study, save  # noqa: E402
from studies import copy_profile  # noqa: E402

AT_A_TIME = 3  # jobs, by the cluster's CPUs
PER_CELL = 60  # seconds that Slurm may add to one cell
SLOWER, BESIDE = 1.5, 60  # what forty cells may take: so many times the local run, and so many seconds more


def study(folder: Path, cells: int) -> list[str]:
    """A study of so many cells beside the dense model's; the files to ask for."""
    config: dict[str, Any] = make_study(folder)
    pruned = {f"magnitude-{n}": {"prune": "magnitude", "sparsity": n / 100} for n in range(1, cells + 1)}
    config["compressions"] = {"dense": {}, **pruned}
    config["methods"] = {"as-is": {}}
    save(folder, config)
    copy_profile(folder, {"gpu_memory_gb": 0, "partitions": {}})
    return [f"results/tiny/tiny/{name}/as-is/verdicts/attack.jsonl" for name in pruned]


def seconds(folder: Path, environment: dict[str, str], *options: str) -> float:
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--quiet", "rules"]
    began = time.perf_counter()
    subprocess.run(
        [*command, "--configfile", "study.yaml", *options], cwd=folder, env=environment, check=True
    )
    return time.perf_counter() - began


def measure(cluster: Cluster, cells: int, folder: Path) -> None:
    many, one = {}, {}
    for name, run, environment in (
        ("local", ["--cores", str(AT_A_TIME)], dict(os.environ)),
        ("slurm", ["--profile", "slurm"], cluster.environment),
    ):
        *files, last = study(folder / name, cells + 1)
        # What all cells share is not timed.
        shared = ["results/tiny/tiny/dense/checkpoint/provenance.json", "results/tiny/prompts/disjoint.json"]
        seconds(folder / name, dict(os.environ), "--cores", str(AT_A_TIME), *shared)
        many[name] = seconds(folder / name, environment, *run, *files)
        one[name] = seconds(folder / name, environment, *run, last)
    print(f"{cells} cells on this machine: {many['local']:.0f} s")
    print(f"{cells} cells on Slurm: {told(many['slurm'], SLOWER * many['local'] + BESIDE)}")
    print(f"one cell on this machine: {one['local']:.0f} s")
    print(
        f"one cell on Slurm: {one['slurm']:.0f} s, Slurm's part {told(one['slurm'] - one['local'], PER_CELL)}"
    )


def told(value: float, limit: float) -> str:
    return f"{value:.0f} s, {'within' if value <= limit else 'OVER'} {limit:.0f} s"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=int, default=40)
    given = parser.parse_args()
    stop_on_signals()
    with running(cpus=1) as cluster, tempfile.TemporaryDirectory() as folder:
        measure(cluster, given.cells, Path(folder))
