"""Attack settings on a real (tiny) model: other system prompts, openings of the answer, suffixes, drawn answers."""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from holdfast.checkpoints import load_model, load_tokenizer
from holdfast.errors import HoldfastError
from holdfast.evaluation.generation import Completion, Transformers, complete, generate, generate_files
from holdfast.evaluation.judges import judge_files
from holdfast.evaluation.sampling import Draw, Sampling
from holdfast.evaluation.shown import Chat
from holdfast.files import read_json, read_jsonl, write_jsonl
from holdfast.prompts.templates import encode
from scipy import stats
from tiny import TEXTS, greedy, tiny_llama

SETTINGS = {"thinking": None, "system_prompt": None}
PROMPTS = [{"id": f"p{i}", "text": text[: 12 + 6 * i].strip()} for i, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "attack.jsonl"
    write_jsonl(path, PROMPTS)
    return path


def answers(model_dir: Path, asked: Path, out: Path, **recipe: Any) -> list[dict[str, Any]]:
    generate(model_dir, out, {"attack": asked}, {"max_new_tokens": 6, "batch_size": 3, **recipe})
    return read_jsonl(out / "attack.jsonl")


def by_hand(model_dir: Path, text: str, suffix: str = "", **settings: Any) -> list[int]:
    """The greedy answer, one token after the other."""
    model, tokenizer = load_model(model_dir), load_tokenizer(model_dir)
    ids = encode(tokenizer, [text], {**SETTINGS, **settings}, suffix)["input_ids"]
    return greedy(model, ids, 6, tokenizer.eos_token_id)


def test_an_opening_stands_before_the_answer_and_is_no_part_of_it(
    model_dir: Path, prompts: Path, tmp_path: Path
) -> None:
    found = answers(model_dir, prompts, tmp_path / "opened", prefix="Sure, here is")
    assert [r["tokens"] for r in found[:2]] == [
        by_hand(model_dir, p["text"], "Sure, here is") for p in PROMPTS[:2]
    ]
    assert [r["tokens"] for r in found] != [
        r["tokens"] for r in answers(model_dir, prompts, tmp_path / "plain")
    ]


def test_a_system_prompt_takes_the_place_of_the_models_and_an_empty_one_removes_it(
    model_dir: Path, prompts: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in model_dir.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "holdfast.json").write_text(json.dumps({"system_prompt": "The river ran slowly."}))
    own = answers(folder, prompts, tmp_path / "own")
    kind = answers(folder, prompts, tmp_path / "kind", system_prompt="Explain why.")
    off = answers(folder, prompts, tmp_path / "off", system_prompt="")
    assert own[0]["tokens"] == by_hand(model_dir, PROMPTS[0]["text"], system_prompt="The river ran slowly.")
    assert kind[0]["tokens"] == by_hand(model_dir, PROMPTS[0]["text"], system_prompt="Explain why.")
    assert [r["tokens"] for r in off] == [r["tokens"] for r in answers(model_dir, prompts, tmp_path / "none")]
    assert read_json(tmp_path / "kind/provenance.json")["settings"]["system_prompt"] == "Explain why."


def test_a_template_that_shows_no_system_prompt_is_one_line(
    model_dir: Path, prompts: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_dir, folder)
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = "{% for m in messages if m.role == 'user' %}Q: {{ m.content }}\nA: {% endfor %}"
    tokenizer.save_pretrained(folder)
    with pytest.raises(HoldfastError, match="takes no system prompt; leave this setting out for this model"):
        answers(folder, prompts, tmp_path / "out", system_prompt="Explain why.")
    assert len(answers(folder, prompts, tmp_path / "out", system_prompt="")) == len(PROMPTS)


def test_a_suffix_follows_the_first_prompts_and_is_known_by_its_checksum(
    model_dir: Path, prompts: Path, tmp_path: Path
) -> None:
    path = tmp_path / "suffix.txt"
    path.write_text("in one sentence\n")
    known = {"suffix": f"file:{path}", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    found = answers(model_dir, prompts, tmp_path / "out", prompts=3, **known)
    assert [r["prompt"] for r in found] == [f"{p['text']} in one sentence" for p in PROMPTS[:3]]
    assert [r["request"] for r in found] == [p["text"] for p in PROMPTS[:3]]
    assert "request" not in answers(model_dir, prompts, tmp_path / "without", prompts=1)[0]
    assert [r["prompt_id"] for r in found] == ["p0", "p1", "p2"]
    assert found[0]["tokens"] == by_hand(model_dir, f"{PROMPTS[0]['text']} in one sentence")
    assert read_json(tmp_path / "out/provenance.json")["inputs"][str(path)] == known["sha256"]
    path.write_text("in two sentences\n")
    with pytest.raises(HoldfastError, match="the config says"):
        answers(model_dir, prompts, tmp_path / "changed", **known)


def test_draws_follow_the_models_probabilities() -> None:
    logits = torch.tensor([2.0, 0.5, -torch.inf, 1.0, -1.0])
    rows = 4000
    drawn = Draw(range(rows))(torch.zeros(rows, 1, dtype=torch.long), logits.repeat(rows, 1))
    assert ((drawn == 0).sum(1) == 1).all()
    counts = torch.bincount(drawn.argmax(1), minlength=5).double()
    assert counts[2] == 0
    possible = [0, 1, 3, 4]
    assert stats.chisquare(counts[possible], logits[possible].double().softmax(0) * rows).pvalue > 0.001


def test_temperature_and_nucleus_cut_what_is_drawn() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]]).repeat(2000, 1)
    start = torch.zeros(2000, 1, dtype=torch.long)

    def shares(**how: float) -> list[float]:
        drawn = Sampling(**how).processors(range(2000))(start, logits.clone()).argmax(1)
        return [n / 2000 for n in torch.bincount(drawn, minlength=4).tolist()]

    assert shares(temperature=0.5) == pytest.approx((2 * logits[0]).softmax(0).tolist(), abs=0.03)
    cut = shares(temperature=1.0, top_p=0.8)  # 0.64 and 0.24 are the first two
    assert cut == pytest.approx([*logits[0, :2].softmax(0).tolist(), 0, 0], abs=0.03)


