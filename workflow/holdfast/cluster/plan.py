"""What a study will cost before anything runs: jobs, hours and disk of every stage, the longest path, what is done
already, and what would run again and why.

Snakemake says what would run (``holdfast.cluster.jobs``), the study and its models' sizes how much work that is
(``work``, ``sizes``), measured rates how long it takes (``rates``). Where jobs of a stage are done, their seconds over
what was predicted for them correct what is predicted for the rest.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from holdfast.cluster.configs import Sizes
from holdfast.cluster.jobs import FOLLOWS, Job, jobs, snakefile
from holdfast.cluster.needs import Requests
from holdfast.cluster.rates import LIGHT, shipped, taken
from holdfast.cluster.site import can_submit, here, jobs_have_gpus
from holdfast.cluster.stale import environments, stale
from holdfast.cluster.work import counter
from holdfast.config import Study, load_study
from holdfast.config.backend import answered_by, settled
from holdfast.config.cells import cell_of
from holdfast.config.recipes import download_name
from holdfast.errors import HoldfastError


@dataclass
class Stage:
    """One rule's jobs.

    Attributes:
        jobs, left: all, and those that would run.
        gpu_hours, cpu_hours: of the jobs left, GPUs counted each; a CPU-hour is one thread's.
        disk_mb: that the jobs left will write, if everything is kept.
        unknown: jobs left that nothing is predicted for: their model's size is not known.
        measured, predicted: seconds of the jobs done, as their benchmark files say and as the shipped rates predict;
            of ``compared`` jobs.
    """

    name: str
    jobs: int = 0
    left: int = 0
    gpu_hours: float = 0.0
    cpu_hours: float = 0.0
    disk_mb: int = 0
    unknown: int = 0
    measured: float = 0.0
    predicted: float = 0.0
    compared: int = 0

    @property
    def correction(self) -> float | None:
        return self.measured / self.predicted if self.predicted and self.measured else None


@dataclass
class Plan:
    """A study's stages in the order of the data, and what follows from all together.

    Attributes:
        path, path_seconds: the chain of jobs that takes longest, and how long: no number of machines is faster.
        reasons: of the jobs left, how many run for it.
        cells: those (``MODEL/COMPRESSION/METHOD``) of which a job of their own would run, and why.
        without_size: models and judges whose size is not known.
        kept: whether checkpoints stay when nothing needs them any more.
        upgraded: packages of which results were made by another version than is installed (``stale``).
    """

    study: str
    stages: list[Stage]
    path: list[str]
    path_seconds: float
    reasons: dict[str, int]
    cells: dict[str, list[str]]
    without_size: list[str] = field(default_factory=list)
    kept: bool = True
    upgraded: list[str] = field(default_factory=list)

    def total(self, what: str) -> Any:
        return sum(getattr(stage, what) for stage in self.stages)

    def as_json(self) -> dict[str, Any]:
        stages = [asdict(stage) | {"correction": stage.correction} for stage in self.stages]
        sums = ("jobs", "left", "gpu_hours", "cpu_hours", "disk_mb", "unknown", "measured", "predicted")
        return asdict(self) | {"stages": stages, "total": {what: self.total(what) for what in sums}}


@dataclass(frozen=True)
class Cost:
    """Of one job: seconds on its machine (None: not known), GPUs, MB written."""

    seconds: float | None
    gpus: int = 0
    disk_mb: int = 0


def plan(config: Path, say: Callable[[str], None]) -> Plan:
    """The plan of a study whose results lie in ``results/STUDY`` of the working directory.

    Args:
        say: told in one line each what could not be found out about a model.

    Raises:
        HoldfastError: a mistake in the config or the site file, no Snakefile, or a graph that cannot be built.
    """
    study = load_study(config)
    results = Path("results", study.study)
    # What answers the prompts, as the workflow would settle it.
    environments_folder = snakefile().parent / ".environments"
    gpus = jobs_have_gpus(submitted=can_submit())
    choice = settled(study, results, environments_folder, gpus=gpus)
    study = answered_by(study, choice.backend)
    listed = [job for job in jobs(config) if job.rule != "all"]
    sizes = Sizes(study, results, reach=True, say=say)
    found = planned(
        study, listed, Requests(study, sizes, site=here, vllm=choice.environment, say=say, results=results)
    )
    used = {("judges", job.names["judge"]) for job in listed if "judge" in job.names}
    used |= {("models", job.names["model"]) for job in listed if "model" in job.names}
    found.without_size = sorted(name for kind, name in used if sizes.of(kind, name) is None)
    with contextlib.suppress(HoldfastError):  # a damaged record, which `holdfast stale` tells
        found.upgraded = sorted({change.package for change in stale(results, environments())})
    return found


def planned(study: Study, listed: Sequence[Job], requests: Requests) -> Plan:
    """The plan of ``listed`` jobs, each after those that it waits for."""
    costs = [cost(job, requests) for job in listed]
    stages: dict[str, Stage] = {}
    for job, each in zip(listed, costs, strict=True):
        stage = stages.setdefault(job.rule, Stage(job.rule))
        stage.jobs += 1
        if not job.runs and each.seconds is not None and job.benchmark:
            seconds = taken(Path(job.benchmark))
            if seconds is not None:
                stage.measured += seconds
                stage.predicted += each.seconds
                stage.compared += 1
    seconds_left = []
    for job, each in zip(listed, costs, strict=True):
        stage = stages[job.rule]
        seconds = each.seconds
        if seconds is not None and stage.correction is not None:
            seconds *= stage.correction
        seconds_left.append(seconds or 0.0 if job.runs else 0.0)
        if job.runs:
            stage.left += 1
            stage.disk_mb += each.disk_mb
            stage.unknown += seconds is None
            stage.gpu_hours += each.gpus * seconds_left[-1] / 3600
            stage.cpu_hours += 0.0 if each.gpus else seconds_left[-1] / 3600
    path, length = longest(listed, seconds_left)
    running = [job for job in listed if job.runs]
    return Plan(
        study.study,
        list(stages.values()),
        path,
        length,
        dict(Counter(job.reason for job in running).most_common()),
        cells(running),
        kept=study.keep_checkpoints,
    )


def cost(job: Job, requests: Requests) -> Cost:
    """Of a job, by the shipped rates."""
    if counter(job.rule) is None:
        return Cost(shipped().light.get(job.rule, LIGHT), disk_mb=downloaded(job, requests))
    asked = requests.of(job.rule, tuple(job.names.items()))
    size, _, _ = requests.model(job.names)
    work = requests.work(job.rule, job.names)
    if work is None or size is None:
        return Cost(None, asked.gpu)
    return Cost(shipped().seconds(work, size, asked.gpu), asked.gpu, asked.disk_mb)


def downloaded(job: Job, requests: Requests) -> int:
    """MB of weights that a download brings into the hub client's cache, as far as its size is known."""
    study, name = requests.study, job.names.get("download")
    sources = {("models", key): section.source for key, section in study.models.items()}
    sources |= {("judges", key): section.source for key, section in study.evaluate.judge_models.items()}
    for of, source in sources.items():
        if download_name(source) == name and (size := requests.sizes.of(*of)):
            return round(size.stored_bytes() / 1e6)
    return 0


