"""The rates that ``holdfast plan`` predicts with, from the benchmark files of finished studies.

    python benchmarks/rates.py config/demo.yaml

Run it where ``results/STUDY`` lies. Prints, and writes into ``workflow/holdfast/cluster/rates.json``, for every stage
that was measured the seconds per billion weights and thousand tokens (of uncalibrated compressions, per billion
weights) on one thread; the others and the estimates for GPUs are kept. Compressions that no study measured are taken
from what benchmarks/compression.py printed (RESULTS.md).
"""

import argparse
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

from holdfast.cluster.configs import Sizes
from holdfast.cluster.jobs import jobs
from holdfast.cluster.needs import Requests
from holdfast.cluster.rates import fitted, taken
from holdfast.cluster.sizes import Size, size_of
from holdfast.cluster.work import COUNTERS, Work, counter
from holdfast.config import load_study
from holdfast.embedded.conversion import CONFIG
from holdfast.files import read_json, write_json

RATES = Path(__file__).parent.parent / "workflow/holdfast/cluster/rates.json"
# `python benchmarks/compression.py`, 2026-11-21 (RESULTS.md): seconds for 8 sequences of 128 tokens, seen twice, on
# the embedded model. That of fp8 (7.3 s) is all start, and says nothing of its weights.
BENCHMARKED = {"smoothquant": 11.3, "awq": 72.4, "sparsegpt": 21.5}
CONFIGS = Path(__file__).parent.parent / "config"
# Seconds a job of stages that the demo has not, or that have changed since: as `python benchmarks/study.py
# results/study-demo` printed them, of jobs that shared their cores; and processor seconds of single jobs (RESULTS.md).
PRINTED = {
    "transfer": (203.0, "study-demo", {"compression": "wanda-40"}),
    "tune": (295.0, "study-demo", {"compression": "rtn-w4", "method": "tune"}),
    "direction": (35.9, "demo", {"compression": "magnitude-20"}),
    "edit": (80.6, "demo", {"compression": "magnitude-20", "method": "aird"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", nargs="+", type=Path)
    done: list[tuple[Work, Size, float]] = []
    light = defaultdict[str, list[float]](list)
    for config in parser.parse_args().configs:
        study = load_study(config)
        requests = Requests(study, Sizes(study, Path("results", study.study), reach=False, say=print))
        for job in jobs(config):
            seconds = taken(Path(job.benchmark)) if job.benchmark else None
            if seconds is None:
                continue
            if counter(job.rule) is None:
                light[job.rule].append(seconds)
            elif (work := requests.work(job.rule, job.names)) and (size := requests.model(job.names)[0]):
                done.append((work, size, seconds))
    read = read_json(RATES)
    embedded = size_of(CONFIG)
    for method, seconds in BENCHMARKED.items():
        done.append((Work("compress", 2 * 8 * 128, method=method), embedded, seconds))
    done = [
        (work, size, seconds) for work, size, seconds in done if (work.method or work.stage) not in PRINTED
    ]
    for stage, (seconds, config, names) in PRINTED.items():
        work = COUNTERS[stage](load_study(CONFIGS / f"{config}.yaml"), names, embedded)
        done.append((work, embedded, seconds))
    read["cpu"]["light"] = {rule: round(sum(some) / len(some), 1) for rule, some in sorted(light.items())}
    for name, rate in fitted(done, read["cpu"]["start"]).items():
        read["cpu"]["stages"][name] = asdict(rate)
        print(name, rate)
    write_json(RATES, read)


if __name__ == "__main__":
    main()
