"""Ability measured again: what was measured on the same checkpoint with the same settings is kept."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from holdfast.evaluation import ability
from holdfast.evaluation.ability import measure_ability
from holdfast.files import read_json, write_jsonl
from tiny import TEXTS, tiny_llama

Measured = tuple[list[list[str]], list[str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("ability") / "model"
    tiny_llama(folder)
    (folder / "provenance.json").write_text("{}")
    return folder


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    """The tasks of every call of the harness, and the texts of every perplexity."""
    tasks: list[list[str]] = []
    texts: list[str] = []
    of_tasks, of_text = ability.zero_shot, ability.perplexity

    def zero_shot(model: Any, tokenizer: Any, recipe: Any) -> Any:
        tasks.append(list(recipe["tasks"]))
        return of_tasks(model, tokenizer, recipe)

    def perplexity(model: Any, tokenizer: Any, recipe: Any) -> Any:
        texts.append(recipe["source"])
        return of_text(model, tokenizer, recipe)

    monkeypatch.setattr(ability, "zero_shot", zero_shot)
    monkeypatch.setattr(ability, "perplexity", perplexity)
    return tasks, texts


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    for name in ("arc_easy", "piqa"):
        item = {"question": TEXTS[0], "choices": ["one", "two"], "label": 0}
        write_jsonl(tmp_path / f"{name}.test.jsonl", [item, item | {"label": 1}])
    (tmp_path / "text.txt").write_text(" ".join(TEXTS) * 4)

    def of(*tasks: str, **perplexity: Any) -> dict[str, Any]:
        text = {"source": f"file:{tmp_path / 'text.txt'}", "window": 16, "windows": 3}
        section = {"tasks": list(tasks), "limit": None, "folder": str(tmp_path)}
        return {"zero_shot": section, "perplexity": text | perplexity}

    return of


def declared(out: Path) -> dict[str, Any]:
    """The results, less what differs from run to run; they are removed, as Snakemake does before a job runs again."""
    found = {name: read_json(out / name) for name in ("zero_shot.json", "perplexity.json")}
    found["tasks"] = sorted(read_json(out / "lm_eval.json")["results"])
    for name in ("zero_shot.json", "perplexity.json", "lm_eval.json"):
        (out / name).unlink()
    return found


def test_a_new_task_measures_that_task_alone(
    model: Path, tmp_path: Path, measured: Measured, recipe: Callable[..., dict[str, Any]]
) -> None:
    out = tmp_path / "ability"
    measure_ability(model, out, recipe("arc_easy"))
    before = declared(out)
    measure_ability(model, out, recipe("piqa", "arc_easy"))
    assert measured == ([["arc_easy"], ["piqa"]], [recipe()["perplexity"]["source"]])
    after = declared(out)
    assert list(after["zero_shot.json"]) == ["piqa", "arc_easy"]
    assert after["zero_shot.json"]["arc_easy"] == before["zero_shot.json"]["arc_easy"]
    assert after["tasks"] == ["arc_easy", "piqa"]
    measure_ability(model, tmp_path / "at-once", recipe("piqa", "arc_easy"))
    assert declared(tmp_path / "at-once") == after


def test_one_task_less_measures_nothing(
    model: Path, tmp_path: Path, measured: Measured, recipe: Callable[..., dict[str, Any]]
) -> None:
    out = tmp_path / "ability"
    measure_ability(model, out, recipe("arc_easy", "piqa"))
    declared(out)
    measure_ability(model, out, recipe("piqa"))
    assert len(measured[0]) == len(measured[1]) == 1
    assert list(declared(out)["zero_shot.json"]) == ["piqa"]


def test_other_settings_are_measured_anew(
    model: Path, tmp_path: Path, measured: Measured, recipe: Callable[..., dict[str, Any]]
) -> None:
    out = tmp_path / "ability"
    measure_ability(model, out, recipe("arc_easy"))
    measure_ability(model, out, recipe("arc_easy", windows=2))
    assert (len(measured[0]), len(measured[1])) == (1, 2)
    limited = recipe("arc_easy", windows=2)
    limited["zero_shot"]["limit"] = 1
    measure_ability(model, out, limited)
    assert (len(measured[0]), len(measured[1])) == (2, 2)
    write_jsonl(
        tmp_path / "arc_easy.test.jsonl", [{"question": "other", "choices": ["one", "two"], "label": 1}]
    )
    measure_ability(model, out, limited)
    assert (len(measured[0]), len(measured[1])) == (3, 2)


@pytest.mark.parametrize("change", ["model", "packages", "damage"])
def test_nothing_is_kept_of_another_checkpoint_or_other_packages(
    model: Path,
    tmp_path: Path,
    measured: Measured,
    recipe: Callable[..., dict[str, Any]],
    change: str,
) -> None:
    out = tmp_path / "ability"
    measure_ability(model, out, recipe("arc_easy"))
    if change == "damage":
        (out / "measured.json").write_text("{")
    else:
        kept = json.loads((out / "measured.json").read_text())
        (out / "measured.json").write_text(json.dumps(kept | {change: "another"}))
    measure_ability(model, out, recipe("arc_easy"))
    assert (len(measured[0]), len(measured[1])) == (2, 2)
