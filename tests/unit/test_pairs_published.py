"""Published benchmarks read into the form of pairs; the licensed copies lie in ../shared/data."""

import csv
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from holdfast.config.by_hand import checked
from holdfast.errors import HoldfastError
from holdfast.files import read_jsonl, write_json, write_jsonl
from holdfast.pairs.check import check
from holdfast.pairs.published import VLMSAFE_COLUMNS, build_published
from holdfast.prompts.images import load_images
from hub_data import given_hub
from PIL import Image

SHARED = Path(__file__).parents[3] / "shared/data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the public sets in ../shared/data")


def recipe(**settings: Any) -> dict[str, Any]:
    return checked("pairs", json.dumps(settings))


def built(out: Path, **settings: Any) -> list[dict[str, Any]]:
    build_published(out, recipe(**settings))
    check(out, {})
    return read_jsonl(out / "pairs.jsonl")


@needs_shared
def test_xstest(tmp_path: Path) -> None:
    records = built(tmp_path / "pairs", benchmark="xstest", source=f"path:{SHARED / 'xstest'}")
    assert Counter(record["label"] for record in records) == {"harmful": 97, "benign": 97}
    given = csv.DictReader((SHARED / "xstest/xstest_prompts.given.csv").open(encoding="utf-8"))
    label_of = {row["prompt"]: row["label"] for row in given}
    for record in records:
        assert label_of[record["text"]] == {"harmful": "unsafe", "benign": "safe"}[record["label"]]


@needs_shared
def test_figstep(tmp_path: Path) -> None:
    records = built(tmp_path / "pairs", benchmark="figstep", source=f"path:{SHARED / 'figstep'}", limit=12)
    assert len(records) == 24
    assert {record["modality"] for record in records} == {"typographic"}
    assert len({record["text"] for record in records}) == 1
    benign = [record for record in records if record["label"] == "benign"]
    assert all("*" in record["drawn"] for record in benign)
    assert load_images(benign[0], tmp_path / "pairs")[0].size == (512, 512)


@needs_shared
def test_mossbench(tmp_path: Path) -> None:
    records = built(tmp_path / "pairs", benchmark="mossbench", source=f"path:{SHARED / 'mossbench'}")
    manifest = csv.DictReader((SHARED / "mossbench/manifest.csv").open(encoding="utf-8"))
    expected = [
        r for r in manifest if r["contrast_same_image"] == "True" and r["image"].startswith("images/")
    ]
    assert len(records) == 2 * len(expected)
    for label, name in (("benign", "information"), ("harmful", "information_contrast")):
        asked = {e["question"] for e in json.loads((SHARED / f"mossbench/{name}.json").read_text()).values()}
        assert {r["text"] for r in records if r["label"] == label} <= asked, label
    for harmful, benign in zip(records[::2], records[1::2], strict=True):
        assert harmful["images"][0]["sha256"] == benign["images"][0]["sha256"]
        assert harmful["text"] != benign["text"]


def vlmsafe_rows(folder: Path) -> list[dict[str, str]]:
    """Two pairs, one with pictures, as the guessed columns have them."""
    for name, colour in (("a", (10, 20, 30)), ("b", (30, 20, 10))):
        Image.new("RGB", (16, 16), colour).save(folder / f"{name}.png")
    seen = ("2", "image", "weather", "What is it?", "What is it?", "a.png", "b.png")
    read = ("1", "text", "weather", "Say something stormy", "Say something sunny", "", "")
    return [dict(zip(VLMSAFE_COLUMNS, row, strict=True)) for row in (read, seen)]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_vlmsafe_from_a_folder(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    rows = vlmsafe_rows(folder)
    if kind == "jsonl":
        write_jsonl(folder / "pairs.jsonl", rows)
    else:
        with (folder / "pairs.csv").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, VLMSAFE_COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
    records = built(tmp_path / "pairs", benchmark="vlmsafe-420", source=f"path:{folder}")
    assert [record["id"] for record in records] == [
        f"vlmsafe-{number}-{label}" for number in (1, 2) for label in ("harmful", "benign")
    ]
    assert load_images(records[3], tmp_path / "pairs")[0].getpixel((0, 0)) == (30, 20, 10)


def test_vlmsafe_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's client takes a folder for a data set: here one with pictures in its rows."""
    rows: list[dict[str, Any]] = list(vlmsafe_rows(tmp_path))
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in VLMSAFE_COLUMNS}
    columns |= {
        f"{label}_image": [None, Image.new("L", (8, 8), shade)]
        for label, shade in (("harmful", 9), ("benign", 99))
    }
    given_hub(tmp_path, "lab/vlmsafe", columns, monkeypatch)
    source = {"source": "hub:lab/vlmsafe@main", "split": "test"}
    records = built(tmp_path / "pairs", benchmark="vlmsafe-420", **source)
    assert load_images(records[3], tmp_path / "pairs")[0].getpixel((0, 0)) == (99, 99, 99)


