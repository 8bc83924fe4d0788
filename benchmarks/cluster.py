"""What planning a large grid costs: seconds and peak memory of `snakemake -n`, before and after the study is done.

    python benchmarks/cluster.py [--jobs 10000 50000] [--finished 10000]

The studies lie in a temporary folder and compute nothing: 7 methods on 13 checkpoints a model, as many models as make
the number of jobs. For the run that has nothing to do every output is made, empty, and `snakemake --touch` records it.
"""

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import measured
import yaml
from holdfast.config.measures import Prompts

ROOT = Path(__file__).parents[1]
TARGETS = {10_000: (10, 300), 50_000: (45, 1000)}  # jobs: seconds, MB
NOTHING_TO_DO = 15  # seconds, of 10,000 jobs
ROLES = [role for role, field in Prompts.model_fields.items() if field.is_required()]
FOLDERS = ("activations", "direction", "figures")  # outputs that are folders
JOBS_PER_MODEL, JOBS_APART = 403, 12


def study(jobs: int) -> dict[str, Any]:
    """A study of about so many jobs, on files of the working directory."""
    compressions: dict[str, Any] = {"dense": {}}
    for percent in range(10, 60, 10):
        for method in ("magnitude", "wanda"):
            compressions[f"{method}-{percent}"] = {"prune": method, "sparsity": percent / 100}
    for method in ("rtn", "gptq"):
        compressions[method] = {"quantize": method, "bits": 4, "group_size": 64}
    number = round((jobs - JOBS_APART) / JOBS_PER_MODEL)
    return {
        "study": "grid",
        "models": {f"model-{n}": {"source": "path:model", "dtype": "float32"} for n in range(number)},
        "compressions": compressions,
        "methods": {
            "as-is": {},
            "aird": {"edit": "aird"},
            "kept": {"edit": "aird", "keep_sparsity": True},
            "random-edit": {"edit": "aird", "direction": "random", "matched_to": "aird"},
            "prompted": {"system_prompt": "Be safe."},
            "steered": {"steer": "dense"},
            "random-steer": {"steer": "random", "matched_to": "steered"},
        },
        "calibration": {"source": "file:calibration.jsonl", "samples": 2, "tokens": 8},
        "prompts": {role: {"source": f"file:{role}.jsonl"} for role in ROLES},
        "evaluate": {
            "judges": ["arditi-12"],
            "zero_shot": {"tasks": ["holdfast_choice"]},
            "perplexity": {"source": "file:heldout.txt", "window": 16},
        },
    }


def write(folder: Path, jobs: int) -> None:
    (folder / "model").mkdir(parents=True)
    (folder / "model/config.json").write_text("{}")
    for role in (*ROLES, "calibration"):
        (folder / f"{role}.jsonl").write_text(json.dumps({"id": role, "text": role}) + "\n")
    (folder / "heldout.txt").write_text("text")
    (folder / "study.yaml").write_text(yaml.safe_dump(study(jobs), sort_keys=False))


def snakemake(folder: Path, *options: str) -> list[str]:
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2"]
    return [*command, "--directory", str(folder), "--configfile", str(folder / "study.yaml"), *options]


def planned(folder: Path) -> str:
    done = subprocess.run(snakemake(folder, "--dry-run"), capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def finish(folder: Path) -> None:
    """Every output of the study, empty, as if all jobs had run."""
    for line in re.findall(r"^    output: (.*)$", planned(folder), re.MULTILINE):
        for output in line.split(", "):
            path = folder / output
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.name in FOLDERS:
                path.mkdir(exist_ok=True)
            else:
                path.touch()
    measured.run(snakemake(folder, "--touch", "--quiet", "all"))


def timed(folder: Path, *options: str) -> tuple[measured.Measured, float]:
    """What a run costs, and the processor's seconds in it, which a busy machine stretches less."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = measured.run(snakemake(folder, *options))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return found, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def told(what: str, of: tuple[measured.Measured, float], seconds: int, megabytes: int | None = None) -> str:
    found, processor = of
    peak = found.peak_bytes / 1e6
    wanted = f"{seconds} s" + (f", {megabytes} MB" if megabytes else "")
    good = found.seconds <= seconds and (megabytes is None or peak <= megabytes)
    spent = f"{found.seconds:.1f} s ({processor:.1f} s of processor time), {peak:.0f} MB"
    return f"{what}: {spent} (target {wanted}: {'reached' if good else 'missed'})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, nargs="*", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--finished", type=int, default=10_000, help="jobs of the finished study; 0 for none")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for jobs in arguments.jobs:
            folder = Path(scratch) / str(jobs)
            write(folder, jobs)
            found = timed(folder, "--dry-run", "--quiet", "rules", "progress")
            print(told(f"planning {jobs} jobs", found, *TARGETS[jobs]), flush=True)
        if arguments.finished:
            folder = Path(scratch) / "finished"
            write(folder, arguments.finished)
            finish(folder)
            assert "Nothing to be done" in planned(folder)
            found = timed(folder, "--quiet", "all")
            print(told(f"nothing to do, of {arguments.finished} jobs", found, NOTHING_TO_DO))


if __name__ == "__main__":
    main()
