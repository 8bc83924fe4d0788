"""The rates that ``holdfast plan`` predicts with, from the benchmark files of finished studies.

    python benchmarks/rates.py config/demo.yaml

Run it where ``results/STUDY`` lies. Prints, and writes into ``workflow/holdfast/cluster/rates.json``, for every stage
that was measured the seconds per billion weights and thousand tokens (of uncalibrated compressions, per billion
weights) on one thread; the others and the estimates for GPUs are kept. Compressions that no study measured are taken
from what benchmarks/compression.py printed (RESULTS.md).
"""

import argparse
from dataclasses import asdict
from pathlib import Path

from holdfast.cluster.configs import Sizes
from holdfast.cluster.jobs import jobs
from holdfast.cluster.needs import Requests
from holdfast.cluster.rates import fitted, taken
from holdfast.cluster.sizes import Size
from holdfast.cluster.work import Work
from holdfast.config import load_study
from holdfast.files import read_json, write_json

RATES = Path(__file__).parent.parent / "workflow/holdfast/cluster/rates.json"
# `python benchmarks/compression.py`, 2026-11-21 (RESULTS.md): seconds for 8 sequences of 128 tokens, seen twice, on
# the embedded model.
BENCHMARKED = {"fp8": 7.3, "smoothquant": 11.3, "awq": 72.4, "sparsegpt": 21.5}
CALIBRATED = {"smoothquant", "awq", "sparsegpt"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", nargs="+", type=Path)
    done: list[tuple[Work, Size, float]] = []
    for config in parser.parse_args().configs:
        study = load_study(config)
        requests = Requests(study, Sizes(study, Path("results", study.study), reach=False, say=print))
        for job in jobs(config):
            work = requests.work(job.rule, job.names) if job.names.keys() & {"model", "judge"} else None
            seconds = taken(Path(job.benchmark)) if job.benchmark else None
            size = requests.model(job.names)[0] if work else None
            if work and size and seconds is not None:
                done.append((work, size, seconds))
    read = read_json(RATES)
    embedded = next(size for _, size, _ in done)
    for method, seconds in BENCHMARKED.items():
        tokens = 2 * 8 * 128 if method in CALIBRATED else 0
        done.append((Work("compress", tokens, method=method), embedded, seconds))
    for name, rate in fitted(done, read["cpu"]["start"]).items():
        read["cpu"]["stages"][name] = asdict(rate)
        print(name, rate)
    write_json(RATES, read)


if __name__ == "__main__":
    main()
