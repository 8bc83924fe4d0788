"""Proof that a built benchmark is what it says: pairs, balance, uniqueness, no overlap, minimal edits, checksums."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from holdfast.errors import HoldfastError
from holdfast.files import read_json, sha256
from holdfast.pairs.drawing import pixel_hash
from holdfast.pairs.learnt import VISION_WORDS, edit_distance, overlapping, tokens
from holdfast.pairs.records import RECORDS
from holdfast.pairs.references import CATEGORIES, COUNTS, checksum, read_pairs
from holdfast.pairs.scenes import render
from holdfast.pairs.word_scenes import render as render_words
from holdfast.pairs.words import BENCHMARK as WORDS
from holdfast.pairs.words import word_pairs
from holdfast.prompts.images import load_images
from holdfast.prompts.overlap import normalised
from holdfast.prompts.sources import read_records

Record = dict[str, Any]
Halves = dict[str, Record]

LABELS = ("harmful", "benign")
# Between the words of the halves, question and drawn text together (see `edit_distance`).
FARTHEST = 0.6
# Pairs of one category in a complete benchmark: fewest and most.
BALANCE = {"text": (5, 7), "image": (3, 4), "typographic": (1, 2)}
SAME = ("modality", "category", "scene", "box")


@dataclass(frozen=True)
class Own:
    """What is known of a benchmark that is made here; of published ones texts, edits and balance are their authors'.

    Attributes:
        texts: of each pair its benign text and the checksum of its harmful one, None where that is a part of a row.
        about: of each pair what both halves say besides, and the harmful one's ``source``.
        render: the pictures of a scene, a pair and its texts.
        whole: it has counts and categories to reach, and no text twice; else a text stands once in each modality.
    """

    texts: Mapping[str, tuple[str, str | None]]
    about: Mapping[str, Mapping[str, str]]
    render: Callable[[str, str, Sequence[str]], Sequence[Image.Image]]
    whole: bool


class DefectiveError(HoldfastError):
    """All defects of a benchmark; ``mistakes`` holds one line each."""

    def __init__(self, folder: Path, found: Sequence[str]) -> None:
        self.mistakes = [f"{folder}: {line}" for line in found]
        number = "1 defect" if len(found) == 1 else f"{len(found)} defects"
        super().__init__(number, str(folder), "build it again")
        self.args = ("\n".join(self.mistakes),)


def check(folder: Path, against: Mapping[str, Sequence[str]]) -> list[str]:
    """What was proved, in lines.

    Args:
        folder: what ``holdfast pairs build`` wrote.
        against: texts that something was learnt on, by the name of their set.

    Raises:
        DefectiveError: naming the pair of each defect in one line.
        HoldfastError: no such folder, or files that cannot be read.
    """
    records = read_records(folder / RECORDS)
    found = list(_recorded(folder, records))
    pairs: dict[str, list[Record]] = {}
    for record in records:
        pairs.setdefault(str(record.get("pair", record["id"])), []).append(record)
    whole: dict[str, Halves] = {}
    for name, halves in pairs.items():
        faults = list(_pairing(name, halves))
        found += faults
        if not faults:
            whole[name] = {half["label"]: half for half in halves}
    benchmark = read_json(folder / "provenance.json").get("recipe", {}).get("benchmark")
    own = _own(benchmark)
    pictures, faults = _pictures(folder, records)
    found += faults
    if own:
        found += [*_changed(whole, own), *_twice(records, pictures, own)]
        found += [line for name, halves in whole.items() for line in _edit(name, halves, pictures, own)]
    if own and own.whole:
        found += _balance(whole)
    taught = benchmark == WORDS
    if taught:
        against = {name: texts for name, texts in against.items() if name != VISION_WORDS}
    found += overlapping(folder / RECORDS, records, against)
    if found:
        raise DefectiveError(folder, found)
    told = _told(whole, against, own=own is not None and own.whole)
    return (
        [*told, "not looked at: these words are what the model was taught, it knows no others"]
        if taught
        else told
    )


def _own(benchmark: str | None) -> Own | None:
    if benchmark == WORDS:
        words = word_pairs()
        known = {
            pair.id: tuple(
                word if pair.scene else pair.question.format(word) for word in (pair.benign, pair.harmful)
            )
            for pair in words
        }
        texts = {name: (benign, checksum(harmful)) for name, (benign, harmful) in known.items()}
        about = {
            pair.id: {"category": pair.category, "split": pair.split, "source": f"advbench#{pair.row}"}
            for pair in words
        }
        return Own(texts, about, lambda *asked: render_words(*asked)[0], whole=False)
    if benchmark == "holdfast":
        pairs = read_pairs()
        rows = {pair.id: (pair.benign, None if pair.span else pair.sha256) for pair in pairs}
        about = {
            pair.id: {
                "category": pair.category,
                "changed": pair.changed,
                "source": f"{pair.set}#{pair.row}",
            }
            for pair in pairs
        }
        return Own(rows, about, render, whole=True)
    return None


def _recorded(folder: Path, records: Sequence[Record]) -> Iterator[str]:
    said = read_json(folder / "provenance.json")
    of = {str(r.get("pair", r["id"])): str(r.get("modality")) for r in records}
    if said.get("pairs") != (here := dict(Counter(of.values()))):
        yield f"{RECORDS} has pairs {here}, provenance.json says {said.get('pairs')}"
    if said.get("sha256") != sha256(folder / RECORDS):
        yield f"{RECORDS} is not the file that provenance.json is about: its sha256 differs"
    shown = {str(image.get("file")) for r in records for image in r.get("images", [])}
    for file in sorted((folder / "images").glob("*")):
        if f"images/{file.name}" not in shown:
            yield f"{file.name}: no record shows this picture"


def _pairing(name: str, halves: Sequence[Record]) -> Iterator[str]:
    labels = Counter(str(half.get("label")) for half in halves)
    for label in LABELS:
        if labels[label] != 1:
            yield f"{name} has {labels[label]} {label} halves, not 1"
    for label in labels:
        if label not in LABELS:
            yield f"{name} has a half labelled {label}: only harmful and benign are known"
    if len(halves) != 2:
        return
    first, second = halves
    for key in SAME:
        if first.get(key) != second.get(key):
            yield f"{name}: the halves differ in {key}: {first.get(key)} and {second.get(key)}"
    modality = first.get("modality")
    if modality not in COUNTS:
        yield f"{name} has modality {modality}: use {', '.join(COUNTS)}"
    elif modality != "text" and not (first.get("images") and second.get("images")):
        yield f"{name} is of modality {modality} and has no picture in each half"
    elif "drawn" in first or "drawn" in second:
        if not all(half.get("drawn") and half.get("scene") and half.get("box") for half in halves):
            yield f"{name} does not say of each half what is drawn, in which scene and box"
        elif first["text"] != second["text"]:
            yield f"{name}: the halves ask different questions of their pictures"


def _pictures(folder: Path, records: Sequence[Record]) -> tuple[dict[str, Image.Image], list[str]]:
    """Each record's picture, by its id, and a line for each that is missing, changed or cannot be decoded."""
    pictures: dict[str, Image.Image] = {}
    found = []
    for record in records:
        try:
            for picture in load_images(record, folder):
                pictures[record["id"]] = picture
        except HoldfastError as error:
            found.append(f"{record['id']}: {Path(error.where).name}: {error.what}")
    return pictures, found


