"""Benign questions about images, with their answers: from a file or a hub data set, or the embedded model's own scenes.

Records are prompts with an image (:mod:`holdfast.prompts.images`) and, besides, ``answers`` and ``options``.
"""

import hashlib
import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from holdfast.embedded.vision.questions import OPTIONS, Question, about_scenes, about_words, scenes_drawn
from holdfast.embedded.vision.vocabulary import read_words
from holdfast.errors import HoldfastError
from holdfast.evaluation.visual_accuracy import normalised
from holdfast.files import atomic_folder, sha256, write_jsonl
from holdfast.pairs.drawing import write_png
from holdfast.prompts.images import decoded, load_images, read_image
from holdfast.prompts.sources import category_of, local_path, read_records, selected_rows
from holdfast.provenance import Recorder

RECORDS = "visual.jsonl"
BENCHMARK = "embedded-scenes"
OF_EACH_KIND = 40
SEED = "visual questions"  # scenes of their own, of which none was drawn in training or for its rates

Asked = tuple[dict[str, Any], Image.Image]


def build_questions(out: Path, recipe: Mapping[str, Any], learnt_on: Path | None = None) -> list[str]:
    """Write ``out/visual.jsonl``, ``out/images/`` and ``out/provenance.json``; returns what is to be told, in lines.

    Args:
        out: the folder: written whole, or not at all.
        recipe: ``benchmark`` (``embedded-scenes``), or ``source`` with the keys of a prompt set, ``image``,
            ``answer``, ``options`` and ``suffix``; ``limit``.
        learnt_on: calibration records, of which no image may be asked about.

    Raises:
        HoldfastError: as :func:`holdfast.prompts.sources.read_prompts`; a row lacks its question, image or answer; an
            image cannot be read, or is one of the calibration's.
    """
    recorder = Recorder("visual", dict(recipe))
    source = recipe["source"] or BENCHMARK
    asked = _given(recipe) if recipe["source"] else itertools.islice(_scenes(), recipe["limit"])
    seen = _contents(learnt_on) if learnt_on else set()
    with atomic_folder(out) as folder:
        (folder / "images").mkdir()
        records, names = [], set()
        for number, (record, picture) in enumerate(asked):
            file = f"images/{number:05d}.png"
            write_png(picture, folder / file)
            if _content(picture) in seen:
                what = f"the image of {record['id']} is one that compressions are calibrated on"
                raise HoldfastError(what, source, "calibrate on other images, or ask about others")
            if record["id"] in names:
                what = f"two questions have the id {record['id']}"
                raise HoldfastError(what, source, "give each an id of its own, or leave ids out")
            names.add(record["id"])
            records.append(record | {"images": [{"file": file, "sha256": sha256(folder / file)}]})
        write_jsonl(folder / RECORDS, records)
        local = recipe["source"] and not source.startswith("hub:")
        given = [*([local_path(source)] if local else []), *([learnt_on] if learnt_on else [])]
        recorder.write(
            folder / "provenance.json", given, questions=len(records), sha256=sha256(folder / RECORDS)
        )
    return [f"{source}: {len(records)} questions about images"]


def _scenes() -> Iterator[Asked]:
    """Of each kind ``OF_EACH_KIND`` questions, kinds in turn, so that a limit keeps them balanced; words are benign."""
    draw = random.Random(SEED)
    words = read_words().benign
    asked: dict[str, list[Question]] = {
        kind: about_scenes(kind, scenes_drawn(draw, OF_EACH_KIND), draw) for kind in OPTIONS
    }
    asked["word"] = about_words(draw.sample(words, OF_EACH_KIND), words, draw)
    for place in range(OF_EACH_KIND):
        for kind, questions in asked.items():
            one = questions[place]
            record = _record(f"{kind}-{place:02d}", one.text, kind, [one.answer], one.options)
            yield record, one.picture


def _given(recipe: Mapping[str, Any]) -> Iterator[Asked]:
    """The rows of a file or a hub data set; an image is a path beside the file, or stands in the row."""
    source = recipe["source"]
    folder = Path() if source.startswith("hub:") else local_path(source).parent
    question, image, answer = recipe["column"] or "question", recipe["image"], recipe["answer"]
    for number, row in selected_rows(recipe):
        where = f"{source}, row {number}"
        for column in (question, image, answer):
            if row.get(column) in (None, "", []):
                what = f"has no {column}; its columns: {', '.join(row)}"
                remedy = "name the columns with column (the question), image and answer"
                raise HoldfastError(what, where, remedy)
        options = [str(o) for o in recipe["options"] or _several(row.get("options"))]
        answers = _answers(row[answer], where)
        if options and not {a.lower() for a in answers} <= {o.lower() for o in options}:
            what = f"its answer {answers[0]!r} is none of the options {', '.join(options)}"
            raise HoldfastError(what, where, "mend the row, or the options")
        if not options and not any(map(normalised, answers)):
            what = f"its answer {answers[0]!r} has no word"
            raise HoldfastError(what, where, "mend the row, or give options")
        text = "\n".join(filter(None, (str(row[question]).strip(), recipe["suffix"])))
        named = next((row[key] for key in ("id", "question_id") if row.get(key) not in (None, "")), number)
        yield (
            _record(str(named), text, category_of(row), answers, options),
            _picture(row[image], source, folder, number),
        )


def _record(
    name: str, text: str, category: str, answers: Sequence[str], options: Sequence[str]
) -> dict[str, Any]:
    record = {"id": name, "text": text, "label": "harmless", "category": category}
    return record | {"answers": list(answers), "options": list(options)}


def _answers(value: Any, where: str) -> list[str]:
    """One answer, or the annotators', each as text or as ``{"answer": …}``; the same once."""
    found = []
    for one in _several(value):
        said = one.get("answer") if isinstance(one, Mapping) else one
        if said is None or isinstance(said, list | Mapping):
            raise HoldfastError(f"its answer {one!r} is no text", where, "mend the row")
        found.append(str(said))
    return list(dict.fromkeys(found))


def _several(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _picture(value: Any, source: str, folder: Path, number: int) -> Image.Image:
    if isinstance(value, list):
        if len(value) != 1:
            what = f"{len(value)} images, and questions are about one"
            raise HoldfastError(what, f"{source}, row {number}", "leave the row out (where, rows)")
        (value,) = value
    if isinstance(value, Mapping):
        return decoded(value, f"{source}, row {number}")
    path = folder / str(value)
    if not path.is_file():
        what = f"row {number}: no such image"
        raise HoldfastError(what, str(path), "bring the images that the file names")
    return read_image(path, f"{path}, row {number}")


def _content(picture: Image.Image) -> tuple[tuple[int, int], str]:
    """What tells a picture whatever file it is kept in."""
    return picture.size, hashlib.sha256(picture.convert("RGB").tobytes()).hexdigest()


def _contents(records: Path) -> set[tuple[tuple[int, int], str]]:
    return {_content(image) for r in read_records(records) for image in load_images(r, records.parent)}
