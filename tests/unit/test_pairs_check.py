"""``holdfast pairs check``: a deliberate defect of each kind is caught in one line that names the pair."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from holdfast.config.by_hand import checked
from holdfast.errors import HoldfastError
from holdfast.files import read_json, read_jsonl, sha256, write_json, write_jsonl
from holdfast.pairs import check as checking
from holdfast.pairs.build import build
from holdfast.pairs.check import DefectiveError, check
from holdfast.pairs.learnt import given_sets, packaged_sets
from holdfast.pairs.references import read_pairs
from PIL import Image

Records = list[dict[str, Any]]
Defect = Callable[[Records, Path], object]

TEXT, IMAGE, PAGE = "text-001", "image-001", "typographic-01"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pairs of each modality."""
    folder = tmp_path_factory.mktemp("benchmark") / "pairs"
    build(folder, checked("pairs", '{"limit": 2}'))
    return folder


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "pairs"))


def spoil(folder: Path, defect: Defect) -> None:
    """Apply a defect to the records and write them, with the checksum that provenance.json would have of them."""
    records = read_jsonl(folder / "pairs.jsonl")
    defect(records, folder)
    write_jsonl(folder / "pairs.jsonl", records)
    provenance = read_json(folder / "provenance.json")
    write_json(folder / "provenance.json", {**provenance, "sha256": sha256(folder / "pairs.jsonl")})


def half(records: Records, pair: str, label: str) -> dict[str, Any]:
    return next(record for record in records if record["pair"] == pair and record["label"] == label)


def put(pair: str, which: str, /, **fields: Any) -> Defect:
    return lambda records, folder: half(records, pair, which).update(fields)


def both(pair: str, /, **fields: Any) -> Defect:
    return lambda records, folder: [
        half(records, pair, label).update(fields) for label in ("harmful", "benign")
    ]


def without(pair: str, label: str) -> Defect:
    return lambda records, folder: records.remove(half(records, pair, label))


def without_picture(records: Records, folder: Path) -> None:
    del half(records, IMAGE, "benign")["images"]


def picture(records: Records, folder: Path, pair: str, label: str) -> Path:
    return folder / half(records, pair, label)["images"][0]["file"]


def repainted(pair: str, label: str, paint: Callable[[Image.Image], Image.Image | None]) -> Defect:
    """Another picture, whose checksum is recorded."""

    def defect(records: Records, folder: Path) -> None:
        path = picture(records, folder, pair, label)
        with Image.open(path) as before:
            after = before.copy()
        (paint(after) or after).save(path)
        half(records, pair, label)["images"][0]["sha256"] = sha256(path)

    return defect


def dotted(image: Image.Image) -> None:
    image.putpixel((0, 0), (1, 2, 3))


def swapped(records: Records, folder: Path) -> None:
    """The two pictures of a pair change places, their checksums with them."""
    first, second = (half(records, IMAGE, label) for label in ("harmful", "benign"))
    first["images"], second["images"] = second["images"], first["images"]


def corrupt(records: Records, folder: Path) -> None:
    path = picture(records, folder, IMAGE, "benign")
    path.write_bytes(path.read_bytes()[:200])
    half(records, IMAGE, "benign")["images"][0]["sha256"] = sha256(path)


def unrecorded(records: Records, folder: Path) -> None:
    with picture(records, folder, IMAGE, "benign").open("ab") as stream:
        stream.write(b" ")


def lost(records: Records, folder: Path) -> None:
    picture(records, folder, PAGE, "harmful").unlink()


def same_text(records: Records, folder: Path) -> None:
    half(records, TEXT, "benign")["text"] = half(records, "text-002", "benign")["text"].upper()


def same_drawn(records: Records, folder: Path) -> None:
    half(records, IMAGE, "benign")["drawn"] = half(records, "image-002", "benign")["drawn"]


def same_picture(records: Records, folder: Path) -> None:
    shutil.copy(picture(records, folder, "image-002", "benign"), picture(records, folder, IMAGE, "benign"))
    half(records, IMAGE, "benign")["images"][0]["sha256"] = sha256(picture(records, folder, IMAGE, "benign"))


def dropped(records: Records, folder: Path) -> None:
    records[:] = [record for record in records if record["pair"] != TEXT]


def stray(records: Records, folder: Path) -> None:
    shutil.copy(picture(records, folder, IMAGE, "benign"), folder / "images/stray.png")


def same_halves(records: Records, folder: Path) -> None:
    half(records, TEXT, "benign")["text"] = half(records, TEXT, "harmful")["text"]


