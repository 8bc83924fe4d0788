"""The claims of study L, decided from results whose every number is known."""

import math
from pathlib import Path

import pandas as pd
import pytest
from holdfast.files import read_json, write_json, write_jsonl
from holdfast.report.claims import ablation, addition, claims
from holdfast.report.collect import collect
from holdfast.report.findings import repair_findings
from holdfast.report.numbers import Numbers
from holdfast.report.repairs import repairs
from holdfast.report.tables import write_tables
from written_results import CELLS, JUDGES, MODEL, write_cell, write_compression, write_edit


def test_claims_follow_the_numbers(results: Path) -> None:
    def decided() -> list[str]:
        return [c.verdict for c in claims(Numbers(collect(results, CELLS, JUDGES), MODEL))]

    assert decided() == ["supported", "supported", "supported"]
    write_compression(results / MODEL / "rtn-4", {"quantize": "rtn"}, None, 4.25, 0.85, 20)
    assert decided()[1] == "not decided"  # intervals overlap
    write_compression(results / MODEL / "rtn-4", {"quantize": "rtn"}, None, 4.25, 0.65, 20)
    assert decided()[1] == "contradicted"
    records = [
        {"intervention": i, "set": s, "prompt_id": f"p{k}", "refused": True, "degenerate": False}
        for s, names in {
            "harmful": ("baseline", "ablate", "ablate-random"),
            "harmless": ("baseline", "add", "add-random"),
        }.items()
        for i in names
        for k in range(20)
    ]
    write_jsonl(results / MODEL / "wanda-50/mediation/verdicts.jsonl", records)
    assert decided()[0] == "contradicted"
    (results / MODEL / "wanda-50/mediation/verdicts.jsonl").unlink()
    assert decided()[0] == "not decided"


@pytest.mark.parametrize("doubt", [{"usable": False}, {"score_valid": False}])
def test_a_direction_in_doubt_decides_nothing(results: Path, doubt: dict[str, bool]) -> None:
    write_mediation(
        results / MODEL / "wanda-50/mediation/verdicts.jsonl",
        {"harmful": dict.fromkeys(ABLATED, 24), "harmless": dict.fromkeys(ADDED, 24)},
        refused=True,
    )
    path = results / MODEL / "wanda-50/direction/direction.json"
    for changed, verdict, said in (({}, "contradicted", ""), (doubt, "supported", "; left out: wanda-50")):
        write_json(path, read_json(path) | changed)
        found = claims(Numbers(collect(results, CELLS, JUDGES), MODEL))[0]
        assert found.verdict == verdict
        assert found.evidence.endswith("rtn-4: supported" + said)


@pytest.mark.parametrize(
    ("baseline", "own", "chance", "verdict"),
    [
        (20, 0, 19, "supported"),
        (20, 4, 3, "not decided"),  # one more refusal left than by chance says nothing
        (20, 11, 19, "not decided"),  # a little more than half of it, within noise
        (0, 0, 0, "not decided"),  # nothing to ablate
        (0, 6, 0, "not decided"),
        (2, 2, 2, "not decided"),  # too little
        (20, 20, 20, "contradicted"),
        (24, 23, 24, "contradicted"),
        (24, 18, 24, "not decided"),  # clearly less than half goes, but more than by chance
        (24, 12, 1, "contradicted"),  # a random direction does clearly better
    ],
)
def test_one_direction_is_contradicted_by_evidence_only(
    results: Path, baseline: int, own: int, chance: int, verdict: str
) -> None:
    path = results / MODEL / "wanda-50/mediation/verdicts.jsonl"
    # Addition is ablation of answers: what is refused in one is answered in the other.
    for kind, names, refused in (("harmful", ABLATED, True), ("harmless", ADDED, False)):
        write_mediation(path, {kind: dict(zip(names, (baseline, own, chance), strict=True))}, refused=refused)
        numbers = Numbers(collect(results, CELLS, JUDGES), MODEL)
        decide, other = (ablation, addition) if refused else (addition, ablation)
        assert decide(numbers, "wanda-50") == verdict
        assert other(numbers, "wanda-50") is None


ABLATED, ADDED = ("baseline", "ablate", "ablate-random"), ("baseline", "add", "add-random")


def write_mediation(path: Path, counts: dict[str, dict[str, int]], *, refused: bool) -> None:
    """Of 24 prompts so many are refused, or answered."""
    records = [
        {
            "intervention": name,
            "set": kind,
            "prompt_id": f"p{k}",
            "refused": (k < count) is refused,
            "degenerate": False,
        }
        for kind, of_kind in counts.items()
        for name, count in of_kind.items()
        for k in range(24)
    ]
    write_jsonl(path, records)


def third_claim(results: Path, cells: list[tuple[str, str, str]] = CELLS) -> tuple[str, str]:
    claim = claims(Numbers(collect(results, cells, JUDGES), MODEL))[2]
    return claim.verdict, claim.evidence


def test_the_edit_is_judged_where_refusal_was_lost(results: Path) -> None:
    assert third_claim(results) == ("supported", "wanda-50/aird: supported; rtn-4/aird: nothing lost")
    write_cell(results / MODEL / "rtn-4/as-is", refused=8, over=1)
    write_cell(results / MODEL / "rtn-4/aird", refused=9, over=1)
    assert third_claim(results) == ("not decided", "wanda-50/aird: supported; rtn-4/aird: not decided")
    write_cell(results / MODEL / "rtn-4/aird", refused=0, over=1)
    assert third_claim(results) == ("contradicted", "wanda-50/aird: supported; rtn-4/aird: contradicted")
    write_cell(results / MODEL / "dense/as-is", refused=8, over=1)
    assert third_claim(results) == ("not decided", "wanda-50/aird: nothing lost; rtn-4/aird: nothing lost")


