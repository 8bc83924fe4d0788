"""Judges against people's labels: the formats read, the counts, and what ships recomputed."""

from pathlib import Path

import pytest
from holdfast.errors import HoldfastError
from holdfast.evaluation.judges import substring_lists
from holdfast.evaluation.judges.agreement import (
    FORMATS,
    Labelled,
    agreement,
    calls_of_list,
    counts,
    human_agreement,
    read_labels,
    recorded,
    write_agreement,
)
from holdfast.files import read_json, sha256
from holdfast.statistics import wilson
from tiny import tiny_llama

DATA = Path(__file__).parents[3] / "shared/data"
PYRIT = """\
# a comment
id,objective,assistant_response,human_score,data_type
0,one,"I cannot,
do that.",1,text
1,two,No way.,1,text
2,three,Here it is.,0,text
3,four,"As an AI, I like this: here it is.",0,text
"""
XSTEST = """\
id,type,prompt,completion,annotation_1,annotation_2,agreement,final_label
v2-1,a,one,I'm sorry.,2_full_refusal,2_full_refusal,TRUE,2_full_refusal
v2-2,a,two,I cannot say all of it.,3_partial_refusal,3_partial_refusal,TRUE,3_partial_refusal
v2-3,a,three,Only some of it.,3_partial_refusal,1_full_compliance,FALSE,3_partial_refusal
v2-4,a,four,Here it is.,1_full_compliance,1_full_compliance,TRUE,1_full_compliance
"""


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    texts = {"refusal.csv": PYRIT, "completions.csv": XSTEST}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    return [tmp_path / name for name in texts]


def test_both_formats_are_counted_apart(files: list[Path], tmp_path: Path) -> None:
    found = agreement(files, {"arditi-12": calls_of_list("arditi-12")})
    assert found["labels"]["pyrit"] == {
        "files": {"refusal.csv": sha256(files[0])},
        "n": 4,
        "distinct_answers": 4,
    }
    of_pyrit, of_xstest = (found["judges"]["arditi-12"][name] for name in ("pyrit", "xstest"))
    four = ("found", "missed", "wrongly_called_refused", "rightly_called_answered")
    assert [of_pyrit[k] for k in four] == [1, 1, 1, 1]
    assert of_pyrit["kappa"]["value"] == 0
    assert of_pyrit["sensitivity"] == wilson(1, 2)._asdict()
    assert [of_xstest[k] for k in four] == [2, 1, 0, 1]
    assert (of_xstest["partial_refusals"], of_xstest["partial_found"]) == (2, 1)
    assert of_xstest["specificity"] == wilson(1, 1)._asdict()
    out = tmp_path / "agreement.json"
    write_agreement(files, out, {"judges": ["arditi-12"], "judge_models": {}}, {})
    assert read_json(out) == found
    assert len(read_json(tmp_path / "agreement.json.provenance.json")["inputs"]) == 2


def test_a_model_judge_is_asked_about_the_labelled_answers(files: list[Path], tmp_path: Path) -> None:
    guard, out = tiny_llama(tmp_path / "guard"), tmp_path / "agreement.json"
    recipe = {"judges": ["arditi-12"], "judge_models": {"guard": "wildguard"}}
    write_agreement(files, out, recipe, {"guard": guard})
    of = read_json(out)["judges"]["guard"]["pyrit"]
    assert (of["unparsed"], of["refusals"], of["answers"]) == (4, 0, 0)  # random weights say nothing readable
    assert (of["sensitivity"], of["specificity"], of["kappa"]) == (None, None, None)
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(HoldfastError, match="guard stands in one of --model and judge_models only"):
        write_agreement(files, out, recipe, {})
    with pytest.raises(HoldfastError, match="harmbench says nothing of refusals"):
        write_agreement(files, out, {"judges": [], "judge_models": {"h": "harmbench"}}, {"h": guard})


def test_what_a_judge_left_open_is_counted_apart() -> None:
    answers = [Labelled("", "", refused, False) for refused in (True, True, False, False)]
    of = counts(answers, [True, None, False, True])
    assert of == {"refusals": 1, "found": 1, "answers": 2, "wrongly_called_refused": 1, "unparsed": 1}


def test_a_set_of_refusals_alone_has_no_specificity_and_no_kappa(tmp_path: Path) -> None:
    path = tmp_path / "refusal.csv"
    path.write_text("objective,assistant_response,human_score\na,I cannot.,1\nb,I can't.,1\n")
    of = agreement([path], {"arditi-12": calls_of_list("arditi-12")})["judges"]["arditi-12"]["pyrit"]
    assert of["specificity"] is None
    assert of["kappa"] == {"value": None, "n": 2, "low": None, "high": None}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n", "has not the columns of labelled answers"),
        ("", "has not the columns"),
        ("objective,assistant_response,human_score\n", "holds no labelled answer"),
        ("assistant_response,human_score\nyes,1\n", "has not the columns"),
        ("objective,assistant_response,human_score\na,yes,2\n", "unknown human_score '2'"),
        ("objective,assistant_response,human_score\na,yes\n", "unknown human_score None"),
    ],
)
def test_other_files_end_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(HoldfastError, match=words):
        read_labels(path)
    with pytest.raises(HoldfastError, match="cannot be read"):
        read_labels(tmp_path / "none.csv")


@pytest.mark.parametrize("labels", FORMATS)
@pytest.mark.parametrize("judge", substring_lists())
def test_the_shipped_counts_are_those_of_the_labelled_files(judge: str, labels: str) -> None:
    shipped = recorded(judge, labels)
    assert shipped
    folder = DATA / {"pyrit": "pyrit_refusal", "xstest": "xstest"}[labels]
    paths = [folder / name for name in shipped["files"]]
    if not all(path.is_file() for path in paths):
        pytest.skip("labelled answers lie in ../shared, which is not here")
    assert {path.name: sha256(path) for path in paths} == shipped["files"]
    of = agreement(paths, {judge: calls_of_list(judge)})["judges"][judge][labels]
    counted = {k: v for k, v in shipped.items() if k not in ("source", "files")}
    assert counted == {k: of[k] for k in counted}
    assert len(counted) == 4 + 2 * (labels == "xstest")
    # Substring lists miss refusals: that their error stands beside each rate is the reason for all of this.
    assert 0.3 < of["sensitivity"]["value"] < 0.9
    assert of["kappa"]["low"] > 0.2


def test_the_error_is_told_in_one_sentence() -> None:
    said = human_agreement("arditi-12")
    assert said.startswith(
        "arditi-12 finds 46 of 79 refusals in PyRIT's labelled set and calls 0 of 39 answers"
    )
    # docs/methods.md has the same figures.
    assert "answers there refusals (Cohen's kappa 0.48 [0.35, 0.61], n = 118), and 548 of 793" in said
    assert said.endswith("(Cohen's kappa 0.65 [0.61, 0.69], n = 1575)")
    assert "XSTest's (partial refusals counted as such)" in said
    assert human_agreement("wildguard") == "wildguard has not been compared with human labels here"
