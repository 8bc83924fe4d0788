"""The direction stage on a model whose chat template has a thinking switch: both ways it is scored where it answers."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from chat_templates import FAMILIES
from holdfast.checkpoints import load_model, load_tokenizer
from holdfast.errors import HoldfastError
from holdfast.files import read_json, read_jsonl, write_json
from holdfast.prompts.templates import EMPTY_THOUGHT, encode
from holdfast.refusal.mediation import mediate
from planted import files, planted_llama, studied

LAYERS = [2, 3]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, _ = planted_llama(tmp_path_factory.mktemp("thinking") / "tiny")
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = FAMILIES["qwen3"].template
    tokenizer.save_pretrained(folder)
    return folder


def direction_of(model_dir: Path, root: Path, thinking: bool | None) -> tuple[dict[str, Any], pd.DataFrame]:
    write_json(model_dir / "holdfast.json", {"thinking": thinking})
    studied(model_dir, root, layers=LAYERS, full_table=True)
    about = read_json(root / "direction/direction.json")
    return about, pd.read_csv(root / "direction/selection.csv").set_index(["position", "layer"])


def test_thinking_on_is_scored_after_an_empty_thought(model_dir: Path, tmp_path: Path) -> None:
    on, scored_on = direction_of(model_dir, tmp_path / "on", True)
    off, scored_off = direction_of(model_dir, tmp_path / "off", False)
    tokenizer = load_tokenizer(model_dir)
    thought = len(tokenizer(EMPTY_THOUGHT, add_special_tokens=False)["input_ids"])
    assert (on["thinking"], on["answer_position"]) == (True, "after an empty thought")
    assert on["answer_opening"] == EMPTY_THOUGHT
    assert (off["thinking"], off["answer_position"], off["answer_opening"]) == (False, "after the prompt", "")
    # What is scored is the same text; with thinking off its empty thought is part of the template and has positions.
    assert on["opening_tokens"] == off["opening_tokens"]
    assert on["baseline"] == pytest.approx(off["baseline"], abs=1e-4)
    positions = [len(table.index.levels[0]) for table in (scored_on, scored_off)]
    assert positions[1] == positions[0] + thought
    for position, layer in scored_on.index:
        for measure in ("bypass", "induce", "kl"):
            ours, theirs = (
                table.loc[place, measure]
                for table, place in (
                    (scored_on, (position, layer)),
                    (scored_off, (position - thought, layer)),
                )
            )
            assert ours == pytest.approx(theirs, abs=1e-3)
    assert on["usable"]


def test_a_template_left_to_itself_thinks(model_dir: Path, tmp_path: Path) -> None:
    about, _ = direction_of(model_dir, tmp_path, None)
    assert (about["thinking"], about["answer_position"]) == (None, "after an empty thought")


def test_answers_under_interventions_begin_after_the_empty_thought(model_dir: Path, tmp_path: Path) -> None:
    direction_of(model_dir, tmp_path, True)
    recipe = {"prompts": 2, "max_new_tokens": 3, "random_seeds": 1, "seed": 0}
    made = files(tmp_path)
    held_out = made["harmful_validation"], made["harmless_validation"]
    mediate(
        model_dir,
        tmp_path / "mediation",
        tmp_path / "direction",
        *held_out,
        {**recipe, "ablation": "plain", "judge": "arditi-12"},
    )
    model, tokenizer = load_model(model_dir), load_tokenizer(model_dir)
    settings = {"thinking": False, "system_prompt": None}
    for record in read_jsonl(tmp_path / "mediation/answers.jsonl"):
        if record["intervention"] == "baseline":
            asked = encode(tokenizer, [record["prompt"]], settings)
            said = model.generate(**asked, max_new_tokens=3, do_sample=False, pad_token_id=0)
            new = said[0, asked["input_ids"].shape[1] :].tolist()
            assert new[: len(record["tokens"])] == record["tokens"]


def test_a_switch_that_does_nothing_stops_the_stage(model_dir: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(model_dir)
    for file in model_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tokenizer.chat_template = FAMILIES["yi-chat"].template
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(HoldfastError, match="has no thinking switch: thinking: true changes nothing"):
        direction_of(tmp_path, tmp_path / "study", True)
    assert not (tmp_path / "study/activations").exists()
