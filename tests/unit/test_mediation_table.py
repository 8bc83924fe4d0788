"""Interventions tested in pairs: p-values by hand, several random directions, Holm, what is missing."""

import math
from pathlib import Path
from typing import Any

import pytest
from holdfast.errors import HoldfastError
from holdfast.files import read_jsonl, write_jsonl
from holdfast.report.collect import collect
from holdfast.report.mediations import Mediation, mediations
from holdfast.report.numbers import Numbers
from holdfast.report.tables.mediation import mediation_table
from holdfast.statistics import mcnemar_exact
from written_results import CELLS, JUDGES, MODEL, row


def write(results: Path, compression: str, tries: dict[str, list[set[int]]]) -> Path:
    """Which of 20 harmful prompts are refused under each intervention, in each of its tries."""
    path = results / MODEL / compression / "mediation/verdicts.jsonl"
    said: list[dict[str, Any]] = [
        {"intervention": name, "set": "harmful", "prompt_id": f"p{i}", "refused": i in refused}
        for name, of_name in tries.items()
        for refused in of_name
        for i in range(20)
    ]
    write_jsonl(path, [record | {"degenerate": False} for record in said])
    return path


def of(results: Path, measure: str) -> Any:
    return row(collect(results, CELLS, JUDGES), "wanda-50", "as-is", measure)


def test_an_intervention_is_paired_with_none_by_prompt(results: Path) -> None:
    # As many refusals before and after, of other prompts: the rates are equal, and 6 and 6 changed.
    write(results, "wanda-50", {"baseline": [set(range(12))], "ablate": [set(range(6, 18))]})
    found = of(results, "mediation_p[ablate]")
    assert (found.value, found.n) == (1, 20)
    write(results, "wanda-50", {"baseline": [set(range(12))], "ablate": [set(range(3, 4))]})
    assert of(results, "mediation_p[ablate]").value == pytest.approx(2 * 0.5**11)
    assert math.isnan(of(results, "mediation_p_random[ablate]").value)  # no random direction was tried
    assert math.isnan(of(results, "mediation_p[ablate-dense]").value)


def test_a_degenerate_answer_is_no_refusal(results: Path) -> None:
    path = write(results, "wanda-50", {"baseline": [set(range(12))], "ablate": [set(range(12))]})
    broken = [
        record | {"degenerate": record["intervention"] == "ablate" and record["prompt_id"] < "p2"}
        for record in read_jsonl(path)
    ]
    write_jsonl(path, broken)  # p0, p1, p10, p11 under ablation, and p12 to p19, which are not refused
    assert of(results, "refusal_harmful[ablate]").value == pytest.approx(8 / 20)
    assert of(results, "refusal_harmful[baseline]").value == pytest.approx(12 / 20)
    assert of(results, "mediation_p[ablate]").value == pytest.approx(mcnemar_exact(4, 0))


def test_of_several_random_directions_the_weakest_comparison_counts(results: Path) -> None:
    own, far, near = set(range(2)), set(range(16)), set(range(9))
    tries = {"baseline": [far], "ablate": [own]}
    write(results, "wanda-50", tries | {"ablate-random": [far, near]})
    assert of(results, "mediation_p_random[ablate]").value == pytest.approx(mcnemar_exact(7, 0))
    assert of(results, "refusal_harmful[ablate-random]").value == pytest.approx((16 + 9) / 2 / 20)
    # One random direction leaves less refused than the direction itself: it differs from them in no one way.
    write(results, "wanda-50", tries | {"ablate": [near], "ablate-random": [far, own]})
    assert of(results, "mediation_p_random[ablate]").value == 1


@pytest.mark.parametrize("fault", ["another prompt", "a try less"])
def test_interventions_on_other_prompts_are_an_error(results: Path, fault: str) -> None:
    everything = set(range(20))
    path = write(
        results, "wanda-50", {"baseline": [everything], "ablate": [set()], "ablate-random": [everything] * 2}
    )
    records = read_jsonl(path)
    if fault == "another prompt":
        records[0]["prompt_id"] = "other"
    else:
        records.pop()
    write_jsonl(path, records)
    with pytest.raises(HoldfastError, match="interventions were not tried on the same prompts"):
        collect(results, CELLS, JUDGES)


def test_holm_runs_over_the_rows_of_a_model(results: Path) -> None:
    def found() -> dict[tuple[str, str], Mediation]:
        rows = mediations(Numbers(collect(results, CELLS, JUDGES), MODEL))
        return {(it.compression, it.intervention): it for it in rows}

    rows = found()
    assert len(rows) == 2 + 2 * 4  # the dense model has no other's direction
    assert ("dense", "ablate-dense") not in rows
    # The weakest of ten: adding the dense model's makes 14 of 20 more refused than none, 12 than a random one as long.
    assert rows["wanda-50", "add-dense"].p == pytest.approx(2 * 0.5**14 * 2)
    assert rows["wanda-50", "add-dense"].p_random == pytest.approx(2 * 0.5**12 * 2)
    assert all(it.acts for it in rows.values())
    write(
        results,
        "wanda-50",
        {"baseline": [set(range(6))], "ablate": [set()], "ablate-random": [set(range(6))]},
    )
    row = found()["wanda-50", "ablate"]
    assert row.p == pytest.approx(2 * 0.5**6)  # the largest of seven
    assert row.acts
    raised = {"baseline": [set()], "ablate": [set(range(20))], "ablate-random": [set()]}
    write(results, "wanda-50", raised)
    row = found()["wanda-50", "ablate"]
    assert row.p < 0.001
    assert not row.acts  # refusal rose


def test_the_table_marks_what_is_missing_and_says_where_directions_act(results: Path) -> None:
    (results / MODEL / "rtn-4/mediation/verdicts.jsonl").unlink()
    table = mediation_table(Numbers(collect(results, CELLS, JUDGES), MODEL))
    assert [r[:2] for r in table.rows if r[0] == "dense"] == [
        ["dense", "own direction ablated"],
        ["dense", "own direction added"],
    ]
    missing = [r for r in table.rows if r[0] == "rtn-4"]
    assert len(missing) == 4
    assert all(r[3:] == ["–"] * 5 for r in missing)
    (said,) = table.findings
    assert "ablating the own lowers it in 2 of 2: dense, wanda-50" in said
    assert "ablating the dense model's lowers it in 1 of 1: wanda-50" in said
    assert "adding the own raises it in 2 of 2: dense, wanda-50" in said
    for compression in ("dense", "wanda-50"):
        (results / MODEL / compression / "mediation/verdicts.jsonl").unlink()
    assert mediation_table(Numbers(collect(results, CELLS, JUDGES), MODEL)).findings == []
