"""Run a command and measure it from outside: seconds, and the peak of its memory.

Memory is the process's resident set at its highest (VmHWM): what it allocated and what it has mapped of files, a
checkpoint's weights among them. Nothing of a GPU's memory is in it.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple


class Measured(NamedTuple):
    seconds: float
    peak_bytes: int


def run(command: list[str]) -> Measured:
    """Run to the end; when it fails, the end of its output is shown and the benchmark stops."""
    peak, start = 0, time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            peak = max(peak, resident(process.pid))
            time.sleep(0.01)
        seconds = time.perf_counter() - start
        if process.returncode:
            output.seek(0)
            print(f"failed: {' '.join(command)}\n{output.read()[-2000:]}", file=sys.stderr)
            sys.exit(1)
    return Measured(seconds, peak)


def resident(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:")), 0)