def longest(listed: Sequence[Job], seconds: Sequence[float]) -> tuple[list[str], float]:
    """The chain of jobs, each waiting for the one before, that takes longest: the rules of those that run, and its
    seconds."""
    ends: list[float] = []
    before: list[int | None] = []
    for job, own in zip(listed, seconds, strict=True):
        last = max(job.needs, key=lambda n: ends[n], default=None)
        before.append(last)
        ends.append(own + (ends[last] if last is not None else 0.0))
    if not ends:
        return [], 0.0
    at: int | None = max(range(len(ends)), key=ends.__getitem__)
    length, path = ends[at or 0], []
    while at is not None:
        if listed[at].runs:
            path.append(listed[at].rule)
        at = before[at]
    return path[::-1], length


def cells(running: Sequence[Job]) -> dict[str, list[str]]:
    """Cells of which a job would run, with the reasons that are their own jobs' (what only follows is told where no
    other reason is).
    """
    found: dict[str, list[str]] = {}
    for job in running:
        if (cell := cell_of(job.names)) is None:
            continue
        reasons = found.setdefault("/".join(cell), [])
        if job.reason not in reasons:
            reasons.append(job.reason)
    for reasons in found.values():
        if len(reasons) > 1 and FOLLOWS in reasons:
            reasons.remove(FOLLOWS)
    return found