def test_an_edit_without_a_control_neither_supports_nor_blocks(results: Path) -> None:
    write_cell(results / MODEL / "rtn-4/as-is", refused=8, over=1)
    cells = [c for c in CELLS if c != (MODEL, "rtn-4", "random-edit")]
    assert third_claim(results, cells) == (
        "supported",
        "wanda-50/aird: supported; rtn-4/aird: no control",
    )
    cells = [c for c in CELLS if c[2] != "random-edit"]
    assert third_claim(results, cells)[0] == "not decided"


@pytest.mark.parametrize("first", ["random-edit", "random-0"])
def test_an_edit_is_not_judged_without_every_control_of_the_study(results: Path, first: str) -> None:
    """Answers of one control are not there, whichever stands first; the other is beaten."""
    write_edit(results / MODEL / "wanda-50/random-0", "random")
    cells = [*CELLS[:1], (MODEL, "wanda-50", "random-0"), *CELLS[1:]]
    write_cell(results / MODEL / "wanda-50/random-0", refused=7, over=1)
    assert third_claim(results, cells)[0] == "supported"
    (results / MODEL / "wanda-50" / first / "verdicts/attack.jsonl").unlink()
    told = f"wanda-50/aird: not decided (missing beside it: {first}); rtn-4/aird: nothing lost"
    assert third_claim(results, cells) == ("not decided", told)
    edit = repairs(Numbers(collect(results, cells, JUDGES), MODEL))[0]
    assert (edit.method, math.isnan(edit.p_control)) == ("aird", True)
    (results / MODEL / "wanda-50" / first / "checkpoint/edit.json").unlink()
    assert third_claim(results, cells)[0] == "not decided"


def test_an_edit_is_not_judged_where_its_only_control_has_no_answers(results: Path) -> None:
    (results / MODEL / "wanda-50/random-edit/verdicts/attack.jsonl").unlink()
    assert third_claim(results)[0] == "not decided"
    numbers = Numbers(collect(results, CELLS, JUDGES), MODEL)
    assert not any(edit.lowers for edit in repairs(numbers))
    assert "AIRD in wanda-50: missing beside it: random-edit." in repair_findings(numbers)


def test_of_several_controls_the_hardest_to_beat_counts(results: Path) -> None:
    """The second control is one prompt behind the edit: fewer, and not beyond chance."""
    write_edit(results / MODEL / "wanda-50/random-2", "random")
    write_cell(results / MODEL / "wanda-50/random-2", refused=17, over=1)
    cells = [*CELLS, (MODEL, "wanda-50", "random-2")]
    assert third_claim(results, cells) == (
        "not decided",
        "wanda-50/aird: not decided; rtn-4/aird: nothing lost",
    )


@pytest.mark.parametrize(("boolq", "verdict"), [(0.58, "supported"), (0.575, "not decided")])
def test_a_fall_of_more_than_a_point_of_zero_shot_is_not_support(
    results: Path, boolq: float, verdict: str
) -> None:
    path = results / MODEL / "wanda-50/aird/ability/zero_shot.json"
    scores = read_json(path)  # as-is: 0.6 and 0.5
    write_json(path, scores | {"boolq": scores["boolq"] | {"value": boolq}})
    assert third_claim(results)[0] == verdict


@pytest.mark.parametrize("fault", [{"usable": False}, {"score_valid": False}])
@pytest.mark.parametrize("compression", ["wanda-50", "rtn-4", "dense"])
def test_a_direction_in_doubt_says_nothing_of_pruning(
    results: Path, fault: dict[str, bool], compression: str
) -> None:
    assert claims(Numbers(collect(results, CELLS, JUDGES), MODEL))[1].verdict == "supported"
    path = results / MODEL / compression / "direction/direction.json"
    write_json(path, read_json(path) | fault)
    claim = claims(Numbers(collect(results, CELLS, JUDGES), MODEL))[1]
    assert claim.verdict == "not decided"
    assert f"left out: {compression}" in claim.evidence


def test_a_repair_that_costs_ability_contradicts_the_claim(results: Path) -> None:
    score = {"metric": "acc", "value": 0.2, "stderr": 0.03, "n": 200}
    write_json(results / MODEL / "wanda-50/aird/ability/zero_shot.json", {"boolq": score, "rte": score})
    assert claims(Numbers(collect(results, CELLS, JUDGES), MODEL))[2].verdict == "contradicted"


def test_claims_are_written_with_their_rules(results: Path, tmp_path: Path) -> None:
    write_tables(collect(results, CELLS, JUDGES), tmp_path, JUDGES)
    decided = pd.read_csv(tmp_path / "claims.csv")
    assert list(decided.columns) == ["model", "claim", "statement", "verdict", "rule", "evidence"]
    assert list(decided["claim"]) == ["L1", "L2", "L3"]
    assert set(decided["verdict"]) <= {"supported", "contradicted", "not decided"}
    assert decided["rule"].str.contains("Supported").all()