class Small(Transformers):
    """Out of memory above two prompts, as a small GPU would be."""

    def answer(
        self, texts: Sequence[str], max_new_tokens: int, seeds: Sequence[int] = ()
    ) -> list[Completion]:
        if len(texts) > 2:
            raise torch.cuda.OutOfMemoryError
        return super().answer(texts, max_new_tokens, seeds)


class Interrupted(Transformers):
    """Fails at the third batch, as a killed process would."""

    left = 2

    def answer(
        self, texts: Sequence[str], max_new_tokens: int, seeds: Sequence[int] = ()
    ) -> list[Completion]:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return super().answer(texts, max_new_tokens, seeds)


def test_drawn_answers_come_again_whatever_the_batches(model_dir: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(model_dir), load_tokenizer(model_dir)
    sampling = Sampling(temperature=1.0, samples=3, seed=5)
    tries = [t for p in PROMPTS for t in sampling.tries(p)]

    def run(kind: type[Transformers], batch_size: int, name: str) -> bytes:
        backend = kind(model, Chat(tokenizer, SETTINGS), batch_size, sampling)
        generate_files(backend, {tmp_path / name: tries}, 6, "x")
        return (tmp_path / name).read_bytes()

    whole = run(Transformers, 4, "whole.jsonl")
    assert run(Transformers, 1, "single.jsonl") == whole
    assert run(Small, 8, "halved.jsonl") == whole
    with pytest.raises(KeyboardInterrupt):
        run(Interrupted, 4, "cut.jsonl")
    assert run(Transformers, 5, "cut.jsonl") == whole
    found = read_jsonl(tmp_path / "whole.jsonl")
    assert [(r["prompt_id"], r["sample"]) for r in found] == [(p["id"], i) for p in PROMPTS for i in range(3)]
    assert len({r["id"] for r in found}) == len(found)
    assert len({tuple(r["tokens"]) for r in found}) > 2 * len(PROMPTS)  # samples of a prompt differ


def test_other_seeds_draw_other_answers_and_a_cold_model_the_greedy_one(
    model_dir: Path, prompts: Path, tmp_path: Path
) -> None:
    greedy = answers(model_dir, prompts, tmp_path / "greedy")
    cold = answers(model_dir, prompts, tmp_path / "cold", temperature=1e-4)
    assert [r["tokens"] for r in cold] == [r["tokens"] for r in greedy]
    first, second = (answers(model_dir, prompts, tmp_path / f"{s}", temperature=1.0, seed=s) for s in (0, 1))
    assert [r["tokens"] for r in first] != [r["tokens"] for r in second]
    assert "sample" not in greedy[0]


def test_every_sample_is_judged(model_dir: Path, prompts: Path, tmp_path: Path) -> None:
    answers(model_dir, prompts, tmp_path, temperature=1.5, samples=2, prompts=4)
    judge_files([tmp_path / "attack.jsonl"], tmp_path / "verdicts", {"judges": ["arditi-12"]})
    found = read_jsonl(tmp_path / "verdicts/attack.jsonl")
    assert Counter(v["prompt_id"] for v in found) == {f"p{i}": 2 for i in range(4)}


def test_plain_completions_are_greedy(model_dir: Path) -> None:
    model, tokenizer = load_model(model_dir), load_tokenizer(model_dir)
    done = complete(model, tokenizer, [PROMPTS[0]["text"]], SETTINGS, max_new_tokens=6)
    assert done[0].tokens == by_hand(model_dir, PROMPTS[0]["text"])
