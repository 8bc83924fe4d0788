"""Tables, figures and page of a study that a run left undone: missing is marked, out of date is not read."""

import math
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from holdfast.errors import HoldfastError
from holdfast.files import write_json
from holdfast.report.claims import claims
from holdfast.report.collect import collect
from holdfast.report.figures import write_figures
from holdfast.report.numbers import Numbers
from holdfast.report.page import write_page
from holdfast.report.tables import read_tables, terminal_tables, write_tables
from holdfast.report.tables.main import main_table
from holdfast.report.undone import Undone, read_undone, without
from written_results import CELLS, JUDGES, MODEL, row, write_results, write_search

CELL = (MODEL, "wanda-50", "aird")
SENTENCE = "wanda-50/aird (edit failed)"


def job(stage: str, *files: str, failed: str | None = "edit", cell: tuple[str, ...] = CELL) -> dict[str, Any]:
    below = [f"{'/'.join(cell)}/{file}" for file in files]
    return {"stage": stage, "cell": list(cell), "files": below, "failed": [failed] if failed else []}


FAILED = [
    job("edit", "checkpoint/edit.json", "checkpoint/provenance.json"),
    job("generate", "generations/attack.jsonl", "generations/over_refusal.jsonl"),
    job("judge", "verdicts/attack.jsonl", "verdicts/over_refusal.jsonl"),
    job("ability", "ability/zero_shot.json", "ability/perplexity.json"),
]


def undone(tmp_path: Path, jobs: list[dict[str, Any]]) -> Undone:
    write_json(tmp_path / "undone.json", jobs)
    return read_undone(tmp_path / "undone.json")


@pytest.fixture
def frame(results: Path, tmp_path: Path) -> pd.DataFrame:
    return collect(results, CELLS, JUDGES, undone=undone(tmp_path, FAILED))


def test_the_missing_cell_has_a_row_with_the_stage_that_failed(frame: pd.DataFrame) -> None:
    assert row(frame, "wanda-50", "aird", "missing[edit]")["value"] == 4
    assert (frame["measure"].str.startswith("missing[")).sum() == 1


def test_what_may_be_out_of_date_is_not_read(frame: pd.DataFrame, results: Path) -> None:
    assert (results / "tiny/wanda-50/aird/verdicts/attack.jsonl").is_file()
    for measure in ("attack_success_rate", "perplexity", "density", "edit_layer", "mcnemar_p"):
        assert math.isnan(row(frame, "wanda-50", "aird", measure)["value"])
    whole = collect(results, CELLS, JUDGES)
    others = frame[(frame["compression"] != "wanda-50") | (frame["method"] == "as-is")]
    same = whole[(whole["compression"] != "wanda-50") | (whole["method"] == "as-is")]
    pd.testing.assert_frame_equal(others.reset_index(drop=True), same.reset_index(drop=True))


def test_a_broken_file_of_another_cell_stays_an_error(results: Path, tmp_path: Path) -> None:
    (results / "tiny/rtn-4/aird/verdicts/attack.jsonl").write_text("{")
    with pytest.raises(HoldfastError, match=r"rtn-4/aird/verdicts/attack\.jsonl:1: not JSON"):
        collect(results, CELLS, JUDGES, undone=undone(tmp_path, FAILED))


def test_a_broken_file_of_the_missing_cell_does_not_matter(results: Path, tmp_path: Path) -> None:
    (results / "tiny/wanda-50/aird/verdicts/attack.jsonl").write_text("{")
    collect(results, CELLS, JUDGES, undone=undone(tmp_path, FAILED))


def test_the_view_holds_all_but_the_hidden(results: Path) -> None:
    files = {p.relative_to(results) for p in results.rglob("*") if p.is_file()}
    hidden = [Path("tiny/wanda-50/aird/verdicts/attack.jsonl"), Path("tiny/rtn-4/direction"), Path("no/such")]
    with without(results, hidden) as view:
        shown = {file for file in files if (view / file).is_file()}
        gone = files - shown
        assert (view / "tiny/wanda-50/as-is/verdicts/attack.jsonl").read_text()
    assert gone == {hidden[0], Path("tiny/rtn-4/direction/direction.json")}
    assert {p.relative_to(results) for p in results.rglob("*") if p.is_file()} == files


def test_claims_are_not_decided_over_missing_cells_and_say_so(frame: pd.DataFrame, results: Path) -> None:
    before = {c.name: c.verdict for c in claims(Numbers(collect(results, CELLS, JUDGES), MODEL))}
    assert before["L2"] == "supported"
    for claim in claims(Numbers(frame, MODEL)):
        assert claim.verdict == "not decided"
        assert claim.evidence.endswith(f"missing: {SENTENCE}")


