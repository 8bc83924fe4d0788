"""Collecting: every number of the tidy table is checked against its records by hand."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from holdfast.config.by_hand import checked
from holdfast.errors import HoldfastError
from holdfast.files import write_json, write_jsonl
from holdfast.methods.edit import edit_checkpoint
from holdfast.report.collect import COLUMNS, MEASURES, collect
from holdfast.report.figures import write_figures
from holdfast.report.findings import compression_findings, repair_findings
from holdfast.report.numbers import Numbers
from holdfast.report.rendering import MISSING
from holdfast.report.repairs import repairs
from holdfast.report.tables import write_tables
from holdfast.report.tables.main import main_table
from planted import planted_llama, studied
from written_results import (
    CELLS,
    JUDGES,
    MODEL,
    row,
    verdicts,
    write_cell,
    write_edit,
)


def test_collect_gives_the_rates_of_the_records(results: Path) -> None:
    frame = collect(results, CELLS, JUDGES)
    assert list(frame.columns) == COLUMNS
    expected = {
        "attack_success_rate": (0.6, 20),
        "attack_success_rate[study-l-31]": (0.65, 20),
        "harmful_answered_rate": (7 / 20, 20),  # 8 refused, 5 of the other 12 degenerate
        "degenerate_rate": (0.25, 20),
        "genuine_refusal": (0.4, 20),
        "over_refusal": (0.1, 10),
        "over_refusal_degenerate": (0.1, 10),
        "zero_shot[boolq]": (0.6, 200),
        "perplexity": (30.0, 40),
    }
    for measure, (value, n) in expected.items():
        found = row(frame, "wanda-50", "as-is", measure)
        assert (found.value, found.n) == (pytest.approx(value), n), measure
    found = row(frame, "wanda-50", "as-is", "attack_success_rate")
    # Wilson by hand for 12 of 20: centre (12 + 1.9207)/(20 + 3.8415) = 0.58389, half width 0.19722.
    assert (found.low, found.high) == (pytest.approx(0.38658, abs=1e-4), pytest.approx(0.78119, abs=1e-4))
    found = row(frame, "wanda-50", "as-is", "zero_shot[boolq]")
    # Wilson by hand for 120 of 200: centre 121.9207/203.8415 = 0.59812, half width 0.06728.
    assert (found.low, found.high) == (pytest.approx(0.53084, abs=1e-4), pytest.approx(0.66540, abs=1e-4))


def test_the_rate_is_corrected_by_the_headline_judges_recorded_error(results: Path) -> None:
    frame = collect(results, CELLS, JUDGES)
    found = row(frame, "wanda-50", "as-is", "attack_success_rate_corrected")
    # By hand, of arditi-12 on PyRIT's labels: (0.6 - 33/79) / (1 - 33/79).
    assert (found.value, found.n) == (pytest.approx((0.6 - 33 / 79) / (46 / 79)), 20)
    assert 0 <= found.low < found.value < found.high < 0.8
    # By hand, of study-l-31 on the same: it knows 36 of 39 answers and 49 of 79 refusals.
    other = row(frame, "wanda-50", "as-is", "attack_success_rate_corrected[study-l-31]")
    assert (other.value, other.n) == (pytest.approx((0.65 - 30 / 79) / (36 / 39 - 30 / 79)), 20)
    assert other.low < other.value < other.high
    main = main_table(Numbers(frame, MODEL))
    columns = main.columns[2:6]
    assert columns == ["ASR", "ASR corrected", "ASR by study-l-31", "ASR by study-l-31, corrected"]
    assert main.rows[1][5].startswith(f"{100 * other.value:.0f} % [")
    # It finds every refusal of the dense model, and of people's ones it misses 33 of 79: its error is another here.
    refuted = row(frame, "dense", "as-is", "attack_success_rate_corrected")
    assert math.isnan(refuted.value)
    assert refuted.n == 20
    said = " ".join(compression_findings(Numbers(frame, MODEL)))
    assert "does not carry over: the answers of 5 of 7 cells contradict it" in said
    assert "casts doubt on the corrected ASR of the others" in said


def asked(answers: list[bool | None], **more: Any) -> list[dict[str, Any]]:
    """Verdicts of a model judge on as many prompts."""
    what = {"judge": "guard", "refused": None, "degenerate": False, **more}
    return [{"prompt_id": f"p{i}", "attack_success": said, **what} for i, said in enumerate(answers)]


def test_a_model_judge_has_files_of_its_own_and_what_it_left_open_is_not_counted(results: Path) -> None:
    cell = results / MODEL / "wanda-50/as-is"
    write_jsonl(cell / "verdicts/guard/attack.jsonl", asked([True] * 6 + [False] * 4 + [None] * 10))
    write_jsonl(results / MODEL / "rtn-4/as-is/verdicts/guard/attack.jsonl", asked([None] * 20))
    frame = collect(results, CELLS, ["arditi-12", "guard"])
    assert row(frame, "wanda-50", "as-is", "attack_success_rate").value == 0.6
    by_guard = row(frame, "wanda-50", "as-is", "attack_success_rate[guard]")
    assert (by_guard.value, by_guard.n) == (0.6, 10)
    assert row(frame, "wanda-50", "as-is", "unparsed[guard]").value == 0.5
    assert math.isnan(row(frame, "rtn-4", "as-is", "attack_success_rate[guard]").value)
    unread = row(frame, "rtn-4", "as-is", "unparsed[guard]")
    assert (unread.value, unread.n) == (1, 20)
    assert math.isnan(row(frame, "dense", "as-is", "unparsed[guard]").value)  # not judged yet
    assert "could not be read, in the worst cell: guard 100 %." in main_table(Numbers(frame, MODEL)).note


def test_a_model_judge_as_the_headline_decides_asr_and_the_first_list_refusals(results: Path) -> None:
    for method, answers in (("as-is", [True] * 15 + [False] * 4 + [None]), ("aird", [False] * 19 + [True])):
        folder = results / MODEL / "wanda-50" / method
        write_jsonl(folder / "verdicts/guard/attack.jsonl", asked(answers, score=0.25))
    frame = collect(results, CELLS, ["guard", "arditi-12"])
    assert row(frame, "wanda-50", "as-is", "attack_success_rate").value == pytest.approx(15 / 19)
    assert row(frame, "wanda-50", "as-is", "attack_success_rate[arditi-12]").value == 0.6
    assert row(frame, "wanda-50", "as-is", "genuine_refusal").value == 0.4
    assert row(frame, "wanda-50", "as-is", "attack_score[guard]").value == 0.25
    corrected = row(frame, "wanda-50", "as-is", "attack_success_rate_corrected")
    assert math.isnan(corrected.value)  # there are no labels of guard
    assert corrected.n is pd.NA
    by_list = row(frame, "wanda-50", "as-is", "attack_success_rate_corrected[arditi-12]")
    assert by_list.value == pytest.approx((0.6 - 33 / 79) / (46 / 79))
    assert "attack_success_rate_corrected[guard]" not in set(frame["measure"])
    assert "ASR by guard, corrected" not in main_table(Numbers(frame, MODEL)).columns
    p = row(frame, "wanda-50", "aird", "mcnemar_p")
    assert (p.value, p.n) == (pytest.approx(2 * 0.5**15), 19)  # the unread prompt is in neither column


def test_a_degenerate_refusal_is_not_genuine(results: Path) -> None:
    write_jsonl(results / MODEL / "dense/as-is/verdicts/attack.jsonl", verdicts(20, 5, 20))
    frame = collect(results, CELLS[:1], ["arditi-12"])
    assert row(frame, "dense", "as-is", "attack_success_rate").value == 0
    assert row(frame, "dense", "as-is", "genuine_refusal").value == 0.75
    assert row(frame, "dense", "as-is", "harmful_answered_rate").value == 0


def test_collect_pairs_edits_with_as_is_and_with_their_control(results: Path) -> None:
    frame = collect(results, CELLS, JUDGES)
    expected = {
        "refusal_gained": 0.5,
        "refusal_lost": 0.0,
        "mcnemar_p": 2 / 2**10,
        "mcnemar_p[random-edit]": 2 / 2**11,
        "density": 0.51,
        "edit_layer": 16,
        "edit_alpha": 6,
        "edit_random": 0,
    }
    for measure, value in expected.items():
        assert row(frame, "wanda-50", "aird", measure).value == pytest.approx(value), measure
    assert row(frame, "wanda-50", "aird", "mcnemar_p").n == 20
    control = frame[frame["method"] == "random-edit"]
    assert not control["measure"].str.startswith("mcnemar_p[").any()
    assert row(frame, "wanda-50", "random-edit", "refusal_lost").value == pytest.approx(0.05)


def test_the_share_of_lost_refusal_that_is_recovered(results: Path) -> None:
    """20 prompts refused by the dense model, 8 as-is, 18 with the edit and 7 with its control."""
    frame = collect(results, CELLS, JUDGES)
    edit, control = (row(frame, "wanda-50", k, "refusal_recovered") for k in ("aird", "random-edit"))
    assert (edit.value, edit.n) == (pytest.approx(10 / 12), 20)
    assert 0.4 < edit.low < edit.value < edit.high == 1
    assert control.value == pytest.approx(-1 / 12)
    few = row(frame, "rtn-4", "aird", "refusal_recovered")  # 3 lost
    assert math.isnan(few.value)
    write_cell(results / MODEL / "dense/as-is", refused=8, over=1)
    none = row(collect(results, CELLS, JUDGES), "wanda-50", "aird", "refusal_recovered")
    assert math.isnan(none.value)


def test_collect_puts_the_mechanism_on_the_as_is_rows(results: Path) -> None:
    frame = collect(results, CELLS, JUDGES)
    expected = {
        "density": 0.5,
        "bits_per_weight": 32,
        "pruned": 1,
        "quantized": 0,
        "cosine_to_dense": 0.8,
        "cosine_null_split_half": 0.97,
        "cosine_null_random": 0,
        "direction_explained": 0.64,
        "cosine_at_layer[1]": 0.99,
        "cosine_at_layer[2]": 0.8,
        "cosine_at_layer_null_shuffled[2]": 0.12,
        "cosine_at_layer_p[2]": 0.004,
        "source_layer": 18,
        "source_position": -1,
        "direction_usable": 1,
        "refusal_harmful[baseline]": 0.9,
        "refusal_harmful[ablate]": 0.05,
        "refusal_harmful[ablate-dense]": 0.15,
        "refusal_harmful[ablate-random]": 0.85,
        "refusal_harmless[baseline]": 0.05,
        "refusal_harmless[add]": 0.95,
        "refusal_harmless[add-random]": 0.1,
        "refusal_harmless[add-dense-random]": 0.15,
        "score_auroc": 0.9,
        "score_check_auroc": 0.85,
        "score_check_harmful": 1,
        "score_valid": 1,
        "transfer_bypass[baseline]": 2,
        "transfer_bypass[own]": -8,
        "transfer_bypass[dense]": -6,
        "transfer_bypass[dense-own]": 2,
        "transfer_bypass[null]": 0.25,
        "transfer_bypass[null-shuffled]": 0.3,
        "transfer_bypass[null-split-half]": -7.5,
        "transfer_bypass_p": 0.2,
        "transfer_bypass_p_shuffled": 0.1,
        "transfer_back_induce[compressed]": 0.5,
        "transfer_back_induce_p": 0.001,
        "transfer_back_induce_p_shuffled": 0.03,
    }
    for measure, value in expected.items():
        assert row(frame, "wanda-50", "as-is", measure).value == pytest.approx(value), measure
    of_dense = frame[frame["compression"] == "dense"]["measure"]
    assert not of_dense.str.startswith(("cosine", "transfer")).any()
    assert not of_dense.str.contains("-dense").any()  # its own direction is that one
    assert row(frame, "wanda-50", "as-is", "cosine_to_dense").low == pytest.approx(0.75)
    share = row(frame, "wanda-50", "as-is", "direction_explained")
    assert (share.n, share.low, share.high) == (40, pytest.approx(0.75**2), pytest.approx(0.85**2))
    band = row(frame, "wanda-50", "as-is", "cosine_at_layer_null_split_half[1]")
    assert (band.low, band.high) == (pytest.approx(0.95), pytest.approx(0.99))
    assert Numbers(frame, MODEL).layers("wanda-50") == [1, 2]  # before the first block nothing differs
    assert not frame[frame["method"] == "aird"]["measure"].isin(["source_layer", "pruned"]).any()


def test_a_damaged_table_of_cosines_is_one_line(results: Path) -> None:
    (results / MODEL / "wanda-50/comparison.csv").write_text("position,layer,cosine\n-1,1,0.5\n")
    with pytest.raises(HoldfastError, match="not a comparison's table"):
        collect(results, CELLS, JUDGES)


BAND = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 20}


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("wanda-50/comparison.json", [], "not a JSON object"),
        ("wanda-50/comparison.json", {}, "has no cosine"),
        ("wanda-50/comparison.json", {"cosine": 0.5}, "cosine does not fit"),
        ("wanda-50/comparison.json", {"cosine": BAND, "explained": 0.25}, "explained does not fit"),
        ("wanda-50/comparison.json", {"cosine": BAND, "dense": {"layer": 2}}, "has no dense.position"),
        ("wanda-50/transfer.json", {"dense_in_compressed": 1}, "dense_in_compressed does not fit"),
        ("wanda-50/transfer.json", {"dense_in_compressed": {"bypass": {}}},
         "has no dense_in_compressed.bypass.baseline"),
        ("wanda-50/aird/checkpoint/edit.json", {"layers": 16}, "layers does not fit"),
        ("wanda-50/aird/checkpoint/edit.json", {"validation": {"before": None, "tries": []}},
         "validation.before does not fit"),
        ("wanda-50/aird/checkpoint/edit.json", {"trace": [], "leaderboard": [{}]}, "has no leaderboard.0.variant"),
        ("wanda-50/aird/checkpoint/provenance.json", {"density": "half"}, "density does not fit"),
        ("wanda-50/direction/direction.json", {"layer": "two"}, "layer does not fit"),
        ("wanda-50/direction/direction.json", {"score_check": {"phrases": {"auroc": 0.9}}},
         "score_check.phrases.auroc does not fit"),
        ("wanda-50/as-is/ability/zero_shot.json", {"boolq": {"value": 0.5}}, "has no boolq.n"),
        ("wanda-50/as-is/ability/perplexity.json", {"perplexity": "low"}, "perplexity does not fit"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_one_line(results: Path, file: str, content: Any, said: str) -> None:
    write_json(results / MODEL / file, content)
    with pytest.raises(HoldfastError) as told:
        collect(results, CELLS, JUDGES)
    assert told.value.where == str(results / MODEL / file)
    assert told.value.what.startswith(said)
    assert told.value.remedy == "delete it and run its stage again"


def test_missing_cells_are_marked_and_never_dropped(results: Path, tmp_path: Path) -> None:
    cells = [*CELLS, (MODEL, "gptq-4", "as-is"), (MODEL, "gptq-4", "aird"), (MODEL, "gptq-4", "random-edit")]
    frame = collect(results, cells, JUDGES)
    complete = frame[(frame["compression"] == "rtn-4") & (frame["method"] == "as-is")]
    missing = frame[(frame["compression"] == "gptq-4") & (frame["method"] == "as-is")]
    # How many layers a model has that was not compared is not known.
    by_layer = complete["measure"].str.startswith("cosine_at_layer")
    assert list(missing["measure"]) == list(complete[~by_layer]["measure"])
    assert missing[["value", "n", "low", "high"]].isna().all(axis=None)
    write_tables(frame, tmp_path, JUDGES)
    line = next(
        x for x in (tmp_path / "refusal.md").read_text().splitlines() if x.startswith("| gptq-4 | as-is")
    )
    assert line == "| gptq-4 | as-is | " + " | ".join([MISSING] * 10) + " |"
    # Which methods are controls is known from the other compressions.
    assert (("gptq-4", "random-edit")) not in Numbers(frame, MODEL).repairs()
    assert (
        "Missing cells: gptq-4/as-is, gptq-4/aird, gptq-4/random-edit."
        in (tmp_path / "refusal.md").read_text()
    )
    write_figures(frame, tmp_path)
    for name in ("asr", "layers"):
        assert "missing" in (tmp_path / f"{name}.svg").read_text()


@pytest.mark.parametrize(
    ("records", "words"),
    [
        (verdicts(3, 0, 19), "other prompts"),
        (verdicts(3, 0, 20, "other"), "no verdicts of judge arditi-12"),
        (verdicts(3, 0, 20) + verdicts(1, 0, 1), "two verdicts"),
        (
            [{"prompt_id": "p0", "judge": "arditi-12", "refused": "yes", "degenerate": False}],
            "a verdict lacks",
        ),
    ],
)
def test_contradicting_verdicts_are_errors(results: Path, records: list[dict[str, Any]], words: str) -> None:
    write_jsonl(results / MODEL / "rtn-4/aird/verdicts/attack.jsonl", records)
    with pytest.raises(HoldfastError, match=words):
        collect(results, CELLS, ["arditi-12"])


def test_missing_value_is_nan_not_zero(results: Path) -> None:
    (results / MODEL / "rtn-4/as-is/ability/perplexity.json").unlink()
    found = row(collect(results, CELLS, JUDGES), "rtn-4", "as-is", "perplexity")
    assert math.isnan(found.value)
    assert found.n is pd.NA


def test_several_random_directions_do_not_narrow_the_interval(results: Path) -> None:
    folder = results / MODEL / "rtn-4"
    path = folder / "mediation/verdicts.jsonl"
    once = row(collect(results, CELLS, JUDGES), "rtn-4", "as-is", "refusal_harmful[ablate-random]")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    write_jsonl(path, records + [r for r in records if r["intervention"] == "ablate-random"])
    twice = row(collect(results, CELLS, JUDGES), "rtn-4", "as-is", "refusal_harmful[ablate-random]")
    assert (twice.value, twice.n, twice.low, twice.high) == (once.value, 20, once.low, once.high)


def test_an_edit_is_compared_with_the_control_matched_to_it(results: Path) -> None:
    for compression in ("wanda-50", "rtn-4"):
        folder = results / MODEL / compression
        write_cell(folder / "amplify", refused=9, over=1)
        write_edit(folder / "amplify", "dense")
        write_edit(folder / "random-edit", "random", matched_to="aird")
    numbers = Numbers(
        collect(results, [*CELLS, *((MODEL, c, "amplify") for c in ("wanda-50", "rtn-4"))], JUDGES), MODEL
    )
    assert numbers.controls("wanda-50", "aird") == ["random-edit"]
    assert numbers.controls("wanda-50", "amplify") == []
    found = " ".join(repair_findings(numbers))
    assert "AIRD (amplify) has no random control to compare with in: wanda-50, rtn-4." in found


def test_an_unmatched_random_edit_is_the_control_of_every_edit(results: Path, tmp_path: Path) -> None:
    """As the stage records it, which writes the keys that were not given as null."""
    model, _ = planted_llama(tmp_path / "model")
    made = studied(model, tmp_path / "study")
    edit_checkpoint(
        model, tmp_path / "edited", dense=model, direction_dir=made["direction"],
        own_direction_dir=made["direction"], harmful=made["harmful_validation"],
        harmless=made["harmless_validation"], harmful_train=made["harmful_train"],
        harmless_train=made["harmless_train"],
        recipe=checked("edit", '{"direction": "random", "variant": "amplify", "layer": 3, "alpha": 2}'),
    )  # fmt: skip
    folder = results / MODEL / "wanda-50"
    write_edit(folder / "random-edit", "random", matched_to="aird")
    for method, refused, direction in (("amplify", 18, "dense"), ("random-whole", 17, "random")):
        write_cell(folder / method, refused=refused, over=1)
        write_edit(folder / method, direction)
    for name in ("edit.json", "provenance.json"):
        shutil.copy(tmp_path / "edited" / name, folder / "random-whole/checkpoint" / name)
    added = [(MODEL, "wanda-50", method) for method in ("amplify", "random-whole")]
    numbers = Numbers(collect(results, [*CELLS, *added], JUDGES), MODEL)
    assert numbers.controls("wanda-50", "aird") == ["random-edit", "random-whole"]
    assert numbers.controls("wanda-50", "amplify") == ["random-whole"]
    found = {r.method: r for r in repairs(numbers) if r.compression == "wanda-50"}
    assert found.keys() == {"aird", "amplify"}
    # Far above its matched control, no better than the search along a random direction: the harder one counts.
    assert found["aird"].p < 0.05 < found["aird"].p_control
    assert not found["aird"].lowers


def test_every_measure_is_described(results: Path) -> None:
    described = {name.partition("[")[0] for name in MEASURES}
    measured = set(collect(results, CELLS, JUDGES)["measure"])
    assert {name.partition("[")[0] for name in measured} <= described