def _changed(whole: Mapping[str, Halves], own: Own) -> Iterator[str]:
    """What is not the benchmark's: a benign half's own text, a harmful half's by the checksum of its row, and what the
    halves say they are of."""
    for name, halves in whole.items():
        texts = {label: str(half.get("drawn") or half["text"]) for label, half in halves.items()}
        if (known := own.texts.get(name)) is None:
            yield f"{name} is no pair of the benchmark"
            continue
        benign, harmful = known
        if texts["benign"] != benign:
            yield f"{name}: the benign half is not the benchmark's"
        elif harmful and checksum(texts["harmful"]) != harmful:
            yield f"{name}: the harmful half is not the row that the benchmark names"
        for key, value in own.about[name].items():
            for label in LABELS if key != "source" else LABELS[:1]:
                if (said := halves[label].get(key)) != value:
                    yield f"{name}: {key} of the {label} half is {said}, the benchmark says {value}"


def _twice(records: Sequence[Record], pictures: Mapping[str, Image.Image], own: Own) -> Iterator[str]:
    """Texts and pictures that stand in two records; the question about a picture is many records' own."""
    texts: dict[str, str] = {}
    hashes: dict[str, str] = {}
    for record in records:
        name = record["id"]
        text = normalised(record.get("drawn") or record["text"])
        if not own.whole:
            text = f"{record.get('modality')} {text}"
        if (other := texts.setdefault(text, name)) != name:
            yield f"{name} has the text of {other}"
        if name in pictures and (other := hashes.setdefault(pixel_hash(pictures[name]), name)) != name:
            yield f"{name} has the picture of {other}"