def test_a_counterexample_stays_one(results: Path, tmp_path: Path) -> None:
    cell = (MODEL, "rtn-4", "aird")
    frame = collect(results, CELLS, JUDGES, undone=undone(tmp_path, [job("ability", cell=cell)]))
    worse = frame.copy()
    at = (worse["compression"] == "wanda-50") & (worse["measure"] == "refusal_harmful[ablate]")
    worse.loc[at, ["value", "low", "high"]] = [0.9, 0.8, 0.95]
    decided = {c.name: c for c in claims(Numbers(worse, MODEL))}
    assert decided["L1"].verdict == "contradicted"
    assert "missing: rtn-4/aird (edit failed)" in decided["L1"].evidence


def test_tables_page_and_terminal_say_what_is_missing(
    frame: pd.DataFrame, results: Path, tmp_path: Path
) -> None:
    write_tables(frame, tmp_path / "tables", JUDGES)
    back = read_tables(tmp_path / "tables")
    write_figures(back, tmp_path / "figures")
    write_page(tmp_path / "page.html", results, CELLS, JUDGES, "study: demo", back)
    shown = terminal_tables(back)
    said = f"1 of 7 cells lack results: {SENTENCE}."
    assert said in " ".join(shown.split())
    assert [line.split()[2] for line in shown.splitlines() if line.startswith("wanda-50     aird")] == [
        "missing"
    ]
    assert "adjusted by Holm over that alone" in " ".join(shown.split())
    markdown, page = (tmp_path / "tables/refusal.md").read_text(), (tmp_path / "page.html").read_text()
    assert "| wanda-50 | aird (missing: edit) | – |" in markdown
    assert f'<p class="warning">tiny: Not finished: {said}' in page
    samples = page[page.index("<h3>tiny / wanda-50 / aird</h3>") :]
    assert samples.split("<h3>")[1].count("<details>") == 0
    assert "This cell is missing." in samples.split("<h3>")[1]


def test_a_search_that_is_missing_has_a_row_in_the_leaderboard(results: Path, tmp_path: Path) -> None:
    for compression in ("wanda-50", "rtn-4"):
        write_search(results / "tiny" / compression / "aird")
    frame = collect(results, CELLS, JUDGES, undone=undone(tmp_path, FAILED))
    write_tables(frame, tmp_path / "tables", JUDGES)
    board = pd.read_csv(tmp_path / "tables/leaderboard.csv")
    missing = board[board["compression"] == "wanda-50"]
    assert missing["variant"].tolist() == ["missing"]
    assert missing["refusal_score"].isna().all()
    assert "centred" in board[board["compression"] == "rtn-4"]["variant"].tolist()


def test_a_stopped_run_names_no_stage(results: Path, tmp_path: Path) -> None:
    frame = collect(
        results,
        CELLS,
        JUDGES,
        undone=undone(tmp_path, [job("judge", "verdicts/attack.jsonl", failed=None)]),
    )
    assert row(frame, "wanda-50", "aird", "missing[stopped]")["value"] == 1
    assert "wanda-50/aird (the run was stopped)" in main_table(Numbers(frame, MODEL)).findings[0]


def test_nothing_undone_changes_nothing(results: Path, tmp_path: Path) -> None:
    frame = collect(results, CELLS, JUDGES, undone=undone(tmp_path, []))
    pd.testing.assert_frame_equal(frame, collect(results, CELLS, JUDGES))
    assert not any("Not finished" in f for f in main_table(Numbers(frame, MODEL)).findings)


def test_a_study_of_which_nothing_is_there_has_tables_all_the_same(tmp_path: Path) -> None:
    results = write_results(tmp_path)
    shutil.rmtree(results / MODEL)
    jobs = [job("generate", failed="fetch", cell=cell) for cell in CELLS]
    frame = collect(results, CELLS, JUDGES, undone=undone(tmp_path, jobs))
    write_tables(frame, tmp_path / "tables", JUDGES)
    write_figures(read_tables(tmp_path / "tables"), tmp_path / "figures")
    assert (frame["measure"] == "missing[fetch]").sum() == 7


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ({}, "not a list of jobs"),
        ([5], "not a JSON object"),
        ([{"stage": "edit"}], "has no cell"),
        ([{**FAILED[0], "cell": ["tiny"]}], "cell does not fit"),
        ([{**FAILED[0], "files": [""]}], r"files\.0 does not fit"),
    ],
)
def test_another_file_is_told_in_one_line(tmp_path: Path, written: Any, told: str) -> None:
    with pytest.raises(HoldfastError, match=told):
        undone(tmp_path, written)
