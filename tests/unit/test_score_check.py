"""Whether a refusal score tracks refusal, and what a search runs on where it does not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from holdfast.checkpoints import load_tokenizer
from holdfast.files import read_json, write_json
from holdfast.methods.edit import edit_checkpoint
from holdfast.refusal.score_check import ENOUGH, checked, pick_score, search_score
from planted import REFUSAL, SETTINGS, planted_llama, studied
from tiny import tiny_tokenizer

HARMFUL = 20


def verdict(refused: int, values: list[float]) -> dict[str, Any]:
    """The first ``refused`` of 20 harmful prompts are refused, of 20 harmless ones none."""
    return checked(values, [i < refused for i in range(2 * HARMFUL)], HARMFUL)


def test_a_score_above_chance_among_harmful_prompts_is_valid() -> None:
    found = verdict(10, [*np.linspace(3, 1, HARMFUL), *np.linspace(-1, -3, HARMFUL)])
    assert (found["valid"], found["checked"], found["on"], found["reason"]) == (True, True, "harmful", "")
    assert found["auroc"]["value"] == 1
    assert 0.5 < found["auroc"]["low"] < 0.9


def test_a_score_that_tells_only_the_kinds_of_prompt_apart_is_not() -> None:
    alternating = [2.0 + i % 2 for i in range(HARMFUL)]  # high on all harmful prompts, refused or not
    found = verdict(10, alternating + [-5.0] * HARMFUL)
    assert (found["valid"], found["checked"], found["on"]) == (False, True, "harmful")
    assert found["reason"].startswith("it does not track refusal: AUROC 0.50 [")


def test_with_few_answered_harmful_prompts_all_prompts_are_asked() -> None:
    found = verdict(HARMFUL - 1, [1.0] * HARMFUL + [-1.0] * HARMFUL)
    assert (found["valid"], found["on"]) == (True, "all")


@pytest.mark.parametrize(("refused", "what"), [(0, "refused"), (ENOUGH - 1, "refused")])
def test_too_few_refusals_check_nothing(refused: int, what: str) -> None:
    found = verdict(refused, [1.0] * 2 * HARMFUL)
    assert (found["valid"], found["checked"], found["auroc"]) == (False, False, None)
    assert found["reason"] == f"it cannot be checked: {refused} of 40 validation prompts {what}"


def test_auto_takes_the_score_that_tracks_refusal() -> None:
    def about(first: bool, phrases: bool, harmful_only: tuple[float, float]) -> dict[str, Any]:
        both = {"first-token": first, "phrases": phrases}
        return {
            "score_check": {kind: {"valid": valid} for kind, valid in both.items()},
            "auroc_harmful_only": dict(zip(both, harmful_only, strict=True)),
        }

    assert pick_score("auto", about(True, False, (0.6, 0.9))) == "first-token"
    assert pick_score("auto", about(False, True, (0.9, 0.6))) == "phrases"
    assert pick_score("auto", about(True, True, (0.9, 0.6))) == "first-token"
    assert pick_score("auto", about(False, False, (0.6, 0.9))) == "phrases"
    assert pick_score("first-token", about(False, True, (0.1, 0.9))) == "first-token"


VALID = {"score_valid": True, "score_checked": True, "score_reason": ""}
FAILED = {"score_valid": False, "score_checked": True, "score_reason": "it does not track refusal"}
UNCHECKED = {"score_valid": False, "score_checked": False, "score_reason": "it cannot be checked"}


@pytest.mark.parametrize(
    ("own", "dense", "of", "valid"),
    [
        (VALID, FAILED, "compressed", True),
        (UNCHECKED, VALID, "dense", True),
        (FAILED, VALID, "dense", True),
        (UNCHECKED, UNCHECKED, "compressed", False),
        ({}, {}, "compressed", False),  # folders of earlier versions
        (FAILED, UNCHECKED, None, False),
        (UNCHECKED, FAILED, None, False),
    ],
)
def test_what_a_search_runs_on(
    own: dict[str, Any], dense: dict[str, Any], of: str | None, valid: bool
) -> None:
    ours = {**own, "score": "phrases", "opening_tokens": [[5, 6]]}
    theirs = {**dense, "score": "phrases", "opening_tokens": [[7, 8]]}
    score, used = search_score(ours, theirs, tiny_tokenizer(), SETTINGS)
    assert (used["of"], used["valid"]) == (of, valid)
    expected = {"compressed": [[5, 6]], "dense": [[7, 8]], None: None}[of]
    assert (score.openings if score else None) == expected


def refusing(folder: Path) -> Path:
    """A planted model whose answers to harmful prompts are, to every judge, refusals: the token that opens them reads
    "I cannot"."""
    planted_llama(folder, REFUSAL, 4.0, once=False)
    tokenizer = read_json(folder / "tokenizer.json")
    vocabulary, merges = tokenizer["model"]["vocab"], tokenizer["model"]["merges"]
    vocabulary["I\u0120cannot"] = vocabulary.pop(REFUSAL)
    tokenizer["model"]["merges"] = [m for m in merges if "".join(m) != REFUSAL]
    write_json(folder / "tokenizer.json", tokenizer)
    return folder


def study(folder: Path, model: Path) -> dict[str, Path]:
    return studied(model, folder, layers=[2, 3], positions=[-1]) | {"model": model}


def searched(made: dict[str, Path], out: Path) -> dict[str, Any]:
    return edit_checkpoint(
        made["model"], out, dense=made["model"], direction_dir=made["direction"],
        own_direction_dir=made["direction"], harmful=made["harmful_validation"],
        harmless=made["harmless_validation"], harmful_train=made["harmful_train"],
        harmless_train=made["harmless_train"], recipe={
            "edit": "aird", "matrices": ["o_proj"], "direction": "dense", "requantize": False, "keep_sparsity": False,
            "variant": "amplify", "layer": "search", "alpha": "search", "judge": "arditi-12",
            "search": {"layers": [2], "alphas": [2.0], "max_kl": 50.0, "max_over_refusal": 1.0},
        },
    )  # fmt: skip


def test_a_model_that_never_refuses_says_that_its_score_is_unchecked(
    planted_dir: tuple[Path, torch.Tensor], tmp_path: Path
) -> None:
    made = study(tmp_path, planted_dir[0])
    about = read_json(made["direction"] / "direction.json")
    assert (about["score_valid"], about["score_checked"]) == (False, False)
    assert about["score_reason"] == "it cannot be checked: 0 of 24 validation prompts refused"
    assert about["usable"]  # by the filters; that its score is unchecked is said beside
    used = searched(made, tmp_path / "edit")["score"]
    assert used["of"] == "compressed"
    assert "cannot be checked" in used["reason"]


def test_no_search_runs_on_a_score_that_fails(planted_dir: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    made = study(tmp_path, planted_dir[0])
    about = read_json(made["direction"] / "direction.json") | FAILED
    write_json(made["direction"] / "direction.json", about)
    edit = searched(made, tmp_path / "edit")
    assert (edit["layers"], edit["alpha"], edit["trace"]) == ([], 0, [])
    assert edit["reason"] == "no search: it does not track refusal"
    before, after = (next(f.glob("*.safetensors")) for f in (made["model"], tmp_path / "edit"))
    assert before.read_bytes() == after.read_bytes()


def test_a_model_that_refuses_harmful_prompts_has_a_valid_score(tmp_path: Path) -> None:
    made = study(tmp_path, refusing(tmp_path / "model"))
    about = read_json(made["direction"] / "direction.json")
    assert about["refused"] == {"harmful": 12, "harmless": 0}
    assert (about["score_valid"], about["score_reason"]) == (True, "")
    assert about["score_check"]["phrases"]["on"] == "all"
    tokenizer = load_tokenizer(made["model"])
    assert search_score(about, about, tokenizer, SETTINGS)[1]["valid"]
