"""What planning a large grid costs: seconds and peak memory of `snakemake -n`, before and after the study is done.

    python benchmarks/cluster.py [--jobs 10000 50000] [--finished 10000]

The studies lie in a temporary folder and compute nothing: 7 methods on 13 checkpoints a model, as many models as make
the number of jobs. For the run that has nothing to do every output is made, empty, and recorded as done (finished.py).

Beside each, Snakemake's own part: rules of nothing but file names (trivial.smk), with as many jobs and files as the
study, and with as many jobs of two files each.
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
from holdfast.config.prompt_sets import Prompts

ROOT = Path(__file__).parents[1]
TARGETS = {10_000: (10, 300), 50_000: (45, 1000)}  # jobs: seconds, MB
NOTHING_TO_DO = 15  # seconds, of 10,000 jobs
ROLES = [role for role, field in Prompts.model_fields.items() if field.is_required()]
FOLDERS = ("activations", "direction", "figures")  # outputs that are folders
JOBS_PER_MODEL, JOBS_APART = 403, 12
TRIVIAL_PER_MODEL, CHAIN = 411, 3  # jobs, in trivial.smk


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


def snakemake(folder: Path, snakefile: Path, *options: str) -> list[str]:
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(snakefile), "--cores", "2"]
    return [*command, "--directory", str(folder), *options]


def ours(folder: Path) -> list[str]:
    return snakemake(folder, ROOT / "Snakefile", "--configfile", str(folder / "study.yaml"))


def trivial(folder: Path, **config: int) -> list[str]:
    said = [f"{key}={value}" for key, value in config.items()]
    return snakemake(folder, ROOT / "benchmarks/trivial.smk", "--config", *said)


def planned(command: list[str]) -> str:
    done = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def finish(folder: Path, command: list[str]) -> None:
    """Every output, empty, as if all jobs had run."""
    for line in re.findall(r"^    output: (.*)$", planned(command), re.MULTILINE):
        for output in line.split(", "):
            path = folder / output
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.name in FOLDERS and command == ours(folder):
                path.mkdir(exist_ok=True)
            else:
                path.touch()
    recorded = [sys.executable, str(ROOT / "benchmarks/finished.py"), *command[3:]]
    measured.run([*recorded, "--quiet", "all"])
    assert "Nothing to be done" in planned(command)


def timed(command: list[str]) -> tuple[measured.Measured, float]:
    """What a run costs, and the processor's seconds in it, which a busy machine stretches less."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = measured.run(command)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return found, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def told(what: str, of: tuple[measured.Measured, float], seconds: int, megabytes: int | None = None) -> None:
    found, _ = of
    wanted = f"{seconds} s" + (f", {megabytes} MB" if megabytes else "")
    good = found.seconds <= seconds and (megabytes is None or found.peak_bytes / 1e6 <= megabytes)
    print(f"{what}: {shown(of)} (target {wanted}: {'reached' if good else 'missed'})", flush=True)


def beside(what: str, of: tuple[measured.Measured, float], ours: tuple[measured.Measured, float]) -> None:
    times, memory = ours[1] / of[1], ours[0].peak_bytes / of[0].peak_bytes
    ratio = f"ours / this: {times:.2f} in processor time, {memory:.2f} in memory"
    print(f"  trivial rules, {what}: {shown(of)}; {ratio}", flush=True)


def shown(of: tuple[measured.Measured, float]) -> str:
    found, processor = of
    return f"{found.seconds:.1f} s ({processor:.1f} s of processor time), {found.peak_bytes / 1e6:.0f} MB"


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
            quietly = ["--dry-run", "--quiet", "rules", "progress"]
            found = timed([*ours(folder), *quietly])
            told(f"planning {jobs} jobs", found, *TARGETS[jobs])
            grid = trivial(folder, models=round(jobs / TRIVIAL_PER_MODEL))
            beside("as many files", timed([*grid, *quietly]), found)
            chains = trivial(folder, chains=jobs // CHAIN)
            beside("two files a job", timed([*chains, *quietly]), found)
        if jobs := arguments.finished:
            folder, apart = Path(scratch) / "finished", Path(scratch) / "trivial"
            grid = trivial(apart, models=round(jobs / TRIVIAL_PER_MODEL))
            for where, command in ((folder, ours(folder)), (apart, grid)):
                write(where, jobs)
                finish(where, command)
            found = timed([*ours(folder), "--quiet", "all"])
            told(f"nothing to do, of {jobs} jobs", found, NOTHING_TO_DO)
            beside("as many files", timed([*grid, "--quiet", "all"]), found)


if __name__ == "__main__":
    main()
