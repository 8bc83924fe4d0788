"""What a job finds on its node beside the shared file system: environment modules, and a container.

Read by the Snakefile, and so by every cluster job: light imports only.
"""

import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from holdfast.errors import HoldfastError

RUNTIMES = ("apptainer", "singularity")  # as Snakemake looks for them


def module_command() -> str:
    """What defines ``module`` in a plain sh, for Environment Modules and Lmod alike.

    Raises HoldfastError where this shell knows no modules.
    """
    home = os.environ.get("MODULESHOME")
    if home is None:
        what = "this shell has none (MODULESHOME is not set)"
        raise HoldfastError(what, "modules", "start from a login shell, or name none in the site file")
    return f". {shlex.quote(f'{home}/init/sh')}"


def load(modules: Sequence[str]) -> str:
    """A line of sh that loads modules and fails where it cannot, for Snakemake's ``precommand``.

    In it are no double quotes and no variables: the Slurm plugin hands it through a shell of the submit host.
    Raises HoldfastError as :func:`module_command`.
    """
    return f"{module_command()} && module load {shlex.join(modules)}" if modules else ""


def show_in_container(folders: Iterable[Path]) -> None:
    """Have the container of this process's commands see folders, by environment variables of its runtime, beside what
    the user has set. The working directory is seen, as the home folder; so the Hugging Face cache is named.
    """
    cache = os.environ.setdefault("HF_HOME", str(Path("~/.cache/huggingface").expanduser()))
    seen = [str(folder.resolve()) for folder in (*folders, Path(cache)) if folder.exists()]
    for runtime in map(str.upper, RUNTIMES):
        users = filter(None, os.environ.get(f"{runtime}_BIND", "").split(","))
        os.environ[f"{runtime}_BIND"] = ",".join(dict.fromkeys([*users, *seen]))  # each once
        os.environ[f"{runtime}_NV"] = "1"  # a GPU's libraries; without a GPU only a warning
