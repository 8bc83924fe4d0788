"""Which partitions of the site file take a job, beside the Slurm plugin's own choice."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from holdfast.cluster.site import Site, read_site
from holdfast.config.reading import ConfigError
from snakemake_executor_plugin_slurm import partitions as plugin

A100 = {"max_gpu": 4, "available_gpu_models": ["a100"], "max_runtime": 60}
V100 = {"max_gpu": 16, "available_gpu_models": ["v100"], "max_runtime": "7d"}
FAST = {"max_runtime": 60, "available_constraints": ["haswell", "ib"]}
LONG = {"max_runtime": "7d", "available_constraints": ["skylake"]}


def taking(site: Site, gpus: int, mem_mb: int, runtime: int, threads: int) -> list[str]:
    """The partitions that the plugin would choose from."""
    resources: dict[str, Any] = {"mem_mb": mem_mb, "runtime": runtime}
    resources |= {"gpu": gpus, "gpu_model": site.gpu_type} if gpus else {}
    resources |= {"constraint": site.constraint} if site.constraint else {}
    job = SimpleNamespace(resources=resources, threads=threads, name="generate")
    limits = {
        name: plugin.PartitionLimits(**p.model_dump(exclude_none=True)) for name, p in site.partitions.items()
    }
    return [name for name, p in limits.items() if plugin.Partition(name, p).score_job_fit(job) is not None]


@pytest.mark.parametrize(
    ("described", "gpus", "name"),
    [
        ({"gpu_type": "a100", "partitions": {"a100": A100, "v100": V100}}, 2, "a100"),
        ({"gpu_type": "v100", "partitions": {"a100": A100, "v100": V100}}, 2, "v100"),
        ({"constraint": "ib,haswell", "partitions": {"fast": FAST, "long": LONG}}, 0, "fast"),
        ({"constraint": "skylake", "partitions": {"fast": FAST, "long": LONG}}, 0, "long"),
    ],
)
def test_every_try_fits_a_partition_with_the_sites_gpus_and_features(
    described: dict[str, Any], gpus: int, name: str
) -> None:
    site = Site(**described)
    assert site.refuses(gpus, 1000) is None
    for attempt in (1, 2, 3):
        mem_mb, runtime, threads = site.within(gpus, 1000, 50, 4, attempt)
        assert taking(site, gpus, mem_mb, runtime, threads) == [name], attempt


@pytest.mark.parametrize(
    ("described", "gpus", "told"),
    [
        (
            {"gpu_type": "a100", "partitions": {"a100": A100, "v100": V100}},
            8,
            "8 GPUs of type a100 on one node, where the site file's partitions have 4",
        ),
        (
            {"gpu_type": "h100", "partitions": {"a100": A100}},
            1,
            "h100, which none of the site file's partitions lists",
        ),
        (
            {"constraint": "haswell&ib", "partitions": {"fast": FAST}},
            0,
            "haswell&ib, which none of the site file's partitions lists",
        ),
    ],
)
def test_what_no_partition_takes_is_told(described: dict[str, Any], gpus: int, told: str) -> None:
    site = Site(**described)
    assert site.refuses(gpus, 1000) == told
    assert taking(site, gpus, *site.within(gpus, 1000, 50, 4)) == []


def test_a_type_of_gpu_says_nothing_of_jobs_without() -> None:
    site = Site(gpu_type="h100", partitions={"a100": A100})
    assert site.refuses(0, 1000) is None


def test_times_that_yaml_reads_as_numbers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text("partitions:\n  gpu: {max_runtime: 12:00:00, max_gpu: 4}\n")
    with pytest.raises(ConfigError) as caught:
        read_site(path)
    told = 'partitions.gpu.max_runtime: YAML reads 12:00:00 as a number to the base of 60; write "12:00:00"'
    assert caught.value.mistakes == [f"{path}: {told}"]
    path.write_text('partitions:\n  gpu: {max_runtime: "12:00:00", max_gpu: 4}\n')
    assert read_site(path).partitions["gpu"].longest == 720
