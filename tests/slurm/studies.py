"""A study whose stages only write what their inputs come to, run on a cluster, with trouble where a test wants it."""

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from cluster import Cluster, wait_for
from workflows import STAGE, Workflow, new_workflow, study

ROOT = Path(__file__).parents[2]
TABLE = "results/small/tables/refusal.csv"
PARTITIONS = {"cpu": {"max_runtime": "1d", "max_mem_mb": 40000}, "gpu": {"max_gpu": 2, "max_mem_mb": 40000}}
LONGEST = 900  # seconds of one run, on a busy machine

# What a stage writes is a digest of its command and of all that it reads, so that the tables are the same only if
# everything above them is. A lock tells two writers of one output, and the journal what began and ended where.
DIGEST = '''
import contextlib, fcntl, hashlib, json, time

def journal(event):
    where = [os.environ.get("SLURMD_NODENAME"), os.environ.get("SLURM_JOB_ID"), os.environ.get("CUDA_VISIBLE_DEVICES")]
    os.write(JOURNAL, (json.dumps([event, time.time(), *where, " ".join(sys.argv[1:])]) + "\\n").encode())

def read(path, all_of_it):
    """A file; of a folder its files and the folders that comparisons read in it; of the study, every result."""
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        first, *below = file.relative_to(path).parts or [""]
        of_study = first not in {"logs", "benchmarks", "tables", "figures", "report"}
        wanted = of_study if all_of_it else not below or first in {"activations", "direction"}
        if file.is_file() and wanted and not file.name.startswith("."):
            yield str(file).encode() + file.read_bytes()

JOURNAL = os.open("journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
first = next((i for i, a in enumerate(sys.argv) if a.startswith("--")), len(sys.argv))
written = {sys.argv[first - 1], *(b for a, b in zip(sys.argv, sys.argv[1:]) if a == "--table")}
writer = open(f".writer-{hashlib.sha256(sys.argv[first - 1].encode()).hexdigest()[:16]}", "w")
try:
    fcntl.flock(writer, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    journal("second writer")
journal("begin")
digest = hashlib.sha256(" ".join(sys.argv[1:]).encode())
for before, argument in zip(sys.argv[1:], sys.argv[2:]):
    with contextlib.suppress(OSError):  # a recipe is no file
        if argument not in written and before != "--config" and (given := Path(argument.split("=", 1)[-1])).exists():
            for content in read(given, before == "--results"):
                digest.update(content)
'''
TROUBLE = """\
#!/bin/bash
[ ! -e trouble ] || . ./trouble
exec bin/python bin/stage.py "$@"
"""


class Entry(NamedTuple):
    """A line of the journal."""

    event: str
    time: float
    node: str | None
    job: str | None
    gpus: str | None
    command: str


def smaller_study() -> dict[str, Any]:
    """Every kind of stage, few of each: two checkpoints, three cells."""
    config: dict[str, Any] = study(methods={"as-is": {}, "aird": {"edit": "aird"}})
    del config["compressions"]["magnitude-20"]
    return config


def new_study(folder: Path) -> Workflow:
    workflow = new_workflow(folder)
    stage = STAGE.replace("\nFILES = {", f"{DIGEST}\nFILES = {{", 1)
    assert stage.count('.write_text(" ".join(sys.argv))') == 3
    stage = stage.replace('.write_text(" ".join(sys.argv))', ".write_text(digest.hexdigest())")
    (folder / "bin/stage.py").write_text(f'{stage}journal("end")\n')
    (folder / "bin/holdfast").write_text(TROUBLE)
    workflow.write(smaller_study())
    copy_profile(folder, {"partitions": PARTITIONS})
    return workflow


def almost_finished(finished: Workflow, folder: Path, *missing: str) -> Workflow:
    """A copy of a finished study without some results of its cells, which the next run makes again."""
    shutil.copytree(finished.folder, folder, symlinks=True)
    (folder / "journal").unlink()
    (folder / TABLE).unlink()
    for name in missing:
        shutil.rmtree(folder / "results/small/tiny" / name)
    return Workflow(folder)


def copy_profile(folder: Path, site: dict[str, Any]) -> None:
    """The profile with a site file of its own, as a lab has it."""
    shutil.copytree(ROOT / "slurm", folder / "slurm")
    (folder / "slurm/site.yaml").write_text(yaml.safe_dump(site))


def journal(workflow: Workflow) -> list[Entry]:
    lines = (workflow.folder / "journal").read_text().splitlines()
    return [Entry(*json.loads(line)) for line in lines]


def begun(workflow: Workflow, command: str, event: str = "begin") -> list[Entry]:
    """The tries of one stage's command, which begins so."""
    return [e for e in journal(workflow) if e.event == event and e.command.startswith(command)]


SHOWN = "JobID:|,State:|,MinMemory:|,TimeLimit:|,Partition:|,tres-per-job:40|,Comment:200"


class Submitted(NamedTuple):
    """A Slurm job as squeue shows it, finished ones too."""

    id: str
    state: str
    memory: str
    limit: str
    partition: str
    gpus: str
    comment: str


class Run:
    """``snakemake --profile slurm`` in the background."""

    def __init__(self, workflow: Workflow, cluster: Cluster, *options: str) -> None:
        self.cluster, self.folder = cluster, workflow.folder
        self.log = self.folder / f"run-{len(list(self.folder.glob('run-*')))}.txt"
        # Jobs of seconds are looked at every second or so; else every test would mostly wait.
        pace = ["--profile", "slurm", "--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "5"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*workflow.command("study.yaml"), *pace, *options],
                cwd=self.folder,
                env={**cluster.environment, "PYTHONPATH": workflow.paths()},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def until(self, true: Any, what: str, seconds: float = LONGEST) -> None:
        """Wait while Snakemake runs."""

        def happened() -> bool:
            with contextlib.suppress(FileNotFoundError):
                if true():
                    return True
            assert self.process.poll() is None, f"ended before {what}:\n{self.log.read_text()[-4000:]}"
            return False

        wait_for(happened, what, seconds)

    def ended(self) -> tuple[int, str]:
        """Exit code and log. Raises TimeoutExpired."""
        try:
            return self.process.wait(LONGEST), self.log.read_text()
        except subprocess.TimeoutExpired as error:
            error.add_note(self.log.read_text()[-4000:])
            raise

    def well(self) -> str:
        code, log = self.ended()
        assert code == 0, log[-6000:]
        return log

    def kill(self) -> None:
        """Snakemake alone, as a login node's watchdog does; its jobs know nothing of it."""
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def running(workflow: Workflow, cluster: Cluster, *options: str) -> Iterator[Run]:
    """A run that is ended with its jobs, whatever happens."""
    run = Run(workflow, cluster, *options)
    try:
        yield run
    finally:
        run.process.kill()
        run.process.wait()
        with contextlib.suppress(subprocess.CalledProcessError):
            if left := jobs(cluster, "all", "PENDING,RUNNING,COMPLETING"):
                cluster.run("scancel", *(job.id for job in left))
                wait_for(
                    lambda: not jobs(cluster, "all", "PENDING,RUNNING,COMPLETING"), "cancelled jobs to go"
                )


def jobs(cluster: Cluster, rule: str, states: str = "all") -> list[Submitted]:
    """The jobs of a rule that the controller remembers, in the order of submission; rule "all" for every one."""
    shown = cluster.run("squeue", "--noheader", f"--states={states}", "--sort=i", f"--Format={SHOWN}")
    rows = [Submitted(*(value.strip() for value in line.split("|"))) for line in shown.splitlines()]
    return [row for row in rows if rule == "all" or row.comment.startswith(f"rule_{rule}_")]
