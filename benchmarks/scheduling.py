"""What running jobs costs Snakemake itself: processor seconds of its own process, with and without its limit of starts.

    python benchmarks/scheduling.py [--models 6]

A study whose stages write their files and compute nothing runs on two cores, about 48 jobs a model. By default
rules/run.smk takes Snakemake's limit of job starts away; the second run sets one of its own, which stays.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from workflows import new_workflow, study

LIMIT = ["--max-jobs-per-timespan", "99/1s"]


def run(folder: Path, models: int, options: list[str]) -> tuple[int, float, float]:
    """Jobs done, seconds by the clock, and processor seconds of Snakemake's own process."""
    workflow = new_workflow(folder)
    workflow.write(
        study(models={f"m{n}": {"source": "path:model", "dtype": "float32"} for n in range(models)})
    )
    command = [*workflow.command("study.yaml"), "--cores", "2", *options]
    started, spent = time.monotonic(), 0.0
    with (folder / "log").open("w") as log:
        environment = {**os.environ, "PYTHONPATH": workflow.paths()}
        process = psutil.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment)
        while process.poll() is None:
            with process.oneshot():
                times = process.cpu_times()
            spent = max(spent, times.user + times.system)
            time.sleep(0.2)
    text = (folder / "log").read_text()
    if process.returncode:
        sys.exit(text[-2000:])
    return text.count("Finished jobid"), time.monotonic() - started, spent


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=int, default=6)
    models = parser.parse_args().models
    per_job = []
    for name, options in (("as shipped", []), ("with a limit of job starts", LIMIT)):
        with tempfile.TemporaryDirectory() as scratch:
            jobs, seconds, spent = run(Path(scratch) / "study", models, options)
        per_job.append(spent / jobs)
        print(
            f"{jobs} jobs {name}: {seconds:.0f} s, {spent:.1f} s of Snakemake's own processor time",
            flush=True,
        )
    print(f"a job as shipped / with the limit: {per_job[0] / per_job[1]:.2f}")


if __name__ == "__main__":
    main()
