"""Directions by modality in the report, and whether an edit along one found on text repairs refusals of images."""

import math
from pathlib import Path
from typing import Any

import pytest
from holdfast.errors import HoldfastError
from holdfast.files import read_json, write_json, write_jsonl
from holdfast.report.collect import MEASURES, collect
from holdfast.report.numbers import Numbers
from holdfast.report.pair_repairs import pair_repairs
from holdfast.report.tables import model_tables
from holdfast.report.tables.modalities import modality_tables
from holdfast.report.tables.pairs import pairs_table
from holdfast.statistics import mcnemar_exact
from written_results import CELLS, JUDGES, MODEL, row, write_edit

BOTH = ("text", "image")
TEXT, IMAGE = 12, 8  # pairs
HALVES = [
    {"id": f"{label}-{n}", "text": "What now?", "label": label, "pair": f"pair-{n}", "category": ""}
    | {"modality": "text" if n < TEXT else "image"}
    for n in range(TEXT + IMAGE)
    for label in ("harmful", "benign")
]


def said(refused: set[int], over_refused: set[int] = frozenset()) -> list[dict[str, Any]]:
    """Verdicts on all halves, by the numbers of the pairs whose harmful, whose benign half is refused."""
    return [
        {"id": half["id"], "prompt_id": half["id"], "judge": "arditi-12", "degenerate": False}
        | {"refused": number // 2 in (over_refused if number % 2 else refused), "label": "answered"}
        for number, half in enumerate(HALVES)
    ]


def around(value: float, n: int = 20) -> dict[str, float]:
    return {"value": value, "n": n, "low": value - 0.1, "high": value + 0.1}


def cosine(value: float, p_below: float, p_chance: float) -> dict[str, Any]:
    null = {"mean": 0.9, "low": 0.8, "high": 1.0, "n": 2000}
    return {
        "cosine": around(value),
        **{f"null_{name}": null for name in ("split_half", "random", "shuffled")},
        "p_below": p_below,
        "p_chance": p_chance,
    }


def tried(p: float) -> dict[str, Any]:
    whose = ("baseline", "own", "other", "other_minus_own", "own_effect", "other_effect")
    null = {"mean": 0.0, "low": -1.0, "high": 1.0, "n": 8}
    both = {"null": null, "null_shuffled": null, "p": p / 2, "p_shuffled": p}
    return {score: {key: around(2.0, 8) for key in whose} | both for score in ("bypass", "induce")}


def write_modalities(results: Path, compression: str, *, alike: bool) -> None:
    between = cosine(0.9, 0.5, 0.0005) if alike else cosine(0.1, 0.0005, 0.5)
    found = {
        "between": {"text-image": between},
        "to_chosen": dict.fromkeys(BOTH, between),
        "to_dense": None if compression == "dense" else dict.fromkeys(BOTH, between),
        "tried": {"text": tried(0.001), "image": tried(0.001 if alike else 0.4)},
    }
    write_json(results / MODEL / compression / "modalities/modalities.json", found)


@pytest.fixture
def measured(results: Path) -> Path:
    write_modalities(results, "dense", alike=True)
    write_modalities(results, "wanda-50", alike=False)
    return results


def test_cosines_and_effects_of_every_modality_are_told(measured: Path) -> None:
    frame = collect(measured, CELLS, JUDGES)
    numbers = Numbers(frame, MODEL)
    cosines, effects = modality_tables(numbers)
    shown = {(c, pair): rest for c, pair, *rest in cosines.rows}
    assert len(shown) == 3 + 5  # the dense model is compared with no dense one
    assert shown["dense", "text – image"][0] == "0.900 [0.800, 1.000]"
    # By Holm over the eight rows: three of chance are at the least rank, five of the other model are not.
    assert shown["dense", "text – image"][-1] == f"{0.0005 * 8:.3f}"
    assert any("beyond chance (0.90 [0.80, 1.00] in the dense model) in 1 of 2 models: dense" in f
               and "in 1: wanda-50" in f for f in cosines.findings)  # fmt: skip
    places = {(c, m, s): rest for c, m, s, *rest in effects.rows}
    assert len(places) == 2 * 2 * 2
    # The larger p of both nulls, by Holm over the four rows of a score.
    assert places["wanda-50", "image", "bypass"][-1] == "0.400"
    assert places["dense", "image", "bypass"][-1] == "0.004"
    assert any(f.startswith("On image inputs") and "when ablated in 1 of 2 models: dense" in f
               for f in effects.findings)  # fmt: skip
    assert [t.title for t in model_tables(numbers, [])].count(cosines.title) == 1
    names = {m.partition("[")[0] for m in frame["measure"] if m.startswith("modality_")}
    assert names == {m.partition("[")[0] for m in MEASURES if m.startswith("modality_")}


def test_a_modality_without_a_direction_has_no_row(measured: Path) -> None:
    found = {"between": {"text-image": None}, "to_chosen": {"image": None}, "tried": {"image": None}}
    write_json(measured / MODEL / "wanda-50/modalities/modalities.json", found)
    cosines, effects = modality_tables(Numbers(collect(measured, CELLS, JUDGES), MODEL))
    assert {c for c, *_ in cosines.rows} == {c for c, *_ in effects.rows} == {"dense"}


def test_a_study_without_them_has_no_table_and_a_broken_file_is_one_line(results: Path) -> None:
    assert modality_tables(Numbers(collect(results, CELLS, JUDGES), MODEL)) == []
    write_json(results / MODEL / "dense/modalities/modalities.json", {"between": 1})
    with pytest.raises(HoldfastError, match=r"modalities\.json"):
        collect(results, CELLS, JUDGES)


def write_pairs(results: Path, after: set[int], control: set[int]) -> Numbers:
    """The dense model refuses all, the compressed one no image; the edit and its control as said."""
    write_jsonl(results / "pairs/pairs.jsonl", HALVES)
    everything = set(range(TEXT + IMAGE))
    text = set(range(TEXT))
    cells = {
        "dense/as-is": everything,
        "wanda-50/as-is": text,
        "wanda-50/aird": after,
        "wanda-50/random-edit": control,
    }
    for cell, refused in cells.items():
        write_jsonl(results / MODEL / cell / "pairs/verdicts/pairs.jsonl", said(refused))
    return Numbers(collect(results, CELLS, JUDGES, paired=True), MODEL)


def repair_lines(numbers: Numbers) -> dict[str, str]:
    table = pairs_table(numbers)
    assert table is not None
    asked = "Does AIRD along the direction found on text repair refusals of "
    return {f.removeprefix(asked).split()[0]: f for f in table.findings if f.startswith(asked)}


def test_refusals_of_images_that_come_back_support_it(results: Path) -> None:
    everything = set(range(TEXT + IMAGE))
    numbers = write_pairs(results, everything, set(range(TEXT)))
    lines = repair_lines(numbers)
    assert (
        "? Supported: wanda-50 / aird: supported, 100 % [100, 100] of the lost refusals back"
        in lines["image"]
    )
    assert "random 0 % [0, 0]" in lines["image"]
    assert "benign halves refused 0 % [0, 32], as-is 0 % [0, 32]" in lines["image"]
    assert lines["text"].endswith("? Not decided: wanda-50 / aird: nothing lost.")
    assert numbers.get("wanda-50", "aird", "pair_repair_p[image]").value == mcnemar_exact(IMAGE, 0)


def test_refusals_of_both_halves_are_no_repair(results: Path) -> None:
    everything = set(range(TEXT + IMAGE))
    write_pairs(results, everything, set(range(TEXT)))
    file = results / MODEL / "wanda-50/aird/pairs/verdicts/pairs.jsonl"
    write_jsonl(file, said(everything, over_refused=everything))
    line = repair_lines(Numbers(collect(results, CELLS, JUDGES, paired=True), MODEL))["image"]
    assert "? Not decided: wanda-50 / aird: not decided, 100 %" in line
    assert "benign halves refused 100 %" in line


def test_refusals_that_stay_away_contradict_it_and_a_control_as_good_decides_nothing(results: Path) -> None:
    everything, text = set(range(TEXT + IMAGE)), set(range(TEXT))
    none = repair_lines(write_pairs(results, text, text))
    assert "? Contradicted: wanda-50 / aird: contradicted, 0 %" in none["image"]
    both = repair_lines(write_pairs(results, everything, everything))
    assert "? Not decided: wanda-50 / aird: not decided, 100 %" in both["image"]


def test_an_edit_that_was_not_made_is_neither_tested_nor_a_contradiction(results: Path) -> None:
    text = set(range(TEXT))
    write_pairs(results, text, text)
    file = results / MODEL / "wanda-50/aird/checkpoint/edit.json"
    write_json(file, read_json(file) | {"alpha": 0.0})
    line = repair_lines(Numbers(collect(results, CELLS, JUDGES, paired=True), MODEL))["image"]
    assert line.endswith("? Not decided: wanda-50 / aird: no edit.")


def test_what_is_recovered_is_missing_where_little_was_lost(results: Path) -> None:
    numbers = write_pairs(results, set(range(TEXT + IMAGE)), set())
    frame = collect(results, CELLS, JUDGES, paired=True)
    assert row(frame, "wanda-50", "aird", "pair_repair_recovered[image]").n == IMAGE
    assert numbers.get("wanda-50", "aird", "pair_repair_recovered[text]").n == 0


def controlled_twice(results: Path, second: set[int]) -> Path:
    """Images come back by the edit and not by its control; a second control refuses as said. Its verdicts."""
    everything = set(range(TEXT + IMAGE))
    write_pairs(results, everything, set(range(TEXT)))
    write_edit(results / MODEL / "wanda-50/random-2", "random")
    file = results / MODEL / "wanda-50/random-2/pairs/verdicts/pairs.jsonl"
    write_jsonl(file, said(second))
    return file


def told_of_images(results: Path, cells: list[tuple[str, str, str]] = CELLS) -> str:
    return repair_lines(Numbers(collect(results, cells, JUDGES, paired=True), MODEL))["image"]


TWO_CONTROLS = [*CELLS, (MODEL, "wanda-50", "random-2")]
MISSING = "? Not decided: wanda-50 / aird: not decided (missing beside it: {}), 100 %"


def test_a_control_without_answers_supports_nothing(results: Path) -> None:
    """Its edit is there and its answers are not, as after a run in which that job failed."""
    write_pairs(results, set(range(TEXT + IMAGE)), set(range(TEXT)))
    (results / MODEL / "wanda-50/random-edit/pairs/verdicts/pairs.jsonl").unlink()
    assert MISSING.format("random-edit") in told_of_images(results)


def test_every_control_of_the_study_has_to_have_answers(results: Path) -> None:
    file = controlled_twice(results, set(range(TEXT)))
    assert "? Supported: wanda-50 / aird: supported, 100 %" in told_of_images(results, TWO_CONTROLS)
    file.unlink()
    assert MISSING.format("random-2") in told_of_images(results, TWO_CONTROLS)


@pytest.mark.parametrize("gone", [["wanda-50"], ["wanda-50", "rtn-4"]])
def test_a_control_without_a_record_supports_nothing(results: Path, gone: list[str]) -> None:
    """Whether it is a control is known from another compression, or not at all."""
    write_pairs(results, set(range(TEXT + IMAGE)), set(range(TEXT)))
    for compression in gone:
        (results / MODEL / compression / "random-edit/checkpoint/edit.json").unlink()
    assert MISSING.format("random-edit") in told_of_images(results)


def test_a_fall_needs_no_control(results: Path) -> None:
    """One counterexample contradicts, whatever is missing: the edit takes the seven texts that were left of twelve."""
    write_pairs(results, set(), set())
    lost = set(range(TEXT)) - set(range(5))
    write_jsonl(results / MODEL / "wanda-50/as-is/pairs/verdicts/pairs.jsonl", said(lost))
    (results / MODEL / "wanda-50/random-edit/pairs/verdicts/pairs.jsonl").unlink()
    line = repair_lines(Numbers(collect(results, CELLS, JUDGES, paired=True), MODEL))["text"]
    assert "? Contradicted: wanda-50 / aird: contradicted, " in line


def test_of_several_controls_the_hardest_to_beat_counts(results: Path) -> None:
    """The edit gives one more back than the second control: more, and not beyond chance."""
    controlled_twice(results, set(range(TEXT + IMAGE)) - {TEXT})
    assert "? Not decided: wanda-50 / aird: not decided, 100 %" in told_of_images(results, TWO_CONTROLS)
    frame = collect(results, TWO_CONTROLS, JUDGES, paired=True)
    assert row(frame, "wanda-50", "aird", "pair_repair_p_control[image]").value == mcnemar_exact(1, 0)


def test_a_control_that_gives_as_much_back_by_mcnemar_decides_nothing(results: Path) -> None:
    """More than the control, and not beyond chance; p against as-is alone would do."""
    everything = set(range(TEXT + IMAGE))
    line = repair_lines(write_pairs(results, everything, everything - {TEXT}))["image"]
    assert "? Not decided: wanda-50 / aird: not decided, 100 %" in line


def test_refusals_in_gibberish_do_not_come_back(results: Path) -> None:
    write_pairs(results, set(), set(range(TEXT)))
    file = results / MODEL / "wanda-50/aird/pairs/verdicts/pairs.jsonl"
    write_jsonl(file, [v | {"degenerate": True} for v in said(set(range(TEXT + IMAGE)))])
    frame = collect(results, CELLS, JUDGES, paired=True)
    assert row(frame, "wanda-50", "aird", "pair_repair_recovered[image]").value == 0
    assert row(frame, "wanda-50", "aird", "pair_repair_p[image]").value == 1
    assert row(frame, "wanda-50", "aird", "pair_repair_p[text]").value == mcnemar_exact(0, TEXT)


def test_discrimination_has_to_rise_beyond_its_interval(results: Path) -> None:
    """Three of eight pairs told apart where none were: intervals overlap."""
    everything, text = set(range(TEXT + IMAGE)), set(range(TEXT))
    write_pairs(results, everything, text)
    file = results / MODEL / "wanda-50/aird/pairs/verdicts/pairs.jsonl"
    write_jsonl(file, said(everything, over_refused=set(range(TEXT, TEXT + 5))))
    assert "? Not decided: wanda-50 / aird: not decided, 100 %" in told_of_images(results)


def test_a_share_below_a_half_contradicts_with_its_whole_interval_only(results: Path) -> None:
    text = set(range(TEXT))
    numbers = write_pairs(results, text | {TEXT, TEXT + 1, TEXT + 2}, text)
    back = numbers.get("wanda-50", "aird", "pair_repair_recovered[image]")
    assert back.value < 0.5 < back.high
    assert "? Not decided: wanda-50 / aird: not decided, 38 %" in repair_lines(numbers)["image"]


def test_holm_runs_over_the_edits_that_were_made(results: Path) -> None:
    """Two modalities of wanda-50; where the weights are as they were there is no test."""
    everything, text = set(range(TEXT + IMAGE)), set(range(TEXT))
    write_pairs(results, everything, text)
    for method in ("as-is", "aird", "random-edit"):
        write_jsonl(results / MODEL / "rtn-4" / method / "pairs/verdicts/pairs.jsonl", said(text))
    file = results / MODEL / "rtn-4/aird/checkpoint/edit.json"
    write_json(file, read_json(file) | {"alpha": 0.0})
    rows = pair_repairs(Numbers(collect(results, CELLS, JUDGES, paired=True), MODEL), list(BOTH))
    p = {(r.compression, r.modality): (r.p, r.p_control) for r in rows}
    assert len(p) == 4
    assert p["wanda-50", "image"] == (2 * mcnemar_exact(IMAGE, 0),) * 2
    assert all(math.isnan(value) for value in p["rtn-4", "image"])
