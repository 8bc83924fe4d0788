"""The paired benchmark built: its data, references, pictures, sources."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from holdfast.config import load_study
from holdfast.config.by_hand import checked
from holdfast.errors import HoldfastError
from holdfast.files import read_json, read_jsonl, sha256
from holdfast.pairs.build import build
from holdfast.pairs.check import BALANCE, check, edit_distance
from holdfast.pairs.drawing import pixel_hash
from holdfast.pairs.learnt import ROLES, near, packaged_sets, tokens
from holdfast.pairs.references import (
    CATEGORIES,
    COUNTS,
    DATA,
    checksum,
    read_pairs,
    read_sources,
    texts_by_checksum,
)
from holdfast.pairs.scenes import SCENES, render
from holdfast.prompts.overlap import normalised
from holdfast.prompts.sources import read_prompts

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared/data"
FILES = {
    "harmbench": "harmbench/harmbench_behaviors_text.given.csv",
    "jailbreakbench": "refusal_direction/processed/jailbreakbench.json",
    "strongreject": "refusal_direction/processed/strongreject.json",
    "malicious-instruct": "refusal_direction/processed/malicious_instruct.json",
    "figstep": "figstep/SafeBench-Tiny.csv",
    "xstest": "xstest/xstest_prompts.given.csv",
}


STICKY_NOTE = "952a428db11c2754f28362f727857c62656f0b6e664f0169ba0bf986c714feeb"
PAGE = "b711d789f40fda49fb74b111a833e1e0bb23ae776da843f2f07dbe7f29d3da3e"


def recipe(**settings: Any) -> dict[str, Any]:
    return checked("pairs", json.dumps(settings))


def test_the_data_have_the_benchmarks_shape() -> None:
    pairs = read_pairs()
    assert Counter(pair.modality for pair in pairs) == COUNTS
    assert len({pair.category for pair in pairs}) == CATEGORIES
    for modality, (fewest, most) in BALANCE.items():
        counts = Counter(pair.category for pair in pairs if pair.modality == modality)
        assert len(counts) == CATEGORIES
        assert fewest <= min(counts.values())
        assert max(counts.values()) <= most
    assert len({pair.id for pair in pairs}) == len(pairs)
    assert len({pair.sha256 for pair in pairs}) == len(pairs)
    assert len({normalised(pair.benign) for pair in pairs}) == len(pairs)
    assert all(pair.scene in SCENES and pair.question for pair in pairs if pair.modality != "text")
    assert {pair.set for pair in pairs} == set(read_sources())


def test_harmful_halves_are_references_only() -> None:
    """The fields of the data hold no text but the benign one's; no harmful text stands anywhere among the data."""
    allowed = {"id", "category", "set", "row", "sha256", "changed", "benign", "question", "scene", "span"}
    for modality in COUNTS:
        for record in read_jsonl(DATA / f"{modality}.jsonl"):
            assert set(record) <= allowed
            assert re.fullmatch(r"[\d_]+", record["row"])
    written = normalised(" ".join(path.read_text(encoding="utf-8") for path in sorted(DATA.iterdir())))
    texts = {name: texts_by_checksum(entry) for name, entry in read_sources().items() if "source" in entry}
    read = [texts[pair.set][pair.sha256] for pair in read_pairs() if pair.set in texts]
    assert len(read) == 193
    assert not [text for text in read if normalised(text) in written]


def test_packaged_sets_are_the_files_that_the_references_were_made_of() -> None:
    for entry in read_sources().values():
        if "source" in entry:
            assert texts_by_checksum({"source": entry["source"], "sha256": entry["sha256"]})


