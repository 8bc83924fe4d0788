"""A stage that answers prompts, killed half way."""

import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path


def killed_while_answering(
    command: Sequence[str], out: Path, environment: Mapping[str, str], seconds: float
) -> str:
    """What ``attack.jsonl.*.partial`` in ``out`` holds after SIGKILL, sent when there are some answers in it."""

    def partial() -> Path | None:
        return next(out.glob("attack.jsonl.*.partial"), None)

    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) as process:
        deadline = time.monotonic() + seconds
        while not ((p := partial()) and p.stat().st_size > 2000) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    left = partial()
    assert left is not None
    return left.read_text(encoding="utf-8")
