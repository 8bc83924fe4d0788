"""Nothing is learnt on what is evaluated: prompt sets share no prompt, calibration holds no evaluated text."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from holdfast.errors import HoldfastError
from holdfast.files import read_jsonl
from holdfast.prompts.sources import read_records, read_text

RUN = 13  # words in a row that two texts do not share by chance (Brown et al. 2020, appendix C)
SHORTEST = 5  # a prompt of fewer words ("Tell me a joke.") may stand in any text


def normalised(text: str) -> str:
    """Lower-case words only, so that punctuation and spacing cannot hide a repeated prompt."""
    return " ".join(re.findall(r"\w+", text.lower()))


def check_disjoint(files: Mapping[str, Path]) -> dict[str, int]:
    """Number of prompts per set; raises HoldfastError when a text stands in two sets, or twice in one."""
    owner: dict[str, tuple[str, str]] = {}
    sizes = {}
    for name, path in files.items():
        for record in read_records(path):
            key = normalised(record["text"])
            if key in owner:
                other, other_id = owner[key]
                raise HoldfastError(
                    f"{record['id']} is also in {other} (as {other_id})",
                    str(path),
                    "give every role its own rows: nothing may be learnt on what is evaluated",
                )
            owner[key] = (name, record["id"])
        sizes[name] = sum(1 for owned, _ in owner.values() if owned == name)
    return sizes


def check_calibration(
    calibration: Path,
    prompts: Mapping[str, Path],
    held_out: Mapping[str, Any] | None,
    zero_shot: Mapping[str, Path],
) -> int:
    """Number of calibration records; raises HoldfastError when one holds an evaluated text.

    Overlap is a run of 13 words in common, or the whole of a shorter prompt of at least 5 words, in any case
    and punctuation. Evaluated texts are every prompt set, ``held_out``, the source (see ``read_text``) of
    the text that perplexity is measured on, and ``zero_shot``, the items of each task (JSONL with ``question``,
    and ``context`` where there is one). Tasks whose data the harness fetches itself are not looked at.
    """
    runs: dict[int, dict[str, str]] = defaultdict(dict)
    for text, owner in _evaluated(prompts, zero_shot):
        words = normalised(text).split()
        if len(words) >= SHORTEST:
            size = min(len(words), RUN)
            runs[size] |= dict.fromkeys(word_runs(words, size), owner)
    if held_out:
        words = normalised(read_text(held_out)).split()
        runs[RUN] |= dict.fromkeys(word_runs(words, RUN), f"the text of {held_out['source']}")
    records = read_jsonl(calibration)
    for number, record in enumerate(records, 1):
        words = normalised(str(record.get("text", ""))).split()
        for size, owners in runs.items():
            if shared := next((run for run in word_runs(words, size) if run in owners), None):
                raise HoldfastError(
                    f"record {number} shares {size} words in a row with {owners[shared]}",
                    str(calibration),
                    "calibrate on other text: nothing may be learnt on what is evaluated",
                )
    return len(records)


def _evaluated(prompts: Mapping[str, Path], zero_shot: Mapping[str, Path]) -> Iterator[tuple[str, str]]:
    for name, path in prompts.items():
        for record in read_records(path):
            yield record["text"], f"{record['id']} of {name}"
    for name, path in zero_shot.items():
        for number, item in enumerate(read_jsonl(path), 1):
            for key in ("context", "question"):
                yield str(item.get(key) or ""), f"item {number} of {name}"


def word_runs(words: list[str], size: int) -> Iterator[str]:
    """Every run of ``size`` words, as one string."""
    return (" ".join(words[i : i + size]) for i in range(len(words) - size + 1))