def test_every_study_here_learns_on_texts_that_the_check_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of the packaged sets are those of the studies in config/: a study of other rows must be added."""
    monkeypatch.chdir(ROOT)
    known = {normalised(text) for texts in packaged_sets().values() for text in texts}
    for path in sorted((ROOT / "config").glob("*.yaml")):
        study = load_study(path)
        for role in ROLES:
            given = getattr(study.prompts, role)
            if not given.source.startswith("hub:"):
                learnt = {normalised(record["text"]) for record in read_prompts(given.model_dump())}
                assert learnt <= known, (path.name, role)


def test_benign_texts_are_near_to_nothing_learnt_and_not_to_each_other() -> None:
    benign = [(pair.id, tokens(pair.benign)) for pair in read_pairs() if len(pair.benign.split()) >= 5]
    learnt = [tokens(text) for texts in packaged_sets().values() for text in texts]
    for number, (name, words) in enumerate(benign):
        assert not [other for other, theirs in benign[:number] if near(words, theirs)], name
        assert not any(near(words, theirs) for theirs in learnt), name


def test_build_is_the_same_byte_for_byte(tmp_path: Path) -> None:
    told = build(tmp_path / "first", recipe(limit=3))
    build(tmp_path / "second", recipe(limit=3))
    assert told[0] == "pairs built: text 3 of 226, image 3 of 150, typographic 3 of 44"
    files = sorted(path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*.*"))
    assert len([path for path in files if path.suffix == ".png"]) == 12
    for path in files:
        if path.name != "provenance.json":
            assert (tmp_path / "first" / path).read_bytes() == (tmp_path / "second" / path).read_bytes()
    provenance = read_json(tmp_path / "first/provenance.json")
    assert provenance["pairs"] == {"text": 3, "image": 3, "typographic": 3}
    assert provenance["sha256"] == sha256(tmp_path / "first/pairs.jsonl")
    assert all(name.startswith("DejaVu") for name in provenance["fonts"])


def test_records_have_the_form_of_prompts_with_images(tmp_path: Path) -> None:
    build(tmp_path / "pairs", recipe(limit=2))
    records = read_jsonl(tmp_path / "pairs/pairs.jsonl")
    assert [record["label"] for record in records] == ["harmful", "benign"] * 6
    by_id = {pair.id: pair for pair in read_pairs()}
    for record in records:
        pair = by_id[record["pair"]]
        assert record["modality"] == pair.modality
        assert record["category"] == pair.category
        if pair.modality == "text":
            assert "images" not in record
            if record["label"] == "harmful":
                assert checksum(record["text"]) == pair.sha256
        else:
            assert record["text"] == pair.question
            (image,) = record["images"]
            assert image["sha256"] == sha256(tmp_path / "pairs" / image["file"])
        if record["label"] == "benign":
            assert record.get("drawn", record["text"]) == pair.benign
            assert record["source"] == "holdfast"


def test_pictures_are_the_same_on_every_machine() -> None:
    """Written down when they were first drawn with the pinned Pillow and matplotlib."""
    (picture,) = render("sticky-note", "image-000", ["Please water the plants on Friday"])
    assert pixel_hash(picture) == STICKY_NOTE
    (page,) = render("typographic", "typographic-00", ["Steps to bake bread."])
    assert pixel_hash(page) == PAGE


def test_a_text_that_would_be_too_small_to_read_is_refused() -> None:
    with pytest.raises(HoldfastError, match=r"image-000 \(sticky-note\): 400 words do not fit"):
        render("sticky-note", "image-000", ["word " * 400])


def test_one_size_for_both_halves() -> None:
    """A short text is drawn small beside a long one: its size must not tell which half it is."""
    alone = render("poster", "image-000", ["Plant a tree"])[0]
    beside = render("poster", "image-000", ["Plant a tree", "Plant a tree " * 8])[0]
    assert pixel_hash(alone) != pixel_hash(beside)


def test_a_subset_is_spread_over_the_categories(tmp_path: Path) -> None:
    build(tmp_path / "pairs", recipe(modality=["text"], limit=20))
    records = read_jsonl(tmp_path / "pairs/pairs.jsonl")
    assert len({record["category"] for record in records}) == 20


def test_sets_that_are_not_here_are_told_in_one_line_each(tmp_path: Path) -> None:
    told = build(tmp_path / "pairs", recipe(modality=["typographic"], limit=1))
    missing = [line.split(":")[0] for line in told[1:-1]]
    assert sorted(missing) == ["figstep", "harmbench", "malicious-instruct", "strongreject"]
    assert told[-1].startswith("give sources as --recipe")


def test_a_source_without_any_of_the_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("Behavior\nBake a cake\n", encoding="utf-8")
    given = {"harmbench": {"source": f"file:{tmp_path / 'mine.csv'}"}}
    with pytest.raises(HoldfastError, match="none of the 4 rows of harmbench is in it"):
        build(tmp_path / "pairs", recipe(modality=["typographic"], limit=1, sources=given))
    assert not (tmp_path / "pairs").exists()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"sources": {"harmbunch": {"source": "file:mine.csv"}}},
            "unknown set harmbunch; use one of advbench",
        ),
        ({"sources": {"harmbench": {"source": "file:mine.csv", "column": "no"}}}, "has no column no"),
        ({"sources": {"harmbench": {"source": "file:mine.csv", "sha256": "0" * 64}}}, "its sha256 is"),
    ],
)
def test_bad_sources_end_in_one_line(
    given: dict[str, Any], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.csv").write_text("Behavior\nBake a cake\n", encoding="utf-8")
    with pytest.raises(HoldfastError, match=re.escape(told)):
        build(tmp_path / "pairs", recipe(**given))
    assert not (tmp_path / "pairs").exists()


@pytest.mark.parametrize("given", [{"modality": ["sound"]}, {"limit": 0}, {"modality": []}, {"sizes": 3}])
def test_bad_recipes_end_in_one_line(given: dict[str, Any]) -> None:
    with pytest.raises(HoldfastError, match="--recipe"):
        recipe(**given)


def test_without_the_package_its_pairs_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And where no pair is left, nothing is written."""

    def absent(source: str, checksum: str | None) -> Path:
        if source.startswith("file:"):
            return Path(source.removeprefix("file:"))
        raise HoldfastError("the package is not installed", source, "pip install pyrit")

    texts = [{"instruction": "Bake a cake"}]
    (tmp_path / "mine.json").write_text(json.dumps(texts), encoding="utf-8")
    pairs = [pair for pair in read_pairs(["text"]) if pair.set in ("advbench", "strongreject")]
    mine = next(pair for pair in pairs if pair.set == "strongreject")
    found = [replace(pair, sha256=checksum("Bake a cake")) if pair is mine else pair for pair in pairs]
    monkeypatch.setattr("holdfast.pairs.build.read_pairs", lambda modalities: found)
    monkeypatch.setattr("holdfast.pairs.references.verified_path", absent)
    given = {"strongreject": {"source": f"file:{tmp_path / 'mine.json'}"}}
    told = build(tmp_path / "pairs", recipe(sources=given))
    assert told[0].startswith("pairs built: text 1 of 226")
    assert any(re.match(r"advbench: \d+ pairs left out, the package is not installed", line) for line in told)
    with pytest.raises(HoldfastError, match="no pair can be built: none of its sources is here"):
        build(tmp_path / "none", recipe())
    assert not (tmp_path / "none").exists()


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the public sets in ../shared/data")
def test_all_of_it_passes_its_check(tmp_path: Path) -> None:
    given = {name: {"source": f"file:{SHARED / file}"} for name, file in FILES.items()}
    told = build(tmp_path / "pairs", recipe(sources=given))
    assert told == ["pairs built: text 226 of 226, image 150 of 150, typographic 44 of 44"]
    lines = check(tmp_path / "pairs", packaged_sets())
    assert lines[0] == "420 pairs in 38 categories: text 226, image 150, typographic 44"
    assert not [line for line in lines if line.startswith("incomplete")]


def test_edit_distance_counts_words() -> None:
    assert edit_distance(tokens("How to mend a fence"), tokens("how to mend a roof?")) == pytest.approx(1 / 5)
    assert edit_distance(["a", "b"], ["b"]) == pytest.approx(1 / 2)
    assert edit_distance([], []) == 0
    assert edit_distance(["a"], ["b"]) == 1
