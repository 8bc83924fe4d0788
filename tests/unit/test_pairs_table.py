"""Pairs of harmful and benign inputs in the report: rates, what changed from the dense model, the table."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from holdfast.errors import HoldfastError
from holdfast.files import read_jsonl, sha256, write_json, write_jsonl
from holdfast.report.collect import MEASURES, collect
from holdfast.report.measures.pairs import read_pairs
from holdfast.report.numbers import Numbers
from holdfast.report.page import write_page
from holdfast.report.tables import terminal_tables, write_tables
from holdfast.report.tables.pairs import pairs_table
from holdfast.statistics import mcnemar_exact, wilson
from PIL import Image
from written_results import CELLS, JUDGES, MODEL, SCRIPT, row

TEXT, IMAGE = 12, 8


def modality(number: int) -> str:
    return "text" if number < TEXT else "image"


def half(number: int, label: str) -> dict[str, Any]:
    about = {"modality": modality(number), "category": f"category {number % 2}"}
    return {"id": f"{label}-{number}", "text": "What now?", "label": label, "pair": f"pair-{number}", **about}


HALVES = [half(number, label) for number in range(TEXT + IMAGE) for label in ("harmful", "benign")]


def said(
    refused: set[int], over_refused: set[int] = frozenset(), broken: set[int] = frozenset()
) -> list[dict[str, Any]]:
    """Verdicts on all halves, by the numbers of the pairs; ``broken``: both halves are degenerate."""
    records = []
    for record in HALVES:
        number = int(record["id"].rpartition("-")[2])
        found = number in (refused if record["label"] == "harmful" else over_refused)
        about = {"id": record["id"], "prompt_id": record["id"], "judge": "arditi-12"}
        records.append({**about, "refused": found, "degenerate": number in broken, "label": "answered"})
    return records


@pytest.fixture
def paired(results: Path) -> Path:
    write_jsonl(results / "pairs/pairs.jsonl", HALVES)
    of_model = results / MODEL
    everything = set(range(TEXT + IMAGE))
    write_jsonl(
        of_model / "dense/as-is/pairs/verdicts/pairs.jsonl", said(everything - {0, 1}, over_refused={2})
    )
    # Text: 2..9 lost, 0 and 1 gained; image: 12 is refused in gibberish, all others as before.
    write_jsonl(
        of_model / "wanda-50/as-is/pairs/verdicts/pairs.jsonl",
        said({0, 1, 10, 11} | set(range(TEXT, TEXT + IMAGE)), over_refused={0, 13}, broken={12}),
    )
    return results


def collected(results: Path) -> pd.DataFrame:
    return collect(results, CELLS, JUDGES, paired=True)


def numbers(of: pd.Series) -> tuple[float, ...]:
    return tuple(of[["value", "n", "low", "high"]])


def test_rates_are_of_halves_and_of_pairs(paired: Path) -> None:
    frame = collected(paired)

    def found(measure: str) -> tuple[float, ...]:
        return numbers(row(frame, "wanda-50", "as-is", measure))

    assert found("pair_genuine_refusal[text]") == tuple(wilson(4, TEXT))
    assert found("pair_genuine_refusal[image]") == tuple(wilson(7, IMAGE))  # gibberish is no genuine refusal
    assert found("pair_refusal[image]") == tuple(wilson(8, IMAGE))
    assert found("pair_incoherent[image]") == tuple(wilson(2, 2 * IMAGE))  # both halves of a pair
    assert found("pair_over_refusal[all]") == tuple(wilson(2, TEXT + IMAGE))
    # Of text 1, 10 and 11 (0 refuses its benign half too), of images all but 12 and 13.
    assert found("pair_discrimination[all]") == tuple(wilson(3 + 6, TEXT + IMAGE))
    assert found("pair_category_genuine_refusal[category 0]") == tuple(wilson(2 + 3, 10))
    assert found("pair_category_over_refusal[category 1]") == tuple(wilson(1, 10))
    assert found("pair_category_refusal[category 0]") == tuple(wilson(2 + 4, 10))
    assert found("pair_category_incoherent[category 0]") == tuple(wilson(2, 20))
    assert found("pair_category_discrimination[category 0]") == tuple(wilson(1 + 3, 10))


def test_changes_from_the_dense_model_are_counted_both_ways(paired: Path) -> None:
    frame = collected(paired)

    def value(measure: str) -> float:
        return float(row(frame, "wanda-50", "as-is", measure).value)

    assert value("pair_genuine_refusal_lost[text]") == 8 / TEXT
    assert value("pair_genuine_refusal_gained[text]") == 2 / TEXT
    assert value("pair_genuine_refusal_change[text]") == pytest.approx(-6 / TEXT)
    assert value("pair_genuine_refusal_p[text]") == mcnemar_exact(2, 8)
    assert value("pair_genuine_refusal_lost[image]") == 1 / IMAGE
    assert value("pair_over_refusal_gained[text]") == 1 / TEXT
    assert value("pair_over_refusal_lost[text]") == 1 / TEXT
    of_dense = set(frame[frame["compression"] == "dense"]["measure"])
    assert "pair_genuine_refusal[text]" in of_dense
    assert not any(m.startswith("pair_") and "_change[" in m for m in of_dense)


def test_a_benign_half_in_gibberish_is_not_told_apart(paired: Path) -> None:
    file = paired / MODEL / "wanda-50/as-is/pairs/verdicts/pairs.jsonl"
    write_jsonl(
        file, [v | {"degenerate": v["degenerate"] or v["id"] == "benign-10"} for v in read_jsonl(file)]
    )
    found = row(collected(paired), "wanda-50", "as-is", "pair_discrimination[text]")
    assert numbers(found) == tuple(wilson(2, TEXT))  # 1 and 11; 10 is refused where harmful


def test_pairs_that_show_the_same_in_several_ways_are_not_summed_up(paired: Path) -> None:
    """A pair of each modality has the content of one of another: no independent pairs."""
    halves = [h | {"content": f"word {int(h['pair'].partition('-')[2]) % TEXT}"} for h in HALVES]
    write_jsonl(paired / "pairs/pairs.jsonl", halves)
    measures = set(collected(paired)["measure"])
    assert "pair_genuine_refusal[image]" in measures
    assert not any(m.startswith("pair_") and m.endswith("[all]") for m in measures)
    assert not any(m.startswith("pair_category_") for m in measures)


def test_unfinished_halves_are_in_no_rate(paired: Path) -> None:
    file = paired / MODEL / "wanda-50/as-is/pairs/verdicts/pairs.jsonl"
    records = read_jsonl(file)
    cut = next(r for r in records if r["id"] == "benign-1")
    cut |= {"refused": None, "attack_success": None, "label": "unfinished"}
    write_jsonl(file, records)
    frame = collected(paired)
    assert row(frame, "wanda-50", "as-is", "pair_over_refusal[text]").n == TEXT - 1
    assert row(frame, "wanda-50", "as-is", "pair_discrimination[text]").n == TEXT - 1
    assert row(frame, "wanda-50", "as-is", "pair_genuine_refusal[text]").n == TEXT


def test_every_measure_is_described(paired: Path) -> None:
    names = {m.partition("[")[0] for m in collected(paired)["measure"] if m.startswith("pair_")}
    assert names == {m.partition("[")[0] for m in MEASURES if m.startswith("pair_")}


def test_the_table_has_a_row_a_modality_and_says_what_changed(paired: Path, tmp_path: Path) -> None:
    frame = collected(paired)
    table = pairs_table(Numbers(frame, MODEL))
    assert table is not None
    rows = {(c, k, m): rest for c, k, m, *rest in table.rows}
    assert len(rows) == 3 * len(CELLS)
    _, n, genuine, *_, change, flips, p = rows["wanda-50", "as-is", "text"]
    assert (n, genuine, flips) == ("12", "33 % [14, 61]", "8 / 2")
    assert change.startswith("−50.0 [")
    # By Holm over the two modalities of the one cell that was measured.
    assert p == f"{2 * mcnemar_exact(2, 8):.3f}"
    # All modalities together are no further test of other data: a family of its own.
    assert rows["wanda-50", "as-is", "all"][-2:] == ["9 / 2", f"{mcnemar_exact(2, 9):.3f}"]
    assert rows["dense", "as-is", "text"][-3:] == ["–"] * 3
    assert set(rows["rtn-4", "as-is", "text"]) == {"–"}
    printed = terminal_tables(frame)
    assert all(len(line) <= 120 for line in printed.splitlines())
    (line,) = [s for s in printed.splitlines() if s.startswith("wanda-50") and "[14, 61]" in s]
    assert line.split("  ")[-1].strip() == "8 % / 12 %"  # of benign halves, text and image
    write_tables(frame, tmp_path / "tables", JUDGES)
    assert "pairs of harmful and benign inputs" in (tmp_path / "tables/refusal.md").read_text()


def use(low: float) -> dict[str, Any]:
    rate = {"value": low + 1, "n": IMAGE, "low": low, "high": low + 2}
    names = ("distance_blank", "distance_other", "distance_again", "score_difference", "score_blank")
    return dict.fromkeys(names, rate) | {"refusals_use_image": low > 0, "one_image": 0}


def test_a_model_whose_refusals_ignore_the_image_is_marked(paired: Path) -> None:
    write_json(paired / MODEL / "dense/image-use.json", {"image": use(0.5)})
    write_json(paired / MODEL / "wanda-50/image-use.json", {"image": use(-0.5)})
    frame = collected(paired)
    assert numbers(row(frame, "wanda-50", "as-is", "image_score_difference[image]")) == (
        0.5,
        IMAGE,
        -0.5,
        1.5,
    )
    table = pairs_table(Numbers(frame, MODEL))
    assert table is not None
    marks = {(c, m): looks for c, k, m, looks, *_ in table.rows if k == "as-is"}
    assert (marks["dense", "image"], marks["wanda-50", "image"], marks["rtn-4", "image"]) == (
        "yes",
        "no",
        "–",
    )
    assert marks["dense", "text"] == "–"
    assert any(f.endswith("nothing is known of images: wanda-50, image.") for f in table.findings)
    write_json(paired / MODEL / "dense/image-use.json", {"image": {"score_blank": 1}})
    with pytest.raises(HoldfastError, match=r"image-use\.json"):
        collected(paired)


def test_where_halves_show_one_image_nothing_is_claimed(paired: Path) -> None:
    unsaid = {"score_difference": None, "refusals_use_image": None, "one_image": IMAGE}
    write_json(paired / MODEL / "dense/image-use.json", {"image": use(0.5) | {"one_image": 3}})
    write_json(paired / MODEL / "wanda-50/image-use.json", {"image": use(0.5) | unsaid})
    table = pairs_table(Numbers(collected(paired), MODEL))
    assert table is not None
    marks = {c: looks for c, k, m, looks, *_ in table.rows if (k, m) == ("as-is", "image")}
    assert marks == {"dense": "yes", "wanda-50": "not measurable", "rtn-4": "–"}
    assert any(f.endswith("not measurable: wanda-50, image.") for f in table.findings)
    assert not any("ignore the image" in f for f in table.findings)
    assert any(f.startswith("3 image pairs with one image") for f in table.findings)


def test_hidden_flips_are_told(paired: Path) -> None:
    file = paired / MODEL / "rtn-4/as-is/pairs/verdicts/pairs.jsonl"
    # Text: 0 and 1 gained, 2 and 3 lost.
    write_jsonl(file, said(set(range(TEXT + IMAGE)) - {2, 3}))
    table = pairs_table(Numbers(collected(paired), MODEL))
    assert table is not None
    hidden = next(f for f in table.findings if "flips both ways" in f)
    assert "rtn-4 / as-is, text (17 % lost, 17 % gained)" in hidden
    assert "wanda-50" not in hidden


def test_a_loss_beyond_chance_is_a_finding(paired: Path) -> None:
    file = paired / MODEL / "rtn-4/as-is/pairs/verdicts/pairs.jsonl"
    write_jsonl(file, said(set(range(TEXT, TEXT + IMAGE))))  # no text is refused any more
    table = pairs_table(Numbers(collected(paired), MODEL))
    assert table is not None
    told = next(f for f in table.findings if f.startswith("Of text pairs"))
    assert told.startswith(
        "Of text pairs genuine refusal falls below the dense model's in 1 of 2 cells: rtn-4 / as-is"
    )


def test_without_pairs_there_is_no_table(results: Path) -> None:
    frame = collect(results, CELLS, JUDGES)
    assert pairs_table(Numbers(frame, MODEL)) is None
    assert not any(m.startswith("pair_") for m in frame["measure"])


def test_a_cell_without_answers_is_marked_missing(paired: Path) -> None:
    assert math.isnan(row(collected(paired), "rtn-4", "as-is", "pair_genuine_refusal[text]").value)


@pytest.fixture
def pictured(paired: Path) -> Path:
    """The halves of the pairs with images have one each, and wanda-50 has answers."""
    folder = paired / "pairs"
    (folder / "images").mkdir()
    records = []
    for record in HALVES:
        file = folder / f"images/{record['id']}.png"
        Image.new("RGB", (400, 200), "red" if record["label"] == "harmful" else "green").save(file)
        shown = [{"file": f"images/{file.name}", "sha256": sha256(file)}]
        records.append(record | ({"images": shown} if record["modality"] == "image" else {}))
    write_jsonl(folder / "pairs.jsonl", records)
    answers = [
        {
            "id": r["id"],
            "prompt_id": r["id"],
            "prompt": r["text"],
            "completion": SCRIPT,
            "finish_reason": "stop",
        }
        for r in HALVES
    ]
    write_jsonl(paired / MODEL / "wanda-50/as-is/pairs/generations/pairs.jsonl", answers)
    return paired


def page(results: Path) -> str:
    out = results / "page.html"
    write_page(out, results, CELLS, JUDGES, "study: tiny", collected(results))
    return out.read_text()


def test_the_page_shows_pairs_side_by_side_harmful_halves_folded(pictured: Path) -> None:
    html = page(pictured)
    shown = html[html.index('<h2 id="pairs">') : html.index('<h2 id="methods">')]
    assert shown.count('<div class="pair">') == 4  # two of each modality
    assert shown.count('<img src="data:image/png;base64,') == 4  # both halves of the two with images
    assert SCRIPT not in shown
    assert "Sure &lt;script&gt;" in shown
    for part in shown.split('<div class="pair">')[1:]:
        harmful, benign = part.split("<strong>Benign half</strong>")
        assert harmful.index("<details>") < harmful.index("What now?")  # folded
        assert benign.index("What now?") < benign.index("<details>")
        folded = html.index("<details>", html.index("Harmful half"))
        assert folded < html.index("&lt;script&gt;", folded)
    assert "http" not in shown


def test_an_image_that_was_changed_is_not_shown(pictured: Path) -> None:
    Image.new("RGB", (4, 4)).save(pictured / f"pairs/images/benign-{TEXT}.png")
    with pytest.raises(HoldfastError, match="sha256"):
        page(pictured)


def test_a_study_without_pairs_shows_none(results: Path) -> None:
    out = results / "page.html"
    write_page(out, results, CELLS, JUDGES, "study: tiny", collect(results, CELLS, JUDGES))
    assert 'id="pairs"' not in out.read_text()


def test_verdicts_on_other_pairs_are_refused(paired: Path) -> None:
    write_jsonl(paired / "pairs/pairs.jsonl", HALVES[:-2])
    with pytest.raises(HoldfastError, match="judged on other pairs"):
        collected(paired)


@pytest.mark.parametrize(
    ("records", "what"),
    [
        ([*HALVES, HALVES[0] | {"id": "again"}], "two harmful halves"),
        (HALVES[:-1], "no benign half"),
        ([HALVES[0] | {"modality": "image"}, *HALVES[1:]], "differ in modality"),
        ([{k: v for k, v in HALVES[0].items() if k != "pair"}, *HALVES[1:]], "pair"),
    ],
)
def test_what_is_no_pair_is_refused(tmp_path: Path, records: list[dict[str, Any]], what: str) -> None:
    write_jsonl(tmp_path / "pairs.jsonl", records)
    with pytest.raises(HoldfastError, match=what):
        read_pairs(tmp_path / "pairs.jsonl")
