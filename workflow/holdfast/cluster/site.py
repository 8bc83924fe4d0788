"""The site file: what differs from one Slurm cluster to the next, and only a lab can know."""

import re
import shutil
import sys
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, Field, ValidationError

from holdfast.cluster.software import load
from holdfast.config.reading import ConfigError, explained, read_yaml
from holdfast.config.sources import BadValueError
from holdfast.config.values import Positive, Section, either
from holdfast.errors import HoldfastError

NAME = "site.yaml"
UNLIMITED = 10**9
_PROFILES: list[Path] = []  # site files that this process read for a profile
SMALLEST_GPU_GB = 5  # less is taken by the libraries (needs.GPU_BASE_GB)


def minutes(time: int | str) -> int:
    """A time in Slurm's or Snakemake's words (90, 12h, 2d, 1-00:00:00), in minutes. Raises ValueError."""
    from snakemake_executor_plugin_slurm.utils import parse_time_to_minutes
    from snakemake_interface_common.exceptions import WorkflowError

    try:
        return int(parse_time_to_minutes(time))
    except WorkflowError:
        raise ValueError(f"{time!r} is no time") from None


def is_time(time: int | str) -> int | str:
    try:
        # The plugin takes -1h for an hour, and what is no time at all would end every job at once.
        possible = minutes(time) > 0 and not str(time).startswith("-")
    except ValueError:
        possible = False
    if not possible:
        raise BadValueError(f"{time!r} is no time", "give minutes, or a text such as 12h or 2d")
    return time


def is_word(text: str) -> str:
    """What goes on a command line is one plain word."""
    if not text.isascii() or not text.isprintable() or set(text) & set(" '\"\\$`"):
        raise BadValueError(f"{text!r} is not one plain word", "give it as Slurm prints it")
    return text


def is_gpu_type(text: str) -> str:
    if not re.fullmatch(r"[\w.]+", is_word(text)):
        remedy = "say null, and constraint: with a feature of its nodes, or give it another name in Slurm"
        raise BadValueError(f"{text!r}: the Slurm plugin takes letters, digits, _ and . only", remedy)
    return text


def holds_models(memory_gb: float) -> float:
    if 0 < memory_gb < SMALLEST_GPU_GB:
        raise BadValueError(f"{memory_gb:g} GB hold no model", "correct it, or say 0 for no GPUs")
    return memory_gb


def is_absolute(text: str) -> str:
    if not is_word(text).startswith("/"):
        raise BadValueError(f"{text!r} is no absolute path", "give it from the root, /…")
    return text


Word = Annotated[str, Field(min_length=1), AfterValidator(is_word)]
GpuType = Annotated[str, Field(min_length=1), AfterValidator(is_gpu_type)]
AbsolutePath = Annotated[str, AfterValidator(is_absolute)]
Time = Annotated[Positive | str, either("minutes, or a text such as 12h or 2d"), AfterValidator(is_time)]


class Partition(Section):
    """The limits of a partition, in the words of the Slurm plugin, which reads this section too."""

    max_runtime: Time | None = Field(default=None, description="its time limit")
    max_mem_mb: Positive | None = Field(default=None, description="memory of a node, in megabytes")
    max_threads: Positive | None = Field(default=None, description="CPUs of a node")
    max_cpus_per_task: Positive | None = Field(default=None, description="CPUs of a job")
    max_mem_mb_per_cpu: Positive | None = Field(default=None, description="memory of a CPU, in megabytes")
    max_nodes: Positive | None = Field(default=None, description="nodes of a job")
    max_gpu: int = Field(default=0, ge=0, description="GPUs of a node; without it no GPU job goes there")
    available_gpu_models: list[GpuType] | None = Field(default=None, description="its types of GPU")
    available_constraints: list[Word] | None = Field(default=None, description="its nodes' features")

    def has(self, gpu_type: str | None, constraint: str | None) -> bool:
        """Whether the plugin lets jobs go there that ask for this type of GPU and these features (commas between)."""
        kinds, features = self.available_gpu_models, self.available_constraints
        wanted = [name.strip() for name in (constraint or "").split(",") if name.strip()]
        return (not gpu_type or not kinds or gpu_type in kinds) and (
            not features or set(wanted) <= set(features)
        )

    @property
    def longest(self) -> int:
        return minutes(self.max_runtime) if self.max_runtime else UNLIMITED

    @property
    def most_threads(self) -> int:
        return min(self.max_threads or UNLIMITED, self.max_cpus_per_task or UNLIMITED)


