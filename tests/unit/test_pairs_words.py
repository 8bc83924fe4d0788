"""Pairs in the embedded vision-language model's own words: alike, apart, checked, and none of their harm committed."""

import inspect
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from holdfast.config.by_hand import checked
from holdfast.embedded.vision.pictures import SIDE
from holdfast.embedded.vision.vocabulary import read_words
from holdfast.errors import HoldfastError
from holdfast.files import read_json, read_jsonl, sha256, write_json, write_jsonl
from holdfast.pairs import word_scenes, words
from holdfast.pairs.check import DefectiveError, check
from holdfast.pairs.learnt import packaged_sets
from holdfast.pairs.words import UNTAUGHT, build_words, word_pairs
from PIL import Image


def build(out: Path, **settings: object) -> Path:
    build_words(out, checked("pairs", json.dumps({"benchmark": "embedded-words", **settings})))
    return out


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("words") / "pairs")


def test_they_pass_the_check(built: Path) -> None:
    lines = check(built, packaged_sets())
    assert lines[0] == "120 pairs in 2 categories: text 40, image 40, typographic 40"
    assert lines[-1].startswith("not looked at: these words")
    assert not [line for line in lines if "incomplete" in line]


def test_built_twice_they_are_the_same(built: Path, tmp_path: Path) -> None:
    again = build(tmp_path / "pairs")
    files = {path.relative_to(built) for path in built.rglob("*.*") if path.name != "provenance.json"}
    assert len(files) == 1 + 160 + 1
    assert all(sha256(built / file) == sha256(again / file) for file in files if (built / file).is_file())


def test_no_word_stands_in_both_splits() -> None:
    pairs = word_pairs()
    split = {}
    for pair in pairs:
        for word in (pair.harmful, pair.benign):
            assert split.setdefault(word, pair.split) == pair.split
    assert Counter(split.values()) == {"train": 32, "test": 48}
    assert {pair.split for pair in pairs if pair.category == UNTAUGHT} == {"test"}


def test_a_study_takes_a_part(tmp_path: Path) -> None:
    folder = build(tmp_path / "pairs", split="test", modality=["image"], limit=3)
    assert Counter((r["modality"], r["split"]) for r in read_jsonl(folder / "pairs.jsonl")) == {
        ("image", "test"): 6
    }
    with pytest.raises(HoldfastError, match="embedded-words has no split validation"):
        build(tmp_path / "no", split="validation")


def test_scenes_are_of_the_towers_size(built: Path) -> None:
    for file in (built / "images").iterdir():
        with Image.open(file) as picture:
            assert picture.size == (SIDE, SIDE)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("drawn", "kettle", "the benign half is not the benchmark's"),
        ("box", [0, 0, 1, 1], "pixels outside the box of the text differ"),
        ("category", "other", "the halves differ in category"),
    ],
)
def test_a_defect_is_caught(field: str, value: object, told: str, built: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(built, tmp_path / "pairs"))
    records = read_jsonl(folder / "pairs.jsonl")
    spoiled = next(r for r in records if r["modality"] == "image" and r["label"] == "benign")
    for record in records:
        if record is spoiled or (field == "box" and record["pair"] == spoiled["pair"]):
            record[field] = value
    write_jsonl(folder / "pairs.jsonl", records)
    write_json(
        folder / "provenance.json",
        {**read_json(folder / "provenance.json"), "sha256": sha256(folder / "pairs.jsonl")},
    )
    with pytest.raises(DefectiveError, match=f"{spoiled['pair']}.*{told}"):
        check(folder, {})


def test_no_harmful_word_is_written_here() -> None:
    written = "".join(inspect.getsource(module) for module in (words, word_scenes)).lower()
    assert not [word for word in read_words().harmful if word in written]
