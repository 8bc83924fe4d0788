"""The site file: what differs from one Slurm cluster to the next, and only a lab can know."""

import sys
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError

from holdfast.config.reading import ConfigError, explained, read_yaml
from holdfast.config.sources import BadValueError
from holdfast.config.values import Positive, Section, either
from holdfast.errors import HoldfastError

NAME = "site.yaml"
UNLIMITED = 10**9
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


def holds_models(memory_gb: float) -> float:
    if 0 < memory_gb < SMALLEST_GPU_GB:
        raise BadValueError(f"{memory_gb:g} GB hold no model", "correct it, or say 0 for no GPUs")
    return memory_gb


Word = Annotated[str, Field(min_length=1), AfterValidator(is_word)]
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
    available_gpu_models: list[Word] | None = Field(default=None, description="its types of GPU")
    available_constraints: list[Word] | None = Field(default=None, description="its nodes' features")


class Site(Section):
    """A cluster as a lab describes it."""

    account: Word | None = Field(default=None, description="what jobs are charged to")
    qos: Word | None = Field(default=None, description="quality of service")
    constraint: Word | None = Field(default=None, description="features of every job's node")
    gpu_type: Word | None = Field(default=None, description="the type of GPU to ask for")
    gpu_memory_gb: Annotated[float, AfterValidator(holds_models)] = Field(
        default=80.0, ge=0, description="memory of one GPU, in GB; 0 where there are no GPUs"
    )
    partitions: dict[Word, Partition] = Field(default={}, description="where jobs may go, with limits")

    def limits(self, gpus: int) -> tuple[int, int]:
        """The most memory (MB) and the longest time (minutes) of the partitions that take jobs of so many GPUs."""
        fit = [p for p in self.partitions.values() if p.max_gpu >= gpus]
        memory = [p.max_mem_mb or UNLIMITED for p in fit]
        times = [minutes(p.max_runtime) if p.max_runtime else UNLIMITED for p in fit]
        return max(memory, default=UNLIMITED), max(times, default=UNLIMITED)


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
    given, found = read_yaml(path)
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


def default_resources() -> dict[str, Any]:
    """Resources of every job that the site file sets; called by profiles/slurm/config.yaml.

    Ends the process with one line per mistake (exit 2): an exception would be told below Snakemake's usage.
    """
    try:
        site = read_site(site_file())
    except HoldfastError as error:
        for line in getattr(error, "mistakes", None) or [str(error)]:
            print(line, file=sys.stderr)
        sys.exit(2)
    given = {"slurm_account": site.account, "qos": site.qos, "constraint": site.constraint}
    # Quoted once more: Snakemake evaluates what it is given as Python.
    return {name: repr(value) for name, value in given.items() if value}