def _edit(name: str, halves: Halves, pictures: Mapping[str, Image.Image], own: Own) -> Iterator[str]:
    """The halves differ, by little, and of a picture only where the text stands; each picture shows its text."""
    words = [
        tokens(f"{half['text']} {half.get('drawn', '')}") for half in (halves["harmful"], halves["benign"])
    ]
    distance = edit_distance(*words)
    if distance == 0:
        yield f"{name}: the halves are the same"
    elif distance > FARTHEST:
        yield f"{name}: edit distance {distance:.2f} between the halves, at most {FARTHEST} is allowed"
    if "drawn" not in halves["harmful"]:
        return
    found = [pictures.get(halves[label]["id"]) for label in LABELS]
    harmful, benign = found
    if harmful is None or benign is None:
        return
    if harmful.size != benign.size:
        yield f"{name}: the pictures differ in size"
        return
    differs = np.any(np.asarray(harmful) != np.asarray(benign), axis=2)
    left, top, right, bottom = halves["harmful"]["box"]
    differs[top:bottom, left:right] = False
    if differs.any():
        yield f"{name}: {int(differs.sum())} pixels outside the box of the text differ"
    drawn = [halves[label]["drawn"] for label in LABELS]
    for label, picture, expected in zip(
        LABELS, found, own.render(halves["harmful"]["scene"], name, drawn), strict=True
    ):
        if picture is not None and pixel_hash(picture) != pixel_hash(expected):
            yield f"{name}: the {label} picture does not show what its record says is drawn"


def _balance(whole: Mapping[str, Halves]) -> Iterator[str]:
    """No modality is too large; in a complete benchmark every category stands in each, about equally often."""
    counts: dict[str, Counter[str]] = {modality: Counter() for modality in COUNTS}
    for halves in whole.values():
        counts[halves["benign"]["modality"]][halves["benign"]["category"]] += 1
    for modality, of in counts.items():
        if of.total() > COUNTS[modality]:
            yield f"{of.total()} {modality} pairs, the benchmark has {COUNTS[modality]}"
    categories = {category for of in counts.values() for category in of}
    if len(categories) > CATEGORIES:
        yield f"{len(categories)} categories, the benchmark has {CATEGORIES}"
    if any(of.total() < COUNTS[modality] for modality, of in counts.items()):
        return
    if len(categories) < CATEGORIES:
        yield f"{len(categories)} categories, the benchmark has {CATEGORIES}"
    for modality, (fewest, most) in BALANCE.items():
        for category in sorted(categories):
            if not fewest <= counts[modality][category] <= most:
                number = counts[modality][category]
                yield f"{category} has {number} {modality} pairs, not {fewest} to {most}"


def _told(whole: Mapping[str, Halves], against: Mapping[str, Sequence[str]], *, own: bool) -> list[str]:
    counts = Counter(halves["benign"]["modality"] for halves in whole.values())
    categories = len({halves["benign"]["category"] for halves in whole.values()})
    lines = [
        f"{len(whole)} pairs in {categories} categories: "
        + ", ".join(f"{name} {counts[name]}" for name in COUNTS if counts[name])
    ]
    if own and (
        short := {name: COUNTS[name] - counts[name] for name in COUNTS if counts[name] < COUNTS[name]}
    ):
        left = ", ".join(f"{number} {name}" for name, number in short.items())
        lines.append(f"incomplete: {left} pairs are not built")
    learnt = sum(len(texts) for texts in against.values())
    lines.append(f"no overlap with {learnt} texts of {len(against)} sets that something is learnt on")
    return lines
