"""What is learnt on, and the proof that the benchmark shares no prompt with it."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast.embedded.vision.vocabulary import read_words
from holdfast.errors import HoldfastError
from holdfast.files import read_json, read_jsonl
from holdfast.prompts.overlap import EvaluatedText, normalised
from holdfast.prompts.sources import package_file, read_prompts
from holdfast.repair.request import ADVBENCH, HARMLESS, ROWS

# Two prompts this near, by `edit_distance`, are one prompt in other words.
NEAR = 0.2
ADAPTER = "holdfast/embedded/refusal-adapter/recipe.json"
VISION_WORDS = "words of the embedded vision-language model"
CALIBRATION = "package:holdfast/data/calibration.jsonl"
# The roles of a study that something is learnt or chosen on.
ROLES = ("harmful_train", "harmful_validation", "harmless_train", "harmless_validation")


def tokens(text: str) -> list[str]:
    """The words of a text, without case and punctuation."""
    return normalised(text).split()


def edit_distance(first: Sequence[str], second: Sequence[str]) -> float:
    """Levenshtein distance of two lists of words over the longer one's length: 0 (the same) to 1."""
    row = list(range(len(second) + 1))
    for i, word in enumerate(first, 1):
        above = row
        row = [i]
        for j, other in enumerate(second, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (word != other)))
    return row[-1] / max(len(first), len(second), 1)


def near(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether two texts are near duplicates: at most NEAR apart. Words in common are counted first, for speed."""
    longer = max(len(first), len(second))
    if abs(len(first) - len(second)) > NEAR * longer:
        return False
    if (Counter(first) & Counter(second)).total() < (1 - NEAR) * longer:
        return False
    return edit_distance(first, second) <= NEAR


def packaged_sets() -> dict[str, list[str]]:
    """Texts that the packaged studies learn on: directions, searches, adapters, calibration.

    The rows are those of ``holdfast repair``, which hold those of the studies in ``config/``, and of the adapter.
    """
    tuned = read_json(package_file(ADAPTER))
    recipes: dict[str, dict[str, Any]] = {
        f"AdvBench rows {ROWS[role]}": {**ADVBENCH, "rows": ROWS[role]} for role in ("train", "validation")
    }
    recipes["the refusal adapter's harmful prompts"] = tuned["harmful"]
    recipes |= {
        f"harmless prompts, {split}": {**HARMLESS, "where": {"split": split}}
        for split in ("train", "validation", "tune")
    }
    recipes["calibration text"] = {"source": CALIBRATION}
    found = {name: _texts(recipe) for name, recipe in recipes.items()}
    found[VISION_WORDS] = list(read_words().all)
    return found


def given_sets(path: Path) -> dict[str, list[str]]:
    """Texts of a file that the user learns on: prompts or calibration (JSONL with ``text``), or a study's config.

    Of a study: the train and validation prompts, and calibration. Raises HoldfastError for a file of another kind, one
    that cannot be read, and a study with mistakes.
    """
    if path.suffix == ".jsonl":
        return {str(path): [str(record.get("text", "")) for record in read_jsonl(path)]}
    if path.suffix not in {".yaml", ".yml"}:
        raise HoldfastError("neither prompts nor a study", str(path), "give a .jsonl file or a study's .yaml")
    from holdfast.config import load_study

    study = load_study(path)
    prompts = study.prompts.model_dump()
    found = {f"{role} of {path}": _texts(recipe) for role in ROLES if (recipe := prompts.get(role))}
    if study.calibration:
        given = study.calibration.model_dump(include={"source", "sha256", "column", "split", "config"})
        found[f"calibration of {path}"] = _texts(given)
    return found


def _texts(recipe: Mapping[str, Any]) -> list[str]:
    return [record["text"] for record in read_prompts(recipe)]


def overlapping(
    file: Path, records: Sequence[Mapping[str, Any]], learnt: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """A line for each record that shares words in a row with a learnt text (either way round), or is near to one.

    Args:
        file: the benchmark's records.
        records: the same, read.
        learnt: texts by the name of their set.
    """
    evaluated = EvaluatedText({file.name: file})
    known = EvaluatedText({})
    for name, texts in learnt.items():
        for text in texts:
            known.add(text, name)
            if held := evaluated.held_by(text):
                yield f"{held[1]} shares {held[0]} words in a row with {name}"
    split = [(name, tokens(text)) for name, texts in learnt.items() for text in texts]
    for record in records:
        for text in (record["text"], record.get("drawn", "")):
            if held := known.held_by(text):
                yield f"{record['id']} shares {held[0]} words in a row with {held[1]}"
            words = tokens(text)
            if words and (twin := next((name for name, other in split if near(words, other)), None)):
                yield f"{record['id']} is a near duplicate of one of {twin}"
