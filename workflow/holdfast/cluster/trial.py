"""A small job on the live cluster, as the workflow's own are."""

import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from holdfast.cluster.commands import slurm
from holdfast.cluster.live import Finding, Live
from holdfast.cluster.site import Site
from holdfast.cluster.software import RUNTIMES, load
from holdfast.errors import HoldfastError

TRY = 120  # seconds in which a small job begins and ends, where the cluster is not full


def trial(site: Site, results: Path, live: Live) -> Iterator[Finding]:
    """A small job in every partition: does it start, import Holdfast, see a GPU where the site file says that there are
    some, and write where it is seen from here?"""
    try:
        results.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        yield Finding(str(results), f"cannot be made ({error.strerror})", "run in a folder of your own")
        return
    # What is not there has been told.
    for name in [name for name in site.partitions or [live.default()] if name in live.partitions]:
        mark = results / f".doctor-{os.getpid()}"
        gpu = bool(site.gpu_memory_gb and name in site.partitions and site.partitions[name].max_gpu)
        options = [f"--partition={name}", "--ntasks=1", "--mem=2000", "--time=5", "--quiet"]
        options += [f"--{k}={v}" for k in ("account", "qos", "constraint") if (v := getattr(site, k))]
        if gpu:
            options.append(f"--gpus={site.gpu_type}:1" if site.gpu_type else "--gpus=1")
        where = f"a job in {name}"
        try:
            command = ["sh", "-c", trial_script(site, mark.resolve())]
            slurm("srun", *options, f"--immediate={TRY}", *command, timeout=2 * TRY)
        except HoldfastError as error:
            yield Finding(
                where,
                error.what,
                "a job must find this folder, this Python and what the site file names, and room",
            )
            continue
        if not mark.exists():
            what = f"what it wrote into {results} is not seen here"
            yield Finding(where, what, "work in a folder all nodes see")
            continue
        seen = mark.read_text(encoding="utf-8")
        mark.unlink()
        if gpu and seen == "0":
            what = "was given a GPU, and torch sees none there: models would run on the CPU"
            yield Finding(where, what, "compare nvidia-smi there with torch's build (envs/core-gpu.txt)")
        else:
            on_gpu = ", torch sees its GPU" if gpu else ""
            yield Finding(where, f"starts, imports holdfast{on_gpu}, and its files are seen here")


def trial_script(site: Site, mark: Path) -> str:
    """In sh: what every job does before and around its command, and one that leaves ``mark``: 1 where torch sees
    a GPU, else 0."""
    python, lines = shlex.quote(sys.executable), ["set -e", load(site.modules)]
    if site.scratch:
        lines.append(
            f"[ -w {site.scratch} ] || {{ echo 'no folder {site.scratch} to write into' >&2; exit 1; }}"
        )
    if site.container:
        look = " || ".join(f"command -v {runtime}" for runtime in RUNTIMES)
        lines.append(f"runtime=$({look}) || {{ echo 'neither {' nor '.join(RUNTIMES)}' >&2; exit 1; }}")
        results = shlex.quote(str(mark.parent))
        python = f'$runtime exec --home "$PWD" --bind {results} {shlex.quote(site.container)} python3'
    seen = "str(int(torch.cuda.is_available()))"
    code = f"import holdfast, pathlib, torch; pathlib.Path({str(mark)!r}).write_text({seen})"
    return "\n".join([*lines, f"{python} -c {shlex.quote(code)}"])
