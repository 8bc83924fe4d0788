"""Completions fit to be shown, each with what the judges call it."""

from itertools import chain
from pathlib import Path
from typing import Any

from holdfast.files import read_jsonl
from holdfast.report.wording import visible


def samples(folder: Path, name: str, count: int | None = None) -> dict[str, dict[str, Any]]:
    """The first ``count`` answers of a prompt set, or all, by prompt id: ``prompt``, ``completion``, ``verdicts``.

    Args:
        folder: with ``generations/`` and ``verdicts/``, those of judges that are models in folders of their own.

    Raises:
        HoldfastError: a file is not JSONL.
    """
    file = folder / f"generations/{name}.jsonl"
    verdicts: dict[str, list[str]] = {}
    lists, models = folder.glob(f"verdicts/{name}.jsonl"), sorted(folder.glob(f"verdicts/*/{name}.jsonl"))
    for record in chain.from_iterable(map(read_jsonl, [*lists, *models])):
        said = f"{record.get('judge')}: {record.get('label')}"
        verdicts.setdefault(str(record.get("prompt_id")), []).append(said)
    return {
        (prompt := str(r.get("prompt_id"))): {
            "prompt": visible(str(r.get("prompt", ""))),
            "completion": visible(str(r.get("completion", ""))),
            "verdicts": verdicts.get(prompt, []),
        }
        for r in (read_jsonl(file) if file.is_file() else [])[:count]
    }