def test_files_that_are_not_the_benchmarks_end_in_one_line(tmp_path: Path) -> None:
    for benchmark, told in {
        "xstest": "has 0 files xstest_prompts*.csv, not 1",
        "figstep": "has 0 files SafeBench-Tiny.csv",
        "mossbench": "has 0 files information.json",
        "vlmsafe-420": "holds 0 JSONL or CSV files",
    }.items():
        (tmp_path / "given").mkdir(exist_ok=True)
        with pytest.raises(HoldfastError, match=re.escape(told)):
            build_published(
                tmp_path / "pairs", recipe(benchmark=benchmark, source=f"path:{tmp_path / 'given'}")
            )
        assert not (tmp_path / "pairs").exists()


def test_rows_that_are_not_vlmsafes_end_in_one_line(tmp_path: Path) -> None:
    rows = vlmsafe_rows(tmp_path)
    given = recipe(benchmark="vlmsafe-420", source=f"path:{tmp_path}")
    write_jsonl(tmp_path / "pairs.jsonl", [{**rows[0], "category": ""}])
    with pytest.raises(HoldfastError, match="row 0 has no category; name the columns pair, modality"):
        build_published(tmp_path / "out/pairs", given)
    write_jsonl(tmp_path / "pairs.jsonl", [{**rows[1], "benign_image": "c.png"}])
    with pytest.raises(HoldfastError, match=r"row 0: no picture c\.png"):
        build_published(tmp_path / "out/pairs", given)


def test_contrasts_with_pictures_of_their_own(tmp_path: Path) -> None:
    """As MOSSBench's repository has them, in a folder beside; pairs whose pictures are not here are left out."""
    for folder in ("images", "contrast/images"):
        (tmp_path / folder).mkdir(parents=True)
    Image.new("RGB", (8, 8), (1, 1, 1)).save(tmp_path / "images/1.jpg")
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "contrast/images/1.png")
    entries = {
        name: {"image": f"images/{name}.png", "question": "Which way?", "metadata": {"over": "type 1"}}
        for name in ("1", "2")
    }
    write_json(tmp_path / "information.json", entries)
    write_json(tmp_path / "information_contrast.json", entries)
    (tmp_path / "manifest.csv").write_text("pid,contrast_same_image\n1,False\n2,True\n", encoding="utf-8")
    records = built(tmp_path / "out/pairs", benchmark="mossbench", source=f"path:{tmp_path}")
    assert [record["images"][0]["file"] for record in records] == [
        "images/mossbench-1-harmful.png",
        "images/mossbench-1-benign.jpg",
    ]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"benchmark": "xstest"}, "xstest has no source"),
        ({"source": "path:."}, "holdfast takes no source"),
        ({"benchmark": "xstest", "source": "hub:a/b@c", "split": "test"}, "xstest is read from a folder"),
        ({"benchmark": "vlmsafe-420", "source": "hub:a/b@c"}, "split goes with a hub: source"),
        ({"benchmark": "vlmsafe-421"}, "vlmsafe-421"),
        ({"benchmark": "xstest", "source": "path:nowhere"}, "no folder 'nowhere'"),
    ],
)
def test_bad_recipes_end_in_one_line(given: dict[str, Any], told: str) -> None:
    with pytest.raises(HoldfastError, match=told):
        recipe(**given)
