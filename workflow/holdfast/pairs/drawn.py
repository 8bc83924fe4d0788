"""Prompt sets shown three ways: as text, in a scene, and drawn on a page, with the pairs' own questions and scenes.

So that directions found on text, images and drawn text are of the same content. Nothing is written here: the texts are
those of the sets, and the questions about pictures those of the benchmark's pairs.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from holdfast.errors import HoldfastError
from holdfast.files import atomic_folder, sha256, write_jsonl
from holdfast.pairs.drawing import fitting_size
from holdfast.pairs.records import RECORDS, drawn_halves, record_of
from holdfast.pairs.references import COUNTS, read_pairs
from holdfast.pairs.scenes import SCENES
from holdfast.prompts.sources import read_records
from holdfast.provenance import Recorder

DRAWN = ("image", "typographic")
Prompt = dict[str, Any]


def draw(out: Path, harmful: Path, harmless: Path, recipe: Mapping[str, Any]) -> list[str]:
    """Write ``out/pairs.jsonl`` and ``out/images/``: each prompt as text and in both kinds of picture.

    The n-th harmful and the n-th harmless prompt share a scene, its colours, the question and the size of letters, so
    that nothing but the drawn text tells the kinds apart. ``content`` of a record is the prompt's id.

    Args:
        out: the folder: written whole, or not at all.
        harmful, harmless: prompt sets; as many of each as the shorter one has.
        recipe: ``limit``, of each kind at most, the first ones that can be drawn (None for all).

    Raises:
        HoldfastError: a prompt with an image, and where no prompt fits into any picture.
    """
    recorder = Recorder("draw", dict(recipe))
    both = [(path, read_records(path)) for path in (harmful, harmless)]
    for path, records in both:
        if pictured := [r["id"] for r in records if r.get("images")]:
            what = f"{pictured[0]} has an image, and what is drawn is text"
            raise HoldfastError(what, str(path), "give prompts of text alone")
    asked = {modality: _questions(modality) for modality in DRAWN}
    fitting: list[tuple[tuple[Prompt, ...], dict[str, tuple[str, str] | None]]] = []
    for texts in zip(*(records for _, records in both), strict=False):
        places = {m: _place(asked[m], len(fitting), [t["text"] for t in texts]) for m in DRAWN}
        if all(places.values()):
            fitting.append((texts, places))
    short = min(len(records) for _, records in both)
    if not fitting:
        raise HoldfastError("no prompt fits into a picture", str(harmful), "give shorter prompts")
    kept = fitting[: recipe["limit"]]
    with atomic_folder(out) as folder:
        (folder / "images").mkdir()
        records = [
            record
            for number, (texts, places) in enumerate(tqdm(kept, desc="prompts drawn", unit="prompt"))
            for record in _shown(number, texts, places, folder)
        ]
        write_jsonl(folder / RECORDS, records)
        given = [harmful, harmless]
        recorder.write(folder / "provenance.json", given, prompts=len(kept), sha256=sha256(folder / RECORDS))
    return [f"drawn: {len(kept)} prompts of each kind, {short - len(fitting)} of {short} fit into no picture"]


def _questions(modality: str) -> list[tuple[str, str]]:
    """(scene, question) of the benchmark's pairs that draw whole instructions, scenes in turn."""
    of_scenes: dict[str, list[str]] = {}
    for pair in read_pairs([modality]):
        if pair.span is None and pair.question not in of_scenes.setdefault(pair.scene, []):
            of_scenes[pair.scene].append(pair.question)
    longest = max(map(len, of_scenes.values()))
    return [
        (scene, questions[turn % len(questions)])
        for turn in range(longest)
        for scene, questions in of_scenes.items()
    ]


def _place(asked: list[tuple[str, str]], number: int, texts: list[str]) -> tuple[str, str] | None:
    """The first scene, from the one whose turn it is, that both texts fit into; None where there is none."""
    for shift in range(len(asked)):
        scene, question = asked[(number + shift) % len(asked)]
        look = SCENES[scene]
        try:
            fitting_size(texts, look.box, look.face, look.largest, len(look.below))
        except HoldfastError:
            continue
        return scene, question
    return None


def _shown(
    number: int, texts: tuple[Prompt, ...], places: Mapping[str, tuple[str, str] | None], folder: Path
) -> Iterator[Prompt]:
    of_label = dict(zip(("harmful", "harmless"), texts, strict=True))
    words = {label: record["text"] for label, record in of_label.items()}
    for modality in COUNTS:
        about = {"pair": f"{modality}-{number:04d}", "modality": modality, "category": ""}
        if place := places.get(modality):
            shown = drawn_halves(about, *place, words, folder)
        else:
            shown = (record_of(about, label, text) for label, text in words.items())
        for record in shown:
            yield {**record, "content": str(of_label[record["label"]]["id"])}
