"""The benchmark built: both halves of every pair whose source is here, as prompt records and pictures."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from holdfast.errors import HoldfastError
from holdfast.files import atomic_folder, sha256, write_jsonl
from holdfast.pairs.drawing import font_path
from holdfast.pairs.records import RECORDS, counted, drawn_halves, record_of
from holdfast.pairs.references import COUNTS, Pair, read_pairs, read_sources, texts_by_checksum
from holdfast.pairs.scenes import SCENES
from holdfast.prompts.sources import local_path
from holdfast.provenance import Recorder

HINT = '{"sources": {"NAME": {"source": "file:PATH"}}}'


def build(out: Path, recipe: Mapping[str, Any]) -> list[str]:
    """Write ``out/pairs.jsonl``, ``out/images/`` and ``out/provenance.json``; returns what is to be told, in lines.

    Args:
        out: the folder: written whole, or not at all.
        recipe: ``modality`` (list), ``limit`` (pairs of each modality, the first ones that can be built, or None) and
            ``sources``: of sets that no package carries, by name, what :func:`texts_by_checksum` takes.

    A set that is not given, or lacks some of the rows, leaves out its pairs; one line says so. The same data, sources
    and recipe give the same files, byte for byte (but ``provenance.json``, which has seconds).

    Raises:
        HoldfastError: an unknown set among ``sources``, a source that cannot be read, a named one without any of
            its set's rows, no pair that can be built.
    """
    recorder = Recorder("pairs", dict(recipe))
    known = read_sources()
    for name in recipe["sources"]:
        if name not in known:
            raise HoldfastError(f"unknown set {name}", "--recipe, sources", f"use one of {', '.join(known)}")
    places, texts, reasons = _read(known, recipe["sources"])
    wanted = read_pairs(recipe["modality"])
    absent = [pair for pair in wanted if pair.sha256 not in texts.get(pair.set, {})]
    for name, number in _counted_sets(absent).items():
        if name in recipe["sources"] and number == sum(pair.set == name for pair in wanted):
            what = f"none of the {number} rows of {name} is in it"
            raise HoldfastError(what, recipe["sources"][name]["source"], "give the set that is named so")
    built = _chosen([pair for pair in wanted if pair not in absent], recipe["limit"])
    if not built:
        remedy = f"install the package pyrit, or give them as --recipe '{HINT}'"
        raise HoldfastError("no pair can be built: none of its sources is here", "--recipe, sources", remedy)
    with atomic_folder(out) as folder:
        (folder / "images").mkdir()
        records = [
            record
            for pair in tqdm(built, desc="pairs", unit="pair")
            for record in _halves(pair, texts[pair.set][pair.sha256], folder)
        ]
        write_jsonl(folder / RECORDS, records)
        faces = sorted({SCENES[pair.scene].face for pair in built if pair.scene})
        recorder.write(
            folder / "provenance.json",
            [path for place in places.values() for path in _files(place)],
            pairs=counted(pair.modality for pair in built),
            missing=_counted_sets(absent),
            sha256=sha256(folder / RECORDS),
            fonts={font_path(face).name: sha256(font_path(face)) for face in faces},
        )
    counts = counted(pair.modality for pair in built)
    told = ", ".join(f"{name} {counts.get(name, 0)} of {COUNTS[name]}" for name in recipe["modality"])
    return [f"pairs built: {told}", *_missing(absent, known, reasons)]


def _read(
    known: Mapping[str, Mapping[str, Any]], given: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Mapping[str, Any]], dict[str, dict[str, str]], dict[str, str]]:
    """Of every set its source, its texts by checksum, or why there are none.

    A packaged file's own checksum is not asked for: each row has one, so another version of the package will do.
    """
    places: dict[str, Mapping[str, Any]] = {}
    texts: dict[str, dict[str, str]] = {}
    reasons: dict[str, str] = {}
    for name, entry in known.items():
        if name in given:
            places[name], texts[name] = given[name], texts_by_checksum(given[name])
            reasons[name] = "their rows are not in the source"
        elif "source" in entry:
            place = {"source": entry["source"]}
            try:
                texts[name] = texts_by_checksum(place)
                places[name], reasons[name] = place, "their rows are not in this version of the package"
            except HoldfastError as error:
                reasons[name] = f"{error.what} ({entry['source']})"
        else:
            reasons[name] = f"no source given ({entry['title']}, {entry['licence']}: {entry['file']})"
    return places, texts, reasons


def _chosen(pairs: Sequence[Pair], limit: int | None) -> list[Pair]:
    return [pair for modality in COUNTS for pair in [p for p in pairs if p.modality == modality][:limit]]


def _halves(pair: Pair, row: str, folder: Path) -> Iterator[dict[str, Any]]:
    """The two records of a pair, the harmful one first; pictures are written into ``folder/images``."""
    about = {"pair": pair.id, "modality": pair.modality, "category": pair.category, "changed": pair.changed}
    texts = {"harmful": pair.harmful(row), "benign": pair.benign}
    sources = {"harmful": f"{pair.set}#{pair.row}", "benign": "holdfast"}
    halves = (
        drawn_halves(about, pair.scene, pair.question, texts, folder)
        if pair.scene
        else (record_of(about, label, text) for label, text in texts.items())
    )
    for record in halves:
        yield {**record, "source": sources[record["label"]]}


def _counted_sets(pairs: Sequence[Pair]) -> dict[str, int]:
    return {name: sum(pair.set == name for pair in pairs) for name in dict.fromkeys(p.set for p in pairs)}


def _missing(
    absent: Sequence[Pair], known: Mapping[str, Mapping[str, Any]], reasons: Mapping[str, str]
) -> list[str]:
    """One line for each set that is not here, or has not all its rows, and one that says how to give a set."""
    missing = _counted_sets(absent)
    lines = [f"{name}: {number} pairs left out, {reasons[name]}" for name, number in missing.items()]
    if any("file" in known[name] for name in missing):
        lines.append(f"give sources as --recipe '{HINT}'")
    return lines


def _files(place: Mapping[str, Any]) -> list[Path]:
    return [] if place["source"].startswith("hub:") else [local_path(place["source"])]
