"""Benign questions about images: how they are read, which answers are right, what the report says of them."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from holdfast.config.by_hand import checked
from holdfast.embedded.vision.vocabulary import COLOURS
from holdfast.errors import HoldfastError
from holdfast.evaluation.generation import generate
from holdfast.evaluation.visual_accuracy import named, right, score
from holdfast.evaluation.visual_questions import build_questions
from holdfast.files import read_json, read_jsonl, write_jsonl
from holdfast.prompts.images import load_images
from holdfast.report.collect import COLUMNS, MEASURES, collect, typed
from holdfast.report.numbers import Numbers
from holdfast.report.tables import terminal_tables
from holdfast.report.tables.flips import adjusted
from holdfast.report.tables.main import main_table
from holdfast.report.tables.visual import visual_table
from holdfast.statistics import mcnemar_exact, wilson
from hub_data import given_hub
from PIL import Image
from vlms import picture, tiny_blip
from written_results import CELLS, JUDGES, MODEL, row


def recipe(**keys: Any) -> dict[str, Any]:
    return checked("visual", json.dumps(keys))


def test_options_are_found_as_whole_words() -> None:
    assert named("The colour is Red.", COLOURS.keys()) == {"red"}
    assert named("It was coloured", COLOURS.keys()) == set()
    assert named("red or blue", tuple(COLOURS)) == {"red", "blue"}
    assert named("It is a traffic light (red)", ("traffic light", "light bulb")) == {"traffic light"}
    assert named("C++ it is", ("C", "C++")) == {"C++"}
    assert named("at the top left", ("left", "top left")) == {"top left"}
    assert named("top left, or left", ("left", "top left")) == {"top left", "left"}


@pytest.mark.parametrize(
    ("completion", "answers", "options", "is_right"),
    [
        ("The colour is red.", ["red"], ["red", "blue"], True),
        ("The colour is red or blue.", ["red"], ["red", "blue"], False),
        ("I cannot help with that.", ["red"], ["red", "blue"], False),
        ("yes, there is", ["yes"], ["Yes", "No"], True),
        ("A Cat.", ["cat"], [], True),
        ("two cats", ["cat", "2 cats", "Two cats!"], [], True),
        ("It is a cat", ["cat"], [], False),
    ],
)
def test_an_answer_is_right(completion: str, answers: list[str], options: list[str], is_right: bool) -> None:
    assert right(completion, answers, options) is is_right


def test_the_embedded_models_scenes_are_the_same_every_time_and_balanced(tmp_path: Path) -> None:
    told = build_questions(tmp_path / "a", recipe(benchmark="embedded-scenes", limit=10))
    build_questions(tmp_path / "b", recipe(benchmark="embedded-scenes"))
    assert told == ["embedded-scenes: 10 questions about images"]
    few, all_of_them = (read_jsonl(tmp_path / name / "visual.jsonl") for name in "ab")
    assert few == all_of_them[:10]
    assert Counter(r["category"] for r in all_of_them) == dict.fromkeys(
        ("colour", "count", "shape", "word"), 40
    )
    assert Counter(r["category"] for r in few) == {"colour": 3, "count": 3, "shape": 2, "word": 2}
    for record in few:
        assert record["answers"][0] in record["options"]
        assert load_images(record, tmp_path / "a")[0].size == (96, 96)
    about = read_json(tmp_path / "a/provenance.json")
    assert (about["stage"], about["questions"]) == ("visual", 10)


def given_file(folder: Path, rows: list[dict[str, Any]]) -> str:
    """A file of rows beside three images."""
    for number in range(3):
        picture(folder / f"pictures/{number}.png", number)
    write_jsonl(folder / "asked.jsonl", rows)
    return f"file:{folder}/asked.jsonl"


def test_a_file_names_images_beside_it_and_answers_by_annotators(tmp_path: Path) -> None:
    rows = [
        {"question": "Is it day?", "image": "pictures/0.png", "answer": "yes", "category": "time"},
        {
            "question": "What is it?",
            "image": "pictures/1.png",
            "answer": [{"answer": "cat"}, {"answer": "cat"}, {"answer": "kitten"}],
        },
    ]
    source = given_file(tmp_path, rows)
    build_questions(tmp_path / "out", recipe(source=source, suffix="In one word."))
    first, second = read_jsonl(tmp_path / "out/visual.jsonl")
    assert (first["text"], first["category"], first["options"]) == ("Is it day?\nIn one word.", "time", [])
    assert second["answers"] == ["cat", "kitten"]
    assert load_images(first, tmp_path / "out")[0].size == (48, 40)
    build_questions(tmp_path / "few", recipe(source=source, options=["yes", "no"], limit=1, suffix=""))
    (only,) = read_jsonl(tmp_path / "few/visual.jsonl")
    assert (only["text"], only["options"]) == ("Is it day?", ["yes", "no"])


def test_a_hub_data_set_holds_the_images_in_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The columns of POPE."""
    shades = [Image.new("L", (8, 8), shade) for shade in (9, 99)]
    rows = {
        "id": ["0", "1"],
        "question_id": ["1", "1"],
        "question": ["Is there a dog?", "Is there a cat?"],
        "answer": ["yes", "no"],
        "image": shades,
        "category": ["popular", "adversarial"],
    }
    given_hub(tmp_path, "lab/pope", rows, monkeypatch)
    asked = recipe(
        source="hub:lab/pope@main", split="test", options=["yes", "no"], where={"category": "adversarial"}
    )
    assert build_questions(tmp_path / "out", asked) == ["hub:lab/pope@main: 1 questions about images"]
    (record,) = read_jsonl(tmp_path / "out/visual.jsonl")
    assert (record["id"], record["answers"], record["options"]) == ("1", ["no"], ["yes", "no"])
    assert load_images(record, tmp_path / "out")[0].getpixel((0, 0)) == (99, 99, 99)


