"""Nothing is learnt on what is evaluated: prompt sets share no prompt, calibration holds no evaluated text."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from holdfast.errors import HoldfastError
from holdfast.files import read_jsonl
from holdfast.prompts.images import pictures_of
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
            # The same question about another image is another prompt.
            images = [image.sha256 for image in pictures_of(record, path.parent)]
            key = " ".join([normalised(record["text"]), *images])
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


class EvaluatedText:
    """The words in a row by which a text is known to hold some of what is evaluated."""

    def __init__(
        self,
        prompts: Mapping[str, Path],
        zero_shot: Mapping[str, Path] | None = None,
        held_out: Mapping[str, Any] | None = None,
    ) -> None:
        """``prompts``: prompt sets by name; ``zero_shot``: the items of each task (JSONL with ``question``, and
        ``context`` where there is one); ``held_out``: the source (see ``read_text``) of the text that perplexity
        is measured on."""
        self.runs: dict[int, dict[str, str]] = defaultdict(dict)
        for text, owner in _evaluated(prompts, zero_shot or {}):
            self.add(text, owner)
        if held_out:
            words = normalised(read_text(held_out)).split()
            self.runs[RUN] |= dict.fromkeys(word_runs(words, RUN), f"the text of {held_out['source']}")

    def add(self, text: str, owner: str) -> None:
        """Know another text, of fewer than SHORTEST words nothing."""
        words = normalised(text).split()
        if len(words) >= SHORTEST:
            size = min(len(words), RUN)
            self.runs[size] |= dict.fromkeys(word_runs(words, size), owner)

    def held_by(self, text: str) -> tuple[int, str] | None:
        """How many words in a row ``text`` shares with an evaluated one, and which; None where with none.

        RUN words; of a shorter evaluated text all of them, of one with fewer than SHORTEST nothing counts.
        """
        words = normalised(text).split()
        for size, owners in self.runs.items():
            if shared := next((run for run in word_runs(words, size) if run in owners), None):
                return size, owners[shared]
        return None


def check_calibration(
    calibration: Path,
    prompts: Mapping[str, Path],
    held_out: Mapping[str, Any] | None,
    zero_shot: Mapping[str, Path],
) -> int:
    """Number of calibration records; raises HoldfastError for one that holds an evaluated text.

    The evaluated texts are every prompt set, ``held_out`` and ``zero_shot``, as :class:`EvaluatedText` takes them.
    Tasks whose data the harness fetches itself are not looked at.
    """
    evaluated = EvaluatedText(prompts, zero_shot, held_out)
    records = read_jsonl(calibration)
    for number, record in enumerate(records, 1):
        if shared := evaluated.held_by(str(record.get("text", ""))):
            raise HoldfastError(
                f"record {number} shares {shared[0]} words in a row with {shared[1]}",
                str(calibration),
                "calibrate on other text: nothing may be learnt on what is evaluated",
            )
    return len(records)


def _evaluated(prompts: Mapping[str, Path], zero_shot: Mapping[str, Path]) -> Iterator[tuple[str, str]]:
    for name, path in prompts.items():
        for record in read_records(path):
            for text in (record["text"], record.get("drawn", "")):
                yield text, f"{record['id']} of {name}"
    for name, path in zero_shot.items():
        for number, item in enumerate(read_jsonl(path), 1):
            for key in ("context", "question"):
                yield str(item.get(key) or ""), f"item {number} of {name}"


def word_runs(words: list[str], size: int) -> Iterator[str]:
    """Every run of ``size`` words, as one string."""
    return (" ".join(words[i : i + size]) for i in range(len(words) - size + 1))