DEFECTS: dict[str, tuple[Defect, str]] = {
    "half missing": (without(TEXT, "benign"), "text-001 has 0 benign halves, not 1"),
    "two harmful halves": (put(IMAGE, "benign", label="harmful"), "image-001 has 2 harmful halves, not 1"),
    "unknown label": (put(TEXT, "benign", label="fine"), "text-001 has a half labelled fine"),
    "other modality": (put(TEXT, "benign", modality="image"), "text-001: the halves differ in modality"),
    "unknown modality": (both(TEXT, modality="sound"), "text-001 has modality sound"),
    "other category": (put(IMAGE, "benign", category="weapons"), "image-001: the halves differ in category"),
    "other scene": (put(IMAGE, "benign", scene="poster"), "image-001: the halves differ in scene"),
    "other box": (put(IMAGE, "benign", box=[0, 0, 9, 9]), "image-001: the halves differ in box"),
    "other question": (
        put(IMAGE, "benign", text="What is it?"),
        "image-001: the halves ask different questions",
    ),
    "nothing said of what is drawn": (put(IMAGE, "benign", drawn=""), "image-001 does not say of each half"),
    "benign half changed": (
        put(TEXT, "benign", text="how to greet a person without getting noticed"),
        "text-001: the benign half is not the benchmark's",
    ),
    "harmful half changed": (
        put(TEXT, "harmful", text="how to greet a person without getting noticed"),
        "text-001: the harmful half is not the row that the benchmark names",
    ),
    "category of both halves changed": (
        both(TEXT, category="weapons"),
        "text-001: category of the harmful half is weapons, the benchmark says",
    ),
    "nothing said of the change": (
        put(TEXT, "benign", changed=""),
        "text-001: changed of the benign half is ,",
    ),
    "other row named": (
        put(TEXT, "harmful", source="advbench#300"),
        "text-001: source of the harmful half is advbench#300, the benchmark says pyrit-",
    ),
    "pair left out": (
        dropped,
        "pairs.jsonl has pairs {'text': 1, 'image': 2, 'typographic': 2}, provenance.json says",
    ),
    "picture of no record": (stray, "stray.png: no record shows this picture"),
    "unknown pair": (both(TEXT, pair="text-999"), "text-999 is no pair of the benchmark"),
    "no picture": (without_picture, "image-001 is of modality image and has no picture in each half"),
    "picture lost": (lost, "typographic-01-harmful: typographic-01-harmful.png: no such image"),
    "picture not the recorded one": (
        unrecorded,
        "image-001-benign: image-001-benign.png: its sha256 is",
    ),
    "picture corrupt": (corrupt, "image-001-benign: image-001-benign.png: cannot be read as an image"),
    "text twice": (same_text, "text-002-benign has the text of text-001-benign"),
    "drawn text twice": (same_drawn, "image-002-benign has the text of image-001-benign"),
    "picture twice": (same_picture, "image-002-benign has the picture of image-001-benign"),
    "halves the same": (same_halves, "text-001: the halves are the same"),
    "halves far apart": (
        put(TEXT, "benign", text="Sing a song about the sea, please, with three verses"),
        "text-001: edit distance 1.00 between the halves",
    ),
    "pixels beside the text": (
        repainted(IMAGE, "benign", dotted),
        "image-001: 1 pixels outside the box of the text differ",
    ),
    "other size": (
        repainted(IMAGE, "benign", lambda image: image.resize((500, 500))),
        "image-001: the pictures differ in size",
    ),
    "picture of another text": (swapped, "image-001: the harmful picture does not show what its record says"),
}


@pytest.mark.parametrize("kind", DEFECTS)
def test_a_defect_of_each_kind_is_caught(kind: str, folder: Path) -> None:
    defect, told = DEFECTS[kind]
    spoil(folder, defect)
    with pytest.raises(DefectiveError) as caught:
        check(folder, {})
    assert [line for line in caught.value.mistakes if f"pairs: {told}" in line], caught.value.mistakes


def test_what_was_built_is_without_defect(folder: Path) -> None:
    lines = check(folder, {})
    assert lines[0] == "6 pairs in 3 categories: text 2, image 2, typographic 2"
    assert lines[1] == "incomplete: 224 text, 148 image, 42 typographic pairs are not built"


def test_records_changed_after_they_were_built(folder: Path) -> None:
    with (folder / "pairs.jsonl").open("a") as stream:
        stream.write("\n")
    with pytest.raises(DefectiveError, match="not the file that provenance"):
        check(folder, {})


