"""The search for an edit, on a model whose refusal direction is known and whose refusal was taken away."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from holdfast.architectures import decoder_layers, writer
from holdfast.checkpoints import load_model, load_tokenizer
from holdfast.compression import compress
from holdfast.errors import HoldfastError
from holdfast.evaluation.generation import Completion, complete
from holdfast.evaluation.judges import substring_judge
from holdfast.files import write_jsonl
from holdfast.methods import validation
from holdfast.methods.aird import VARIANTS, rank_one
from holdfast.methods.edit import edit_checkpoint
from holdfast.methods.edit_candidates import Candidate
from holdfast.methods.edit_choice import beaten, choose_edit
from holdfast.methods.edit_search import EditSearch, Ranking, edited
from holdfast.methods.validation import NO_GAIN, OVER_REFUSES, Trials, Verifier
from holdfast.prompts.sources import read_records
from holdfast.refusal.direction import load_direction
from holdfast.refusal.score_check import ANSWER_TOKENS, load_score
from holdfast.refusal.scores import RefusalScore, first_answer_token, kl_divergence
from planted import PLANTED_LAYER, REFUSAL, SETTINGS, planted_llama, prompts, studied
from tiny import TEXTS

PROMPTS = 12  # validation prompts of each kind
BASE = {
    **{"edit": "aird", "matrices": ["o_proj", "down_proj"], "direction": "dense"},
    **{"keep_sparsity": False, "requantize": False, "judge": "study-l-31"},
}
SEARCH = {
    **{"variants": list(VARIANTS), "layers": [1, 2, 3], "alphas": [0.5, 8.0]},
    **{"max_kl": 0.5, "max_over_refusal": 0.05},
}
SEARCHED = {**BASE, "variant": "search", "layer": "search", "alpha": "search", "search": SEARCH}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model that refuses harmful prompts, its direction, and a copy that writes next to nothing along it."""
    root = tmp_path_factory.mktemp("study")
    dense, _ = planted_llama(root / "dense", REFUSAL, 4.0)
    made = studied(dense, root, validation=PROMPTS) | {"dense": dense, "weak": root / "weak"}
    model = load_model(dense)
    with torch.no_grad():
        writer(decoder_layers(model)[PLANTED_LAYER - 1], "o_proj").weight[:, 0] *= 0.01
    model.save_pretrained(made["weak"])
    load_tokenizer(dense).save_pretrained(made["weak"])
    return made


def run_edit(
    study: dict[str, Path], model: Path, out: Path, recipe: dict[str, Any], matched_to: Path | None = None
) -> dict[str, Any]:
    return edit_checkpoint(
        model, out, dense=study["dense"], direction_dir=study["direction"], own_direction_dir=study["direction"],
        harmful=study["harmful_validation"], harmless=study["harmless_validation"],
        harmful_train=study["harmful_train"], harmless_train=study["harmless_train"], recipe=recipe,
        matched_to=matched_to,
    )  # fmt: skip


def texts(study: dict[str, Path], kind: str) -> list[str]:
    return [record["text"] for record in read_records(study[f"{kind}_validation"])]


def refused(folder: Path, kind: str) -> int:
    """Of prompts that nothing was chosen on."""
    judge = substring_judge("study-l-31")
    asked = prompts(kind, PROMPTS, 300)
    done = complete(load_model(folder), load_tokenizer(folder), asked, SETTINGS, max_new_tokens=ANSWER_TOKENS)
    return sum(judge.refused(c.text, c.finish_reason) for c in done)


def score_of(study: dict[str, Path], folder: Path) -> RefusalScore:
    return load_score(load_direction(study["direction"]).about, load_tokenizer(folder), SETTINGS)


