"""How long work takes: rates measured on a CPU (rates.json, written by benchmarks/rates.py), estimates for GPUs."""

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from math import ceil
from pathlib import Path

from holdfast.cluster.sizes import Size
from holdfast.cluster.work import Work

LIGHT = 2.0  # seconds of a job without a model that nobody measured


@dataclass(frozen=True)
class Rate:
    """Seconds per billion weights, and per billion weights and thousand tokens, beside a start of its own; ``jobs``
    that they were measured on."""

    weights: float = 0.0
    tokens: float = 0.0
    jobs: int = 0
    start: float = 0.0


@dataclass(frozen=True)
class Graphics:
    """Estimates for one GPU of the 80 GB kind, **not measured by this project**: see docs/resources.md.

    Attributes:
        start: seconds before a job's model is read.
        reading: bytes of weights a second, from shared storage.
        computing: operations a second that transformers reaches in forward passes (a tenth of the peak in bfloat16).
        bandwidth: bytes of memory a second that a decoding step reads weights with.
        layer: seconds a layer of a decoding step takes however small it is.
        batch: answers that are generated together.
        vllm_start, vllm_tokens: seconds that vLLM takes to start; tokens of answers a second, times billion weights.
        per_billion: seconds per billion weights that compressions take beside their forward passes.
    """

    start: float
    reading: float
    computing: float
    bandwidth: float
    layer: float
    batch: int
    vllm_start: float
    vllm_tokens: float
    per_billion: Mapping[str, float]


@dataclass(frozen=True)
class Rates:
    """Seconds on one thread of a CPU, by stage (of ``compress`` and ``edit``: by method), and the estimates for GPUs.

    ``start``: seconds of a job around its model: libraries, reading the weights. ``light``: seconds of the jobs that
    run no model, by rule.
    """

    start: float
    light: Mapping[str, float]
    stages: Mapping[str, Rate]
    graphics: Graphics

    def of(self, work: Work) -> Rate:
        """Of its method or stage. Of those that nobody measured, a compression without calibration is as slow as
        rounding to nearest, anything else as generating."""
        measured = self.stages.get(work.method) or self.stages.get(work.stage)
        goes_by_weights = work.stage == "compress" and work.loads and not work.tokens
        return measured or self.stages["rtn" if goes_by_weights else "generate"]

    def seconds(self, work: Work, size: Size, gpus: int = 0) -> float:
        """Of one job that runs a model."""
        if gpus:
            return self._on_gpus(work, size)
        rate = self.of(work)
        billions, active = size.parameters / 1e9, size.active / 1e9
        return (
            self.start * max(work.loads, 1)
            + rate.start
            + billions * rate.weights
            + active * work.tokens / 1e3 * rate.tokens
        )

    def _on_gpus(self, work: Work, size: Size) -> float:
        # Layers spread over several GPUs work one after the other: more memory, no more speed.
        about, loaded = self.graphics, size.loaded_bytes("bfloat16")
        seconds = about.start + work.loads * loaded / about.reading
        seconds += 2 * size.active * work.tokens / about.computing
        if work.method == "vllm":
            answered = work.answers * work.new_tokens * size.active / 1e9
            return seconds + about.vllm_start + answered / about.vllm_tokens
        step = max(2 * size.active / about.bandwidth, size.layers * about.layer)
        seconds += ceil(work.answers / about.batch) * work.new_tokens * step
        return seconds + about.per_billion.get(work.method, 0) * size.parameters / 1e9


def fitted(done: Iterable[tuple[Work, Size, float]], start: float) -> dict[str, Rate]:
    """Rates from jobs on one thread and the seconds each took, by stage or method: all seconds but the start, over all
    work of a kind. Work without tokens goes by the weights alone. A kind whose jobs took no longer than their start has
    no rate: 0 would say that the largest model takes no time either.
    """
    spent: dict[tuple[str, bool], list[float]] = {}
    for work, size, seconds in done:
        units = size.active / 1e9 * work.tokens / 1e3 or size.parameters / 1e9
        totals = spent.setdefault((work.method or work.stage, bool(work.tokens)), [0.0, 0.0, 0])
        totals[0] += max(seconds - start * max(work.loads, 1), 0.0)
        totals[1] += units
        totals[2] += 1
    found = {}
    for (name, by_tokens), (seconds, units, jobs) in sorted(spent.items()):
        if not (rate := float(f"{seconds / units:.3g}")):
            continue
        found[name] = Rate(jobs=int(jobs), **{"tokens" if by_tokens else "weights": rate})
    return found


def taken(benchmark: Path) -> float | None:
    """Wall seconds of a finished job, from Snakemake's benchmark file; None where there is none or it holds none."""
    try:
        with benchmark.open(encoding="utf-8", newline="") as stream:
            return float(list(csv.DictReader(stream, delimiter="\t"))[-1]["s"])
    except (OSError, UnicodeDecodeError, ValueError, KeyError, IndexError, csv.Error):
        return None


@cache
def shipped() -> Rates:
    """The rates that came with this installation."""
    read = json.loads(resources.files("holdfast.cluster").joinpath("rates.json").read_text(encoding="utf-8"))
    stages = {name: Rate(**rate) for name, rate in read["cpu"]["stages"].items()}
    return Rates(read["cpu"]["start"], read["cpu"]["light"], stages, Graphics(**read["gpu"]))
