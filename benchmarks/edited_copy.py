"""An edited copy of a checkpoint against reading and writing the shards that change.

    python benchmarks/edited_copy.py CHECKPOINT [--layer N] [--repeats N]

o_proj and down_proj of one layer are changed, as AIRD does; the search before it and the checksums after it, which
`holdfast edit` also makes, are not in it. Prints one line per figure. Targets: at most 2 times the
time to read and write the changed shards, at most 1.1 times their disk.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from holdfast.architectures import decoder_layers, module_name, writer
from holdfast.edited_checkpoints import edited_copy, read_weight
from holdfast.model_folders import headers, weight_files
from holdfast.skeletons import skeleton


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--layer", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    model = skeleton(given.checkpoint)
    block = decoder_layers(model)[given.layer]
    names = [f"{module_name(model, writer(block, kind))}.weight" for kind in ("o_proj", "down_proj")]
    weights = {name: read_weight(given.checkpoint, name) * 1.01 for name in names}
    places = headers(given.checkpoint)
    modules = tuple(name.removesuffix("weight") for name in names)
    shards = sorted({stored.file for entry, stored in places.items() if entry.startswith(modules)})
    changed = sum((given.checkpoint / shard).stat().st_size for shard in shards)
    with tempfile.TemporaryDirectory(dir=given.checkpoint.parent) as scratch:
        out, plain = Path(scratch) / "copy", Path(scratch) / "plain"

        def copy() -> None:
            edited_copy(given.checkpoint, out, weights)

        def read_and_write() -> None:
            plain.mkdir()
            for shard in shards:
                (plain / shard).write_bytes((given.checkpoint / shard).read_bytes())

        seconds: dict[str, list[float]] = {"copy": [], "plain": []}
        runs: dict[str, Callable[[], None]] = {"copy": copy, "plain": read_and_write}
        used = 0
        for _ in range(given.repeats + 1):  # the first round warms the page cache and is dropped
            for name, run in runs.items():
                shutil.rmtree(out if name == "copy" else plain, ignore_errors=True)
                os.sync()
                start = time.perf_counter()
                run()
                os.sync()
                seconds[name].append(time.perf_counter() - start)
            used = sum(f.stat().st_blocks * 512 for f in out.iterdir() if f.stat().st_nlink == 1)
    took = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    total = sum(file.stat().st_size for file in weight_files(given.checkpoint))
    print(f"changed shards: {len(shards)}, {changed / 1e6:.0f} MB of {total / 1e6:.0f} MB")
    ratio = took["copy"] / took["plain"]
    print(f"edited copy: {took['copy']:.2f} s; read and write {took['plain']:.2f} s; ratio {ratio:.2f}")
    print(f"disk: {used / 1e6:.0f} MB of its own; ratio {used / changed:.3f}")


if __name__ == "__main__":
    main()