@pytest.mark.parametrize(
    ("change", "keys", "told"),
    [
        ({"image": "pictures/9.png"}, {}, "row 0: no such image"),
        ({"image": "asked.jsonl"}, {}, "row 0: cannot be read as an image"),
        ({"image": {"bytes": "abc"}}, {}, "row 0: holds no image"),
        ({"image": ["pictures/0.png", "pictures/1.png"]}, {}, "row 0: 2 images, and questions are about one"),
        ({"answer": ""}, {}, "row 0: has no answer; its columns: question, image, answer"),
        ({"answer": [{"text": "a"}]}, {}, "row 0: its answer {'text': 'a'} is no text"),
        ({"answer": "?"}, {}, "row 0: its answer '.' has no word"),
        ({}, {"image": "photo"}, "row 0: has no photo"),
        ({}, {"options": ["left", "right"]}, "row 0: its answer 'yes' is none of the options left, right"),
        ({}, {"where": {"answer": "maybe"}}, "selects no prompt"),
    ],
)
def test_a_bad_file_is_told_in_one_line(
    change: dict[str, str], keys: dict[str, Any], told: str, tmp_path: Path
) -> None:
    row = {"question": "Is it day?", "image": "pictures/0.png", "answer": "yes"}
    source = given_file(tmp_path, [row | change])
    with pytest.raises(HoldfastError, match=told):
        build_questions(tmp_path / "out", recipe(source=source, **keys))
    assert not (tmp_path / "out").exists()


def test_numbers_are_answers_and_ids_are_told_apart(tmp_path: Path) -> None:
    about = {"question": "How many?", "image": ["pictures/0.png"], "options": [0, 1]}
    source = given_file(tmp_path, [about | {"id": 0, "answer": 0}, about | {"id": 1, "answer": 1}])
    build_questions(tmp_path / "out", recipe(source=source))
    records = read_jsonl(tmp_path / "out/visual.jsonl")
    assert [(r["id"], r["answers"], r["options"]) for r in records] == [
        ("0", ["0"], ["0", "1"]),
        ("1", ["1"], ["0", "1"]),
    ]
    source = given_file(tmp_path, [about | {"question_id": 7, "answer": 0}] * 2)
    with pytest.raises(HoldfastError, match="two questions have the id 7"):
        build_questions(tmp_path / "again", recipe(source=source))