class Site(Section):
    """A cluster as a lab describes it."""

    account: Word | None = Field(default=None, description="what jobs are charged to")
    qos: Word | None = Field(default=None, description="quality of service")
    constraint: Word | None = Field(default=None, description="features of every job's node")
    gpu_type: GpuType | None = Field(default=None, description="the type of GPU to ask for")
    gpu_memory_gb: Annotated[float, AfterValidator(holds_models)] = Field(
        default=80.0, ge=0, description="memory of one GPU, in GB; 0 where there are no GPUs"
    )
    modules: list[Word] = Field(default=[], description="environment modules that every job loads")
    container: AbsolutePath | None = Field(
        default=None, description="an image that every job's command runs in"
    )
    scratch: AbsolutePath | None = Field(default=None, description="a folder on every node's own disk")
    partitions: dict[Word, Partition] = Field(default={}, description="where jobs may go, with limits")

    def refuses(self, gpus: int, mem_mb: int) -> str | None:
        """Why no partition takes a job of so many GPUs and so much memory; None where one does."""
        if not self.partitions:
            return None
        eligible = self._eligible(gpus)
        if not eligible:
            asked = " and ".join(filter(None, (self.gpu_type if gpus else None, self.constraint)))
            return f"{asked}, which none of the site file's partitions lists"
        most = max(p.max_gpu for p in eligible)
        if gpus > most:
            of_type = f" of type {self.gpu_type}" if self.gpu_type else ""
            return f"{gpus} GPUs{of_type} on one node, where the site file's partitions have {most}"
        if not self._taking(gpus, mem_mb):
            return f"{mem_mb} MB beside {gpus} GPUs, which none of the site file's partitions has"
        return None

    def within(
        self, gpus: int, mem_mb: int, runtime: int, threads: int, attempt: int = 1
    ) -> tuple[int, int, int]:
        """Memory (MB), time (minutes) and threads that a job asks for at an attempt, from those of its first.

        Memory and time double with every retry, as far as one partition that takes the job goes. Time is asked for
        generously and is cut to what there is; memory that does not fit is not (see :meth:`refuses`).
        """
        growth = 2 ** (attempt - 1)
        wanted = mem_mb * growth, runtime * growth
        found = [
            (
                min(wanted[0], p.max_mem_mb or UNLIMITED),
                min(wanted[1], p.longest),
                min(threads, p.most_threads),
            )
            for p in self._taking(gpus, mem_mb)
        ]
        return max(found, key=lambda f: f[0] * f[1], default=(*wanted, threads))

    def _eligible(self, gpus: int) -> list[Partition]:
        """Partitions with the type of GPU, where any are asked for, and the features."""
        kind = self.gpu_type if gpus else None
        return [p for p in self.partitions.values() if p.has(kind, self.constraint)]

    def _taking(self, gpus: int, mem_mb: int) -> list[Partition]:
        """Of these the ones with so many GPUs and so much memory."""
        return [
            p for p in self._eligible(gpus) if p.max_gpu >= gpus and (p.max_mem_mb or UNLIMITED) >= mem_mb
        ]


def site_file() -> Path:
    """The site file beside the profile that ``--profile slurm`` finds: in the working directory, else the user's."""
    from snakemake.common import get_appdirs

    folders = [Path.cwd() / "slurm", Path(get_appdirs().user_config_dir, "slurm")]
    folders.append(Path(get_appdirs().site_config_dir, "slurm"))
    found = next((folder / NAME for folder in folders if (folder / NAME).is_file()), None)
    if found is None:
        raise HoldfastError(
            "no such file", f"slurm/{NAME}", "start from the repository's root, or copy profiles/slurm here"
        )
    return found.relative_to(Path.cwd()) if found.is_relative_to(Path.cwd()) else found


def read_site(path: Path) -> Site:
    """Raises ConfigError with every mistake found."""
    given, found = read_yaml(path, "profiles/slurm/site.yaml as it comes")
    if "partitions" not in given:  # the Slurm plugin, which reads this file too, wants it
        found.append((("partitions",), "missing", "add it, as {} for the cluster's default partition"))
    site = None
    try:
        site = Site.model_validate(given)
    except ValidationError as error:
        found += [explained(e, Site) for e in error.errors(include_url=False)]
    if site is None or found:
        raise ConfigError(path, found)
    return site


def here() -> Site:
    """This cluster, or one that nothing is known of where no site file is. Raises ConfigError as :func:`read_site`."""
    try:
        path = site_file()
    except HoldfastError:
        return Site()
    return read_site(path)


def can_submit() -> bool:
    """Whether Slurm's commands are here: a plan is then one of jobs on its nodes."""
    return shutil.which("sbatch") is not None


def profiled() -> bool:
    """Whether Snakemake read the profile in this process: its jobs go to Slurm."""
    return bool(_PROFILES)


def jobs_have_gpus(*, submitted: bool) -> bool | None:
    """Whether the nodes that jobs go to have GPUs, as the site file says; None for jobs on this machine.

    ``submitted``: whether they go to Slurm.
    """
    return here().gpu_memory_gb > 0 if submitted else None


class Settings(NamedTuple):
    """What the site file sets of a profile, in Snakemake's words."""

    default_resources: dict[str, str | int]
    precommand: str
    container: bool


def settings() -> Settings:
    """Called by profiles/slurm/config.yaml.

    Ends the process with one line per mistake (exit 2): an exception would be told below Snakemake's usage.
    """
    try:
        _PROFILES.append(site_file())
        site = read_site(_PROFILES[-1])
        precommand = load(site.modules)
    except HoldfastError as error:
        for line in getattr(error, "mistakes", None) or [str(error)]:
            print(line, file=sys.stderr)
        sys.exit(2)
    given = {"slurm_account": site.account, "qos": site.qos, "constraint": site.constraint}
    given["tmpdir"] = site.scratch
    # Quoted once more: Snakemake evaluates what it is given as Python.
    resources: dict[str, str | int] = {name: repr(value) for name, value in given.items() if value}
    resources["nodes"] = 1  # a job has its GPUs on one node; said, so that no version of Slurm spreads them
    return Settings(resources, precommand, site.container is not None)
