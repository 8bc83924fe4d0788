"""Prompt sets drawn as the pairs are: the same content as text, in scenes and on pages, alike for both kinds."""

from pathlib import Path

import numpy as np
import pytest
from holdfast.errors import HoldfastError
from holdfast.files import read_jsonl, write_jsonl
from holdfast.pairs.drawn import draw
from PIL import Image

WORDS = "paint the old garden gate green before the first guests come"


def prompts(folder: Path, kind: str, texts: list[str]) -> Path:
    file = folder / f"{kind}.jsonl"
    write_jsonl(file, [{"id": f"{kind}-{i}", "text": text} for i, text in enumerate(texts)])
    return file


def test_each_content_is_shown_three_times_and_kinds_share_scenes(tmp_path: Path) -> None:
    texts = [f"{word} it" for word in WORDS.split()]
    harmful = prompts(tmp_path, "harmful", [*texts[:6], "too long " * 60])
    harmless = prompts(tmp_path, "harmless", [WORDS, *texts[6:], "short", "left over", "and this"])
    said = draw(tmp_path / "out", harmful, harmless, {"limit": None})
    assert said == ["drawn: 6 prompts of each kind, 1 of 7 fit into no picture"]
    records = read_jsonl(tmp_path / "out/pairs.jsonl")
    assert len(records) == 6 * 2 * 3
    by_content: dict[str, list[dict]] = {}
    for record in records:
        by_content.setdefault(record["content"], []).append(record)
    for content, shown in by_content.items():
        assert [r["modality"] for r in shown] == ["text", "image", "typographic"]
        assert {r["drawn"] for r in shown[1:]} == {shown[0]["text"]}
        assert shown[0]["label"] == content.split("-")[0]
    for modality in ("image", "typographic"):
        of = [r for r in records if r["modality"] == modality]
        for a, b in zip(of[0::2], of[1::2], strict=True):
            assert (a["label"], b["label"]) == ("harmful", "harmless")
            assert (a["text"], a["scene"]) == (b["text"], b["scene"])
            first, second = (
                np.asarray(Image.open(tmp_path / "out" / r["images"][0]["file"])) for r in (a, b)
            )
            differs = np.any(first != second, axis=2)
            left, top, right, bottom = a["box"]
            assert differs.any()
            differs[top:bottom, left:right] = False
            assert not differs.any()
    assert len({r["scene"] for r in records if r["modality"] == "image"}) >= 5
    draw(tmp_path / "few", harmful, harmless, {"limit": 2})
    assert read_jsonl(tmp_path / "few/pairs.jsonl") == records[:12]


def test_what_cannot_be_drawn_is_one_line(tmp_path: Path) -> None:
    long = prompts(tmp_path, "long", ["much too long " * 60])
    short = prompts(tmp_path, "short", ["short"])
    with pytest.raises(HoldfastError, match="no prompt fits into a picture"):
        draw(tmp_path / "out", long, short, {"limit": None})
    pictured = tmp_path / "pictured.jsonl"
    write_jsonl(pictured, [{"id": "p", "text": "this", "images": [{"file": "x.png", "sha256": "0" * 64}]}])
    with pytest.raises(HoldfastError, match="p has an image, and what is drawn is text"):
        draw(tmp_path / "out", short, pictured, {"limit": None})
    assert not (tmp_path / "out").exists()