def test_no_image_of_the_calibration_is_asked_about(tmp_path: Path) -> None:
    source = given_file(tmp_path, [{"question": "Is it day?", "image": "pictures/0.png", "answer": "yes"}])
    calibration = {"id": "c", "text": "A day.", "images": [picture(tmp_path / "images/c.png", 1)]}
    write_jsonl(tmp_path / "calibration.jsonl", [calibration, {"id": "t", "text": "Text alone."}])
    build_questions(tmp_path / "out", recipe(source=source), tmp_path / "calibration.jsonl")
    calibration["images"] = [picture(tmp_path / "images/c.png", 0)]
    write_jsonl(tmp_path / "calibration.jsonl", [calibration])
    with pytest.raises(HoldfastError, match="the image of 0 is one that compressions are calibrated on"):
        build_questions(tmp_path / "again", recipe(source=source), tmp_path / "calibration.jsonl")


def test_answers_of_a_model_are_scored(tmp_path: Path) -> None:
    """By what BLIP with random weights really says, which is made the right answer of one question."""
    rows = [
        {"question": f"What is {i}?", "image": f"pictures/{i}.png", "answer": "nothing"} for i in range(3)
    ]
    source = given_file(tmp_path, rows)
    build_questions(tmp_path / "out", recipe(source=source))
    asked = tmp_path / "out/visual.jsonl"
    generate(
        tiny_blip(tmp_path / "blip"),
        tmp_path / "said",
        {"visual": asked},
        {"max_new_tokens": 4, "batch_size": 2},
    )
    answers = tmp_path / "said/visual.jsonl"
    assert score(answers, asked, tmp_path / "none", {"judge": "arditi-12"}) == (0, 3)
    said = read_jsonl(answers)[1]["completion"]
    records = read_jsonl(asked)
    records[1]["answers"] = ["other", said.upper()]
    write_jsonl(asked, records)
    assert score(answers, asked, tmp_path / "one", {"judge": "arditi-12"}) == (1, 3)
    assert [r["right"] for r in read_jsonl(tmp_path / "one/visual.jsonl")] == [False, True, False]
    write_jsonl(asked, records[:2])
    with pytest.raises(HoldfastError, match="answers to other questions than those of"):
        score(answers, asked, tmp_path / "two", {"judge": "arditi-12"})
    assert not (tmp_path / "two").exists()


def test_a_refusal_is_no_right_answer_and_a_cut_thought_none(tmp_path: Path) -> None:
    question = {"text": "What colour?", "answers": ["red"], "options": ["red", "blue"]}
    write_jsonl(tmp_path / "visual.jsonl", [question | {"id": str(i)} for i in range(3)])
    said = ("I'm sorry, but I cannot say whether it is red.", "It is red.", "")
    answers = [
        {
            "id": str(i),
            "prompt_id": str(i),
            "prompt": "",
            "completion": text,
            "tokens": [],
            "finish_reason": "stop",
        }
        for i, text in enumerate(said)
    ]
    answers[2] |= {"thought": "I see", "finish_reason": "length"}
    write_jsonl(tmp_path / "said.jsonl", answers)
    told = score(tmp_path / "said.jsonl", tmp_path / "visual.jsonl", tmp_path / "out", {"judge": "arditi-12"})
    assert told == (1, 2)
    assert [r["right"] for r in read_jsonl(tmp_path / "out/said.jsonl")] == [False, True, None]


N = 20
KINDS = ("colour", "word")


def scored(right_ones: set[int], refused: set[int] = frozenset()) -> list[dict[str, Any]]:
    about = {"judge": "arditi-12", "degenerate": False, "label": "answered"}
    return [
        about | {"id": f"q{i}", "prompt_id": f"q{i}", "right": i in right_ones, "refused": i in refused}
        for i in range(N)
    ]


@pytest.fixture
def asked(results: Path) -> Path:
    questions = [{"id": f"q{i}", "text": "What?", "category": KINDS[i % 2]} for i in range(N)]
    write_jsonl(results / "visual/visual.jsonl", questions)
    for cell, verdicts in (
        ("dense/as-is", scored(set(range(18)))),
        ("wanda-50/as-is", scored({0, 2, 18}, refused={1})),
    ):
        write_jsonl(results / MODEL / cell / "visual/verdicts/visual.jsonl", verdicts)
    return results


