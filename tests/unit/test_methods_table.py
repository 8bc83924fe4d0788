"""AIRD beside its rivals: what they are compared by, what they cost, and that no claim is about them."""

from pathlib import Path

import pandas as pd
import pytest
from holdfast.files import write_json
from holdfast.report.claims import claims
from holdfast.report.collect import MEASURES, collect
from holdfast.report.figures import write_figures
from holdfast.report.findings import method_findings, repair_findings, unbeaten
from holdfast.report.numbers import Numbers
from holdfast.report.repairs import beside_as_is, beside_controls, repairs
from holdfast.report.tables.methods import methods_table
from holdfast.report.wording import byte_count
from written_results import CELLS, JUDGES, MODEL, row, write_cell

STAGES = {
    "aird": "edit",
    "random-edit": "edit",
    "prompted": "instruct",
    "steered": "steer",
    "random-steer": "steer",
}
RIVALS = [(MODEL, c, k) for c in ("wanda-50", "rtn-4") for k in ("prompted", "steered", "random-steer")]


@pytest.fixture
def rivals(results: Path) -> Path:
    """The known results with a system prompt and steering, with its control, in both compressions."""
    for compression in ("wanda-50", "rtn-4"):
        for method, refused, over in (("prompted", 8, 0), ("steered", 20, 5), ("random-steer", 9, 1)):
            cell = results / MODEL / compression / method
            write_cell(cell, refused=refused, over=over)
            about = {"seconds": 12.4, "added_bytes": 2304, "density": 0.5, "bits_per_weight": 32}
            if method != "prompted":
                direction = "random" if method == "random-steer" else "dense"
                write_json(
                    cell / "checkpoint/steer.json", {"direction": direction, "layer": 20, "alpha": 0.5}
                )
            if method == "random-steer":
                about["recipe"] = {"matched_to": "steered"}
            write_json(cell / "checkpoint/provenance.json", about)
    return results


def collected(results: Path) -> pd.DataFrame:
    return collect(results, [*CELLS, *RIVALS], JUDGES, STAGES)


def test_rivals_are_collected_with_their_costs_and_their_own_controls(rivals: Path) -> None:
    frame = collected(rivals)
    expected = {
        "method_seconds": 12.4,
        "method_bytes": 2304,
        "steering_layer": 20,
        "steering_alpha": 0.5,
        "steering_random": 0,
        "refusal_gained": 0.6,
        "mcnemar_p": 2 / 2**12,
        "mcnemar_p[random-steer]": 2 / 2**11,
    }
    for measure, value in expected.items():
        assert row(frame, "wanda-50", "steered", measure).value == pytest.approx(value), measure
    of_rivals = frame[frame["method"].isin(["prompted", "steered", "random-steer"])]["measure"]
    assert not of_rivals.str.startswith("edit_").any()
    assert not of_rivals.isin(["mcnemar_p[random-edit]"]).any()
    assert not frame[frame["method"] == "prompted"]["measure"].str.startswith("steering_").any()
    described = {name.partition("[")[0] for name in MEASURES}
    assert {name.partition("[")[0] for name in frame["measure"]} <= described


def test_what_learns_is_compared_with_its_own_control(results: Path) -> None:
    recipes = {
        "again": {"recalibrate": "refusals", "share": 0.5},
        "again-control": {"recalibrate": "answers", "share": 0.5},
        "again-less": {"recalibrate": "refusals", "share": 0.25},
        "tuned": {"tune": "lora", "data": "refusals"},
        "tuned-control": {"tune": "lora", "data": "answers"},
    }
    for method, recipe in recipes.items():
        cell = results / MODEL / "wanda-50" / method
        write_cell(cell, refused=9 if "control" in method else 20, over=1)
        about = {"seconds": 90.0, "bytes": 4000, "recipe": recipe}
        write_json(
            cell / "checkpoint/provenance.json", about | ({"added_bytes": 3000} if "tune" in recipe else {})
        )
    stages = STAGES | {k: "tune" if "tune" in recipe else "recalibrate" for k, recipe in recipes.items()}
    frame = collect(results, [*CELLS, *((MODEL, "wanda-50", k) for k in recipes)], JUDGES, stages)
    numbers = Numbers(frame, MODEL)
    assert numbers.control_methods == {"random-edit", "again-control", "tuned-control"}
    assert numbers.controls("wanda-50", "again") == ["again-control"]
    assert numbers.controls("wanda-50", "again-less") == []
    assert numbers.controls("wanda-50", "tuned") == ["tuned-control"]
    assert row(frame, "wanda-50", "again", "mcnemar_p[again-control]").value == pytest.approx(2 / 2**11)
    # A new calibration is a checkpoint of its own, a tune a copy with other matrices.
    assert row(frame, "wanda-50", "again", "method_bytes").value == 4000
    assert row(frame, "wanda-50", "tuned", "method_bytes").value == 3000
    assert {name.partition("[")[0] for name in frame["measure"]} <= {m.partition("[")[0] for m in MEASURES}