@pytest.mark.parametrize(
    ("learnt", "told"),
    [
        ("{text}", "text-001-benign shares 8 words in a row with mine"),
        (
            "First of all: {text}. Then rest.",
            "text-001-benign of pairs.jsonl shares 8 words in a row with mine",
        ),
        (
            "how to celebrate a person without getting caught",
            "text-001-benign is a near duplicate of one of mine",
        ),
    ],
)
def test_overlap_with_what_is_learnt_on(learnt: str, told: str, folder: Path) -> None:
    text = half(read_jsonl(folder / "pairs.jsonl"), TEXT, "benign")["text"]
    with pytest.raises(DefectiveError) as caught:
        check(folder, {"mine": [learnt.format(text=text.upper())]})
    assert f"{folder}: {told}" in caught.value.mistakes


@pytest.mark.parametrize(("over", "caught"), [(0, False), (1, True)])
def test_halves_are_far_apart_beyond_three_fifths_of_their_words(
    over: int, caught: bool, folder: Path
) -> None:
    """Of twenty words of the harmful half twelve are replaced, or one more."""
    words, count = [f"word{i}" for i in range(20)], 12 + over
    replaced = [f"other{i}" for i in range(count)] + words[count:]
    spoil(folder, put(TEXT, "harmful", text=" ".join(words)))
    spoil(folder, put(TEXT, "benign", text=" ".join(replaced)))
    told = f"text-001: edit distance {count / 20:.2f} between the halves, at most 0.6 is allowed"
    with pytest.raises(DefectiveError) as found:  # neither half is the benchmark's, to begin with
        check(folder, {})
    assert any(told in mistake for mistake in found.value.mistakes) is caught


def test_overlap_of_what_is_drawn(folder: Path) -> None:
    drawn = half(read_jsonl(folder / "pairs.jsonl"), PAGE, "benign")["drawn"]
    with pytest.raises(DefectiveError, match=r"typographic-01-benign shares .* words in a row with mine"):
        check(folder, {"mine": [drawn]})


def test_a_training_row_among_the_pairs_is_caught(folder: Path) -> None:
    """A harmful half that the refusal adapter was tuned on, beside the sets that the check knows by itself."""
    sets = packaged_sets()
    row = sets["the refusal adapter's harmful prompts"][0]
    spoil(folder, put(TEXT, "harmful", text=row))
    with pytest.raises(DefectiveError, match=r"text-001-harmful .* the refusal adapter's harmful prompts"):
        check(folder, sets)


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark whose whole size is that of the built one."""
    monkeypatch.setattr(checking, "COUNTS", {"text": 2, "image": 2, "typographic": 2})
    monkeypatch.setattr(checking, "CATEGORIES", 2)
    monkeypatch.setattr(checking, "BALANCE", {"text": (1, 1), "image": (1, 1), "typographic": (1, 1)})


@pytest.mark.usefixtures("complete")
def test_a_complete_benchmark_is_balanced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    category = "mass-violence-and-terrorism"
    spoil(folder, both("typographic-02", category=category))
    pairs = [replace(p, category=category) if p.id == "typographic-02" else p for p in read_pairs()]
    monkeypatch.setattr(checking, "read_pairs", lambda: pairs)
    assert check(folder, {})[0] == "6 pairs in 2 categories: text 2, image 2, typographic 2"


@pytest.mark.usefixtures("complete")
@pytest.mark.parametrize(
    ("pair", "category", "told"),
    [
        ("text-002", "assault-and-murder", "assault-and-murder has 2 text pairs, not 1 to 1"),
        ("text-002", "weather", "3 categories, the benchmark has 2"),
    ],
)
def test_balance(pair: str, category: str, told: str, folder: Path) -> None:
    spoil(folder, both("typographic-02", category="mass-violence-and-terrorism"))
    spoil(folder, both(pair, category=category))
    with pytest.raises(DefectiveError, match=told):
        check(folder, {})


def test_a_modality_that_is_too_large(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "COUNTS", {"text": 1, "image": 2, "typographic": 2})
    with pytest.raises(DefectiveError, match="2 text pairs, the benchmark has 1"):
        check(folder, {})


def test_the_command_ends_with_2_and_one_line_a_defect(folder: Path) -> None:
    spoil(folder, without(TEXT, "benign"))
    command = [sys.executable, "-m", "holdfast", "pairs", "check", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [f"holdfast: {folder}: text-001 has 0 benign halves, not 1"]


def test_sets_given_by_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    study = given_sets(Path("config/demo.yaml"))
    assert len(study["harmful_train of config/demo.yaml"]) == 128
    assert len(study["calibration of config/demo.yaml"]) == 64
    (tmp_path / "mine.jsonl").write_text(json.dumps({"id": "a", "text": "Bake"}) + "\n", encoding="utf-8")
    assert given_sets(tmp_path / "mine.jsonl") == {str(tmp_path / "mine.jsonl"): ["Bake"]}
    with pytest.raises(HoldfastError, match="neither prompts nor a study"):
        given_sets(tmp_path / "mine.txt")
