"""Generation, judging, zero-shot and perplexity on a real (tiny) model."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from holdfast.checkpoints import load_model, load_tokenizer
from holdfast.errors import HoldfastError
from holdfast.evaluation.generation import (
    Completion,
    Transformers,
    complete,
    generate,
    generate_files,
)
from holdfast.evaluation.perplexity import perplexity
from holdfast.evaluation.shown import Chat
from holdfast.evaluation.zero_shot import zero_shot
from holdfast.evaluation.zero_shot_tasks import tasks
from holdfast.files import read_json, read_jsonl, write_jsonl
from holdfast.prompts.templates import encode
from killed import killed_while_answering
from tiny import TEXTS, greedy, tiny_llama
from transformers import BloomConfig, BloomForCausalLM

ROOT = Path(__file__).parents[2]
SETTINGS = {"thinking": None, "system_prompt": None}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model") / "tiny")


def records(count: int) -> list[dict[str, str]]:
    return [{"id": f"p{i}", "text": f"{TEXTS[i % len(TEXTS)][: 10 + 3 * i]} {i}"} for i in range(count)]


def test_batched_answers_equal_one_by_one_and_a_loop_by_hand(model_dir: Path) -> None:
    model, tokenizer = load_model(model_dir), load_tokenizer(model_dir)
    texts = [r["text"] for r in records(7)]
    batched = complete(model, tokenizer, texts, SETTINGS, max_new_tokens=8, batch_size=7)
    single = complete(model, tokenizer, texts, SETTINGS, max_new_tokens=8, batch_size=1)
    assert [c.tokens for c in batched] == [c.tokens for c in single]
    ids = encode(tokenizer, texts[:1], SETTINGS)["input_ids"]
    assert batched[0].tokens == greedy(model, ids, 8, tokenizer.eos_token_id)


class Interrupted(Transformers):
    """Answers some batches, then fails as a killed process would; counts what it was asked."""

    left, asked = 2, 0

    def answer(
        self, texts: Sequence[str], max_new_tokens: int, seeds: Sequence[int] = ()
    ) -> list[Completion]:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left, self.asked = self.left - 1, self.asked + len(texts)
        return super().answer(texts, max_new_tokens, seeds)


def test_killed_generation_goes_on_and_equals_an_uninterrupted_one(model_dir: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(model_dir), load_tokenizer(model_dir)
    prompts = records(11)
    generate_files(
        Transformers(model, Chat(tokenizer, SETTINGS), 3), {tmp_path / "whole.jsonl": prompts}, 6, "x"
    )
    backend = Interrupted(model, Chat(tokenizer, SETTINGS), 3)
    with pytest.raises(KeyboardInterrupt):
        generate_files(backend, {tmp_path / "cut.jsonl": prompts}, 6, "x")
    assert not (tmp_path / "cut.jsonl").exists()
    with (tmp_path / "cut.jsonl.x.partial").open("a") as stream:
        stream.write('{"id": "p9", "prompt": "cut sho')  # a record the kill cut short
    backend.left, backend.asked = 99, 0
    generate_files(backend, {tmp_path / "cut.jsonl": prompts}, 6, "x")
    assert backend.asked == 11 - 6
    assert (tmp_path / "cut.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert [r["prompt_id"] for r in read_jsonl(tmp_path / "cut.jsonl")] == [p["id"] for p in prompts]


def test_answers_to_another_question_are_never_resumed(model_dir: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(model_dir), load_tokenizer(model_dir)
    backend = Interrupted(model, Chat(tokenizer, SETTINGS), 3)
    with pytest.raises(KeyboardInterrupt):
        generate_files(backend, {tmp_path / "a.jsonl": records(9)}, 6, "six-tokens")
    backend.left, backend.asked = 99, 0
    generate_files(backend, {tmp_path / "a.jsonl": records(9)}, 3, "three-tokens")
    assert backend.asked == 9
    assert all(len(r["tokens"]) <= 3 for r in read_jsonl(tmp_path / "a.jsonl"))


def test_finished_set_of_a_killed_stage_is_not_answered_again(model_dir: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(model_dir), load_tokenizer(model_dir)
    generate_files(
        Transformers(model, Chat(tokenizer, SETTINGS), 3), {tmp_path / "a.jsonl": records(5)}, 6, "x"
    )
    whole = (tmp_path / "a.jsonl").read_bytes()
    (tmp_path / "a.jsonl").unlink()  # what Snakemake does with the outputs of a killed stage
    backend = Interrupted(model, Chat(tokenizer, SETTINGS), 3)
    generate_files(backend, {tmp_path / "a.jsonl": records(5)}, 6, "x")
    assert backend.asked == 0
    assert (tmp_path / "a.jsonl").read_bytes() == whole


def test_sigkill_of_the_stage_keeps_what_was_answered(model_dir: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "attack.jsonl"
    write_jsonl(prompts, records(400))
    recipe = json.dumps({"max_new_tokens": 24, "batch_size": 4, "backend": "transformers"})
    command = [sys.executable, "-m", "holdfast", "generate", str(model_dir), str(tmp_path / "out")]
    command += ["--prompts", f"attack={prompts}", "--recipe", recipe]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    kept = killed_while_answering(command, tmp_path / "out", environment, 120)
    assert 0 < kept.count("\n") < 400
    subprocess.run(command, check=True, capture_output=True, env=environment)
    answered = read_jsonl(tmp_path / "out" / "attack.jsonl")
    assert len(answered) == 400
    assert not list((tmp_path / "out").glob("*.partial"))
    lines = {json.dumps(r, ensure_ascii=False) for r in answered}
    assert {line for line in kept.split("\n")[:-1] if line} <= lines
    assert read_json(tmp_path / "out" / "provenance.json")["settings"]["thinking"] is None


def test_unknown_backend_is_one_line(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(HoldfastError, match="unknown backend 'abacus'"):
        generate(model_dir, tmp_path, {}, {"backend": "abacus", "max_new_tokens": 4})


def test_perplexity_equals_the_plain_formula(model_dir: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(model_dir), load_tokenizer(model_dir)
    path = tmp_path / "text.txt"
    path.write_text(" ".join(TEXTS) * 3)
    found = perplexity(model, tokenizer, {"source": f"file:{path}", "window": 32, "windows": None})
    ids = tokenizer(path.read_text(), add_special_tokens=False)["input_ids"]
    total = 0.0
    windows = len(ids) // 32
    for w in range(windows):
        window = torch.tensor([ids[32 * w : 32 * (w + 1)]])
        logits = model(window).logits[0].double().log_softmax(-1)
        total -= sum(float(logits[t, window[0, t + 1]]) for t in range(31))
    assert found["windows"] == windows
    assert found["perplexity"] == pytest.approx(math.exp(total / (31 * windows)), rel=1e-4)
    assert found["low"] < found["perplexity"] < found["high"]
    with pytest.raises(HoldfastError, match="do not fill two windows"):
        perplexity(model, tokenizer, {"source": f"file:{path}", "window": 10**6})


def test_perplexity_of_the_whole_text_in_windows_of_the_models_length(
    model_dir: Path, tmp_path: Path
) -> None:
    model, tokenizer = load_model(model_dir), load_tokenizer(model_dir)
    path = tmp_path / "wiki.test.raw"
    path.write_text("\n".join(TEXTS) * 12 + "\n")
    length = model.config.max_position_embeddings
    found = perplexity(model, tokenizer, {"source": f"file:{path}", "window": "model", "windows": None})
    rows = path.read_text().splitlines(keepends=True)
    ids = tokenizer("\n\n".join(rows), add_special_tokens=False)["input_ids"]
    assert found["windows"] == len(ids) // length >= 2
    assert found["tokens"] == found["windows"] * (length - 1)
    unbounded = BloomForCausalLM(BloomConfig(vocab_size=8, hidden_size=8, n_layer=1, n_head=1))
    with pytest.raises(HoldfastError, match="states no max_position_embeddings"):
        perplexity(unbounded, tokenizer, {"source": f"file:{path}", "window": "model"})


def test_own_zero_shot_task_runs_in_the_harness(model_dir: Path) -> None:
    model, tokenizer = load_model(model_dir), load_tokenizer(model_dir)
    summary, own = zero_shot(model, tokenizer, {"tasks": ["holdfast_choice"], "limit": 20, "folder": None})
    assert summary["holdfast_choice"]["n"] == 20
    assert summary["holdfast_choice"]["value"] == own["results"]["holdfast_choice"]["acc,none"]


def test_standard_tasks_from_local_files(model_dir: Path) -> None:
    folder = ROOT.parent / "shared/data/zeroshot"
    if not folder.is_dir():
        pytest.skip("task data lies in ../shared, which is not here")
    model, tokenizer = load_model(model_dir), load_tokenizer(model_dir)
    names = ["arc_easy", "boolq", "winogrande", "hellaswag", "openbookqa", "piqa"]
    summary, _ = zero_shot(model, tokenizer, {"tasks": names, "limit": 4, "folder": str(folder)})
    assert set(summary) == set(names)
    assert all(0 <= s["value"] <= 1 and s["n"] == 4 for s in summary.values())


def test_missing_task_data_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(HoldfastError, match="no local data for task rte"):
        tasks(["rte"], tmp_path)