def test_claims_and_repairs_are_about_edits_only(rivals: Path) -> None:
    with_rivals, without = Numbers(collected(rivals), MODEL), Numbers(collect(rivals, CELLS, JUDGES), MODEL)
    assert with_rivals.repairs() == without.repairs() == [("wanda-50", "aird"), ("rtn-4", "aird")]
    assert claims(with_rivals) == claims(without)
    assert repair_findings(with_rivals) == repair_findings(without)


def test_the_table_has_every_method_beside_as_is(rivals: Path) -> None:
    table = methods_table(Numbers(collected(rivals), MODEL))
    assert table is not None
    methods = ["as-is", "aird", "random-edit", "prompted", "steered", "random-steer"]
    assert [r[:2] for r in table.rows if r[0] == "wanda-50"] == [["wanda-50", k] for k in methods]
    shown = dict(zip(table.columns, table.rows[methods.index("steered")], strict=True))
    assert shown["Genuine refusal"].startswith("100 % [")
    assert shown["Over-refusal"].startswith("50 % [")
    assert (shown["Seconds"], shown["Bytes added"], shown["Bits a weight / density"]) == (
        "12",
        "2.3 kB",
        "32 / 0.50",
    )
    as_is = dict(zip(table.columns, table.rows[0], strict=True))
    assert shown["p against its control"] == "0.002"  # 11 of 11 flips one way, of two rows
    assert as_is["p against as-is"] == as_is["Seconds"] == as_is["Bytes added"] == "–"


def test_holm_runs_over_edits_and_over_rivals_and_not_over_controls(rivals: Path) -> None:
    numbers = Numbers(collected(rivals), MODEL)
    p = beside_as_is(numbers)
    assert {k for _, k in p} == {"aird", "prompted", "steered"}
    # Four rows of rivals: their smallest p, 12 of 12 flips one way, is multiplied by four; of two edits' by two.
    assert p["wanda-50", "steered"] == pytest.approx(4 * 2 / 2**12)
    assert p["wanda-50", "aird"] == pytest.approx(2 * 2 / 2**10)
    # An edit has one p in all tables.
    assert {c: v for c, v in p.items() if c[1] == "aird"} == {
        (r.compression, r.method): r.p for r in repairs(numbers)
    }


def test_a_method_no_better_than_its_control_is_told(rivals: Path) -> None:
    """A random vector that refuses as much takes the claim away."""
    write_cell(rivals / MODEL / "wanda-50/random-steer", refused=20, over=5)
    numbers = Numbers(collected(rivals), MODEL)
    assert beside_controls(numbers)["wanda-50", "steered"] == 1
    found = " ".join(method_findings(numbers))
    assert "against as-is): wanda-50, beyond its control in 0." in found


def test_the_frontier_is_told_and_has_no_control(rivals: Path) -> None:
    numbers = Numbers(collected(rivals), MODEL)
    # as-is refuses 8 of 20 and 1 of 10 harmless ones: the prompt refuses as many, and no harmless one.
    assert unbeaten(numbers, "wanda-50") == ["aird", "prompted", "steered"]
    found = " ".join(method_findings(numbers))
    assert "against as-is): wanda-50, beyond its control in 1: wanda-50" in found
    assert "steered lowers ASR in 1 of 2 compressions" in found
    assert "prompted lowers ASR in 0 of 2 compressions" in found
    assert "it raises it in rtn-4." in found
    assert "wanda-50: aird, prompted, steered" in found
    assert "AIRD" not in found


def test_the_frontier_figure_tells_rivals_from_edits(rivals: Path, tmp_path: Path) -> None:
    write_figures(collected(rivals), tmp_path)
    assert "another method" in (tmp_path / "frontier.svg").read_text()
    write_figures(collect(rivals, CELLS, JUDGES), tmp_path)
    assert "another method" not in (tmp_path / "frontier.svg").read_text()


def test_a_study_that_does_nothing_has_no_such_table(results: Path) -> None:
    assert methods_table(Numbers(collect(results, CELLS[:2], JUDGES), MODEL)) is None


def test_bytes_in_powers_of_a_thousand() -> None:
    assert [byte_count(n) for n in (0, 999, 2304, 56_400, 999_999, 2.25e9)] == [
        *("0 B", "999 B", "2.3 kB", "56 kB", "1.0 MB", "2.2 GB")
    ]