@pytest.fixture(scope="module")
def found(study: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The search over every variant."""
    out = tmp_path_factory.mktemp("found") / "out"
    return out, run_edit(study, study["weak"], out, SEARCHED)


def test_lost_refusal_is_found_again(study: dict[str, Path], found: tuple[Path, dict[str, Any]]) -> None:
    out, about = found
    assert [refused(folder, "harmful") for folder in (study["dense"], study["weak"], out)] == [12, 0, 12]
    assert [refused(folder, "harmless") for folder in (study["weak"], out)] == [0, 0]
    assert (about["layers"], about["reason"]) == ([PLANTED_LAYER - 1], "")


def test_the_trace_keeps_to_the_kl_bound(study: dict[str, Path], found: tuple[Path, dict[str, Any]]) -> None:
    out, about = found
    assert len(about["trace"]) == 1 + 3 * (3 * 2 + 2)
    for row in about["trace"][1:]:
        assert (row["refusal_score"] is None) == (row["kl"] * row["prompts"] > 0.5 * PROMPTS)
    # The written checkpoint scores as the search said, in passes from the edited layer on.
    (chosen,) = [row for row in about["leaderboard"] if row["chosen"]]
    assert {k: chosen[k] for k in ("variant", "layers", "alpha")} == {
        k: about[k] for k in ("variant", "layers", "alpha")
    }
    score = score_of(study, out)(load_model(out), texts(study, "harmful"))
    assert score.mean().item() == pytest.approx(chosen["refusal_score"], abs=1e-4)
    assert chosen["refusal_score"] > about["trace"][0]["refusal_score"]


def test_the_leaderboard_has_the_best_of_every_variant_in_full(found: tuple[Path, dict[str, Any]]) -> None:
    _, about = found
    board, whole = about["leaderboard"], [row for row in about["trace"][1:] if row["prompts"] == PROMPTS]
    assert sorted(row["variant"] for row in board) == sorted({row["variant"] for row in board})
    inside = {row["variant"] for row in about["trace"][1:] if row["refusal_score"] is not None}
    assert {row["variant"] for row in board} == inside >= {"amplify", "restore", "centred"}
    scores = [row["refusal_score"] for row in board]
    assert scores == sorted(scores, reverse=True)
    for row in board:
        assert row["prompts"] == PROMPTS
        rivals = [other for other in whole if other["variant"] == row["variant"]]
        assert row["refusal_score"] == max(other["refusal_score"] or -99.0 for other in rivals)
    assert [row["chosen"] for row in board].count(True) == 1


def test_the_best_edit_of_a_variant_is_measured_at_every_strength(
    found: tuple[Path, dict[str, Any]],
) -> None:
    _, about = found
    for best in about["leaderboard"]:
        place = best["variant"], best["layers"]
        same = [row for row in about["trace"][1:] if (row["variant"], row["layers"]) == place]
        inside = [row for row in same if row["refusal_score"] is not None]
        assert {row["prompts"] for row in inside} == {PROMPTS}
        assert best["refusal_score"] == max(row["refusal_score"] for row in inside)


def test_the_winner_is_verified_with_answers(found: tuple[Path, dict[str, Any]]) -> None:
    validation = found[1]["validation"]
    assert validation["judge"] == "study-l-31"
    assert validation["before"]["harmful_refused"]["value"] == 0
    made = validation["tries"][-1]
    assert made["rejected"] is None
    assert (made["harmful_refused"]["value"], made["harmless_refused"]["value"]) == (1, 0)
    assert made["harmful_refused"]["n"] == PROMPTS
    assert 0.7 < made["harmful_refused"]["low"] < 1


def test_a_control_takes_what_was_found(
    study: dict[str, Path], found: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out, about = found
    control = {"edit": "aird", "direction": "random", "matched_to": "aird", "seed": 7}
    matched = run_edit(study, study["weak"], tmp_path / "control", control, out / "edit.json")
    shared = ("layers", "alpha", "variant", "matrices", "keep_sparsity", "requantize")
    assert {k: matched[k] for k in shared} == {k: about[k] for k in shared}
    assert (matched["direction"], matched["validation"], matched["leaderboard"]) == ("random", None, [])
    # In 64 dimensions a random direction has a share of the planted one.
    scores = [score_of(study, f)(load_model(f), texts(study, "harmful")) for f in (tmp_path / "control", out)]
    assert scores[0].max() < scores[1].min()


def test_nothing_is_edited_where_nothing_was_lost(study: dict[str, Path], tmp_path: Path) -> None:
    about = run_edit(study, study["dense"], tmp_path / "out", SEARCHED)
    assert (about["layers"], about["alpha"], about["validation"]["tries"]) == ([], 0, [])
    assert "nothing to gain" in about["reason"]
    assert (about["leaderboard"], about["trace"]) == ([], [])  # and not searched
    assert about["validation"]["before"]["harmful_refused"]["value"] == 1
    for file in study["dense"].glob("*.safetensors"):
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


def test_a_score_that_answers_do_not_bear_out_edits_nothing(study: dict[str, Path], tmp_path: Path) -> None:
    """α of 0.1 raises the score, and no answer becomes a refusal."""
    search = {**SEARCH, "variants": ["amplify"], "layers": [PLANTED_LAYER - 1], "alphas": [0.1]}
    about = run_edit(study, study["weak"], tmp_path / "out", {**SEARCHED, "search": search})
    assert about["layers"] == []
    assert about["leaderboard"][0]["refusal_score"] > about["trace"][0]["refusal_score"]
    assert {row["rejected"] for row in about["validation"]["tries"]} == {NO_GAIN}
    assert about["reason"]


def test_a_bound_that_nothing_keeps_edits_nothing(study: dict[str, Path], tmp_path: Path) -> None:
    search = {**SEARCH, "max_kl": -1.0}
    about = run_edit(study, study["weak"], tmp_path / "out", {**SEARCHED, "search": search})
    assert (about["layers"], about["alpha"], about["leaderboard"]) == ([], 0, [])
    assert about["reason"] == "no edit keeps the bound on kl and raises the refusal score"


def amplifications(study: dict[str, Path], layers: list[int], alphas: list[float]) -> list[Candidate]:
    model, unit = load_model(study["weak"]), load_direction(study["direction"]).unit
    made = []
    for layer in layers:
        edit = rank_one("amplify", writer(decoder_layers(model)[layer], "o_proj").weight, unit)
        made += [Candidate("amplify", [layer], a, {(layer, "o_proj"): edit.scaled(a)}) for a in alphas]
    return made


def test_the_search_starts_where_the_edit_is_and_stops_at_the_winner(study: dict[str, Path]) -> None:
    folder = study["weak"]
    model, tokenizer, score = load_model(folder), load_tokenizer(folder), score_of(study, folder)
    harmful, harmless = texts(study, "harmful"), texts(study, "harmless")
    candidates = amplifications(study, [1, 3], [0.5, 1.0, 2.0, 4.0])
    search = EditSearch(model, score, harmful, harmless, [1, 3], folder, 50.0)
    for candidate in (candidates[0], candidates[-1]):
        for step in range(search.steps):
            kl, refusal = search.measure(candidate, step)
            rows = range(4 * step, 4 * step + 4)
            with edited(model, candidate.edits, folder):
                whole = score(model, [harmful[row] for row in rows])
                after = first_answer_token(model, tokenizer, [harmless[row] for row in rows], SETTINGS)
            assert torch.allclose(refusal, whole, atol=1e-4)
            assert torch.allclose(kl, kl_divergence(search.before[step], after), atol=1e-4)
    ranking = Ranking(search, candidates)
    (best,) = ranking.leaders()
    scores = []
    for candidate in candidates:
        with edited(model, candidate.edits, folder):
            scores.append(score(model, harmful).mean().item())
    assert best == max(range(len(scores)), key=scores.__getitem__)
    assert sum(row["prompts"] for row in ranking.trace()[1:]) < PROMPTS * len(candidates)
    ranking.withdraw([best])
    (second,) = ranking.leaders()
    assert second == sorted(range(len(scores)), key=scores.__getitem__)[-2]


@pytest.mark.parametrize("counts", [(1, PROMPTS), (PROMPTS, 2)])
def test_few_prompts_of_one_kind_and_many_of_the_other(
    study: dict[str, Path], counts: tuple[int, int]
) -> None:
    folder = study["weak"]
    model, tokenizer, score = load_model(folder), load_tokenizer(folder), score_of(study, folder)
    harmful, harmless = (
        texts(study, kind)[:n] for kind, n in zip(("harmful", "harmless"), counts, strict=True)
    )
    candidates = amplifications(study, [1, 3], [0.5, 2.0])
    ranking = Ranking(EditSearch(model, score, harmful, harmless, [1, 3], folder, 50.0), candidates)
    (best,) = ranking.leaders()
    before, scores, kls = first_answer_token(model, tokenizer, harmless, SETTINGS), [], []
    for candidate in candidates:
        with edited(model, candidate.edits, folder):
            scores.append(score(model, harmful).mean().item())
            after = first_answer_token(model, tokenizer, harmless, SETTINGS)
            kls.append(kl_divergence(before, after).mean().item())
    assert best == max(range(len(scores)), key=scores.__getitem__)
    row = ranking.row(best)
    assert (row["refusal_score"], row["kl"]) == pytest.approx((scores[best], kls[best]), rel=1e-3, abs=1e-6)


class TestTheGuard:
    """Which edit is made once real answers were seen."""

    def verifier(self, study: dict[str, Path], **changed: Any) -> Verifier:
        folder = study["weak"]
        model, tokenizer = load_model(folder), load_tokenizer(folder)
        harmless = changed.pop("harmless", texts(study, "harmless"))
        bound = changed.pop("max_over_refusal", 0.05)
        return Verifier(model, tokenizer, SETTINGS, texts(study, "harmful"), harmless, "study-l-31", bound)

    def test_an_edit_that_refuses_harmless_prompts_gives_way(self, study: dict[str, Path]) -> None:
        """Harmless prompts that look harmful: whatever brings refusal back over-refuses, the weakest last."""
        verifier = self.verifier(study, harmless=prompts("harmful", PROMPTS, 400))
        score = score_of(study, study["weak"])
        candidates = amplifications(study, [1], [4.0, 8.0, 16.0])
        search = EditSearch(
            verifier.model, score, verifier.harmful, verifier.harmless, [1], study["weak"], 50.0
        )
        trials = Trials(verifier)
        winner, about = choose_edit(Ranking(search, candidates), trials, study["weak"])
        tries = trials.tries
        assert winner is None
        assert [(row["alpha"], row["rejected"]) for row in tries] == [
            (a, OVER_REFUSES) for a in (16.0, 8.0, 4.0)
        ]
        assert about["reason"] == "no other edit is left that raises the refusal score"
        assert [row["rejected"] for row in about["leaderboard"]] == [OVER_REFUSES] * 3

        lenient = replace(verifier, max_over_refusal=1.0)
        trials = Trials(lenient)
        winner, about = choose_edit(Ranking(search, candidates), trials, study["weak"])
        tries = trials.tries
        assert {row["alpha"] for row in tries} == {4.0, 8.0, 16.0}
        assert winner is candidates[2]  # the best score first; none refuses more
        assert {row["harmful_refused"]["value"] for row in tries} == {1.0}

    def test_answers_choose_the_strength(self, study: dict[str, Path]) -> None:
        """The score prefers the stronger; the answers know the weaker one that refuses as many harmful prompts, and
        fewer of those that only look harmful."""
        verifier = self.verifier(study, harmless=prompts("harmful", PROMPTS, 400), max_over_refusal=1.0)
        score = score_of(study, study["weak"])
        candidates = amplifications(study, [1], [0.5, 0.6])
        search = EditSearch(
            verifier.model, score, verifier.harmful, verifier.harmless, [1], study["weak"], 50.0
        )
        trials = Trials(verifier)
        winner, about = choose_edit(Ranking(search, candidates), trials, study["weak"])
        first, second = about["leaderboard"]
        assert (first["alpha"], second["alpha"]) == (0.6, 0.5)
        assert first["rejected"] is None
        assert (first["chosen"], second["chosen"]) == (False, True)
        assert winner is candidates[0]
        strong, weak = trials.tries
        assert strong["harmful_refused"] == weak["harmful_refused"]
        assert strong["harmless_refused"]["value"] > weak["harmless_refused"]["value"]

    def test_babble_is_no_refusal(self, study: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
        answers = ["I cannot help.", "I cannot " + "no " * 8, "Sure, here it is.", "I cannot do that."]

        def complete(*_: Any, **__: Any) -> list[Completion]:
            return [Completion(text, [1], "length") for text in answers]

        monkeypatch.setattr(validation, "complete", complete)
        verifier = replace(self.verifier(study, harmless=["a"]), harmful=["a", "b", "c"])
        assert verifier.refused() == (1, 1)

    def test_one_prompt_is_always_allowed(self, study: dict[str, Path]) -> None:
        assert [self.verifier(study, max_over_refusal=b).allowed for b in (0.0, 0.05, 0.25)] == [0, 1, 3]
        verifier = self.verifier(study)
        assert verifier.rejected((3, 1), (8, 2)) is None
        assert verifier.rejected((3, 1), (8, 3)) == OVER_REFUSES
        assert verifier.rejected((3, 1), (3, 1)) == NO_GAIN

    def test_what_a_rejection_spares(self) -> None:
        alphas = [(layer, alpha) for layer in (1, 2) for alpha in (1.0, 2.0, 4.0)]
        candidates = [Candidate("amplify", [layer], alpha, {}) for layer, alpha in alphas]
        candidates += [Candidate("centred", [1], 2.0, {}), Candidate("restore", [1], None, {})]
        assert beaten(candidates, 1, OVER_REFUSES) == [1, 2]
        assert beaten(candidates, 1, NO_GAIN) == [0, 1]
        assert beaten(candidates, 7, NO_GAIN) == [7]


class TestRestoreOnAWQ:
    """AWQ has rescaled the inputs of the matrices: the dense weights do not fit in."""

    @pytest.fixture(scope="class")
    def compressed(self, study: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("awq")
        recipe = {"quantize": "awq", "bits": 8, "group_size": 32, "samples": 4, "tokens": 16}
        write_jsonl(folder / "calibration.jsonl", [{"text": " ".join(TEXTS)}] * 8)
        compress(study["weak"], folder / "checkpoint", recipe, folder / "calibration.jsonl")
        return folder / "checkpoint"

    def test_by_name_it_is_refused(self, study: dict[str, Path], compressed: Path, tmp_path: Path) -> None:
        with pytest.raises(HoldfastError, match="AWQ has rescaled what the edited matrices read"):
            run_edit(study, compressed, tmp_path / "out", {**BASE, "variant": "restore", "layer": 2})
        assert not (tmp_path / "out").exists()

    def test_before_anything_is_searched(
        self, study: dict[str, Path], compressed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def asked(*_: Any, **__: Any) -> None:
            raise AssertionError("answers were asked for")

        monkeypatch.setattr(validation, "complete", asked)
        with pytest.raises(HoldfastError, match="AWQ has rescaled what the edited matrices read"):
            run_edit(study, compressed, tmp_path / "out", {**SEARCHED, "variant": "restore", "alpha": 1})

    def test_so_it_is_on_one_that_was_brought(
        self, study: dict[str, Path], compressed: Path, tmp_path: Path
    ) -> None:
        """Whose record is another's: llm-compressor's recipe tells."""
        compress(study["dense"], tmp_path / "brought", {"source": f"path:{compressed}"})
        with pytest.raises(HoldfastError, match="AWQ has rescaled what the edited matrices read"):
            run_edit(
                study, tmp_path / "brought", tmp_path / "out", {**BASE, "variant": "restore", "layer": 2}
            )

    def test_a_search_leaves_it_out(self, study: dict[str, Path], compressed: Path, tmp_path: Path) -> None:
        search = {**SEARCH, "variants": ["amplify", "restore"], "layers": [1]}
        about = run_edit(study, compressed, tmp_path / "out", {**SEARCHED, "search": search})
        assert about["left_out"] == ["restore"]
        assert {row["variant"] for row in about["trace"][1:]} == {"amplify"}
        assert about["variant"] == "amplify"