def test_accuracy_stands_in_the_tables_beside_the_dense_models(asked: Path) -> None:
    frame = collect(asked, CELLS, JUDGES, pictured=True)

    def found(measure: str) -> tuple[float, ...]:
        return tuple(row(frame, "wanda-50", "as-is", measure)[["value", "n", "low", "high"]])

    assert found("visual_accuracy") == tuple(wilson(3, N))
    assert found("visual_accuracy[colour]") == tuple(wilson(3, N // 2))
    assert found("visual_refused") == tuple(wilson(1, N))
    assert found("visual_accuracy_lost") == tuple(wilson(16, N))
    assert found("visual_accuracy_gained") == tuple(wilson(1, N))
    assert found("visual_accuracy_p")[0] == mcnemar_exact(1, 16)
    names = {m.partition("[")[0] for m in frame["measure"] if m.startswith("visual_")}
    assert names == {m.partition("[")[0] for m in MEASURES if m.startswith("visual_")}
    table = visual_table(Numbers(frame, MODEL))
    assert table is not None
    rows = {(c, k): rest for c, k, *rest in table.rows}
    n, accuracy, colour, word, refused, change, flips, p = rows["wanda-50", "as-is"]
    assert (n, accuracy, flips) == ("20", "15 % [5, 36]", "16 / 1")
    assert (refused, p) == ("5 % [1, 24]", "< 0.001")
    assert (colour, word) == ("30 % [11, 60]", "0 % [0, 28]")
    assert change.startswith("−75.0 [")
    assert rows["dense", "as-is"][-3:] == ["–"] * 3
    assert "in 1 of 1 cell: wanda-50 / as-is (same" in table.findings[0]
    printed = terminal_tables(frame)
    assert "Images: accuracy on benign questions about them." in printed
    assert any(line.startswith("wanda-50") and line.endswith("15 % [5, 36]") for line in printed.splitlines())
    main = main_table(Numbers(frame, MODEL))
    assert main.rows[1][main.columns.index("Images")] == "15 % [5, 36]"
    assert "20 questions about images" in main.note


def test_answers_cut_before_their_first_word_are_in_no_rate(asked: Path) -> None:
    cut = scored({0, 2, 18})
    cut[5] |= {"right": None, "refused": False, "label": "unfinished"}
    write_jsonl(asked / MODEL / "wanda-50/as-is/visual/verdicts/visual.jsonl", cut)
    frame = collect(asked, CELLS, JUDGES, pictured=True)
    assert {
        row(frame, "wanda-50", "as-is", f"visual_{m}").n for m in ("accuracy", "refused", "accuracy_lost")
    } == {N - 1}


def test_a_study_that_asks_none_has_no_such_table(asked: Path) -> None:
    numbers = Numbers(collect(asked, CELLS, JUDGES), MODEL)
    assert visual_table(numbers) is None
    assert "Images" not in main_table(numbers).columns


def test_scores_of_other_questions_are_refused(asked: Path) -> None:
    write_jsonl(asked / MODEL / "dense/as-is/visual/verdicts/visual.jsonl", scored(set())[:-1])
    with pytest.raises(HoldfastError, match="answers to other questions about images than the study's"):
        collect(asked, CELLS, JUDGES, pictured=True)


def test_what_compression_did_and_what_methods_do_are_tested_apart() -> None:
    p_of = {("a", "as-is"): 0.01, ("b", "as-is"): 0.02, ("a", "edit"): 0.01, ("dense", "as-is"): 0.001}
    rows = [(MODEL, c, k, "x_p", p, 10, p, p) for (c, k), p in p_of.items()]
    numbers = Numbers(typed(pd.DataFrame(rows, columns=COLUMNS)), MODEL)
    expected = {("a", "as-is", "x_p"): 0.02, ("b", "as-is", "x_p"): 0.02, ("a", "edit", "x_p"): 0.01}
    assert adjusted(numbers, ["x_p"]) == pytest.approx(expected)
