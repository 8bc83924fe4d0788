"""What learns refusal again from the dense model's own answers: new calibrations and LoRA tunes, on a tiny model
that refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from holdfast.architectures import decoder_linears
from holdfast.checkpoints import load_model, load_tokenizer
from holdfast.cli import app
from holdfast.compression import compress
from holdfast.compression.pruning import prune
from holdfast.compression.safety_calibration import chosen
from holdfast.errors import HoldfastError
from holdfast.evaluation.generation import complete
from holdfast.evaluation.judges import substring_judge
from holdfast.files import read_json, read_jsonl, write_jsonl
from holdfast.methods.training_answers import Answer, conversations, training_answers
from holdfast.prompts.overlap import EvaluatedText
from refusing import REFUSAL, REPLY, asked, refusing_llama
from safetensors.torch import load_file
from tiny import TEXTS, tiny_tokenizer

WANDA = {"prune": "wanda", "sparsity": 0.6, "samples": 6, "tokens": 64}


def holdfast(*arguments: str) -> str:
    """Run the command in this process; the line that a mistake ends in, or nothing."""
    try:
        app(arguments, standalone_mode=False)
    except HoldfastError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A dense model that refuses, its answers to training prompts by the command, texts, evaluated prompts."""
    root = tmp_path_factory.mktemp("relearning")
    refusing_llama(root / "dense")
    for kind in ("harmful", "harmless"):
        for name, count, seed in (("train", 32, 1), ("attack", 24, 2)):
            texts = asked(kind, count, seed)
            path = root / f"{kind}_{name}.jsonl"
            write_jsonl(path, [{"id": f"{kind}-{i}", "text": t} for i, t in enumerate(texts)])
    # A training prompt that says again what is evaluated, as collections of prompts do.
    repeated = read_jsonl(root / "harmful_attack.jsonl")[3]["text"]
    lines = [*read_jsonl(root / "harmful_train.jsonl"), {"id": "again", "text": f"{repeated} home"}]
    write_jsonl(root / "harmful_train.jsonl", lines)
    texts = [" ".join(TEXTS[(i + j) % len(TEXTS)] for j in range(4)) for i in range(24)]
    write_jsonl(root / "calibration.jsonl", [{"text": text} for text in texts])
    told = holdfast(
        "generate", str(root / "dense"), str(root / "answers"),
        "--prompts", f"harmful={root / 'harmful_train.jsonl'}",
        "--prompts", f"harmless={root / 'harmless_train.jsonl'}",
        "--recipe", '{"max_new_tokens": 24, "batch_size": 16}',
    )  # fmt: skip
    assert not told
    return {path.stem: path for path in [*root.iterdir(), *(root / "answers").glob("*.jsonl")]}


def recalibrate(made: dict[str, Path], out: Path, recipe: dict[str, Any], **files: Path) -> str:
    given = {"calibration": made["calibration"], "answers": made["harmful"]} | files
    told = holdfast(
        "recalibrate", str(made["dense"]), str(out),
        *(f"--{name}={path}" for name, path in given.items()),
        f"--evaluated=attack={made['harmful_attack']}", f"--evaluated={made['harmless_attack']}",
        "--recipe", json.dumps(recipe),
    )  # fmt: skip
    assert out.exists() != bool(told)
    return told


def tune(made: dict[str, Path], source: Path, out: Path, recipe: dict[str, Any], **files: Path) -> str:
    given = {"harmful-answers": made["harmful"], "harmless-answers": made["harmless"]} | files
    told = holdfast(
        "tune", str(source), str(out), *(f"--{name}={path}" for name, path in given.items()),
        f"--evaluated={made['harmful_attack']}", f"--evaluated={made['harmless_attack']}",
        "--recipe", json.dumps({"tune": "lora", "steps": 40, "learning_rate": 2e-3} | recipe),
    )  # fmt: skip
    assert out.exists() != bool(told)
    return told


def refused(made: dict[str, Path], folder: Path, kind: str) -> float:
    """The share of held-out prompts that a checkpoint refuses."""
    texts = [p["text"] for p in read_jsonl(made[f"{kind}_attack"])]
    judge = substring_judge("arditi-12")
    done = complete(load_model(folder), load_tokenizer(folder), texts, {}, max_new_tokens=16, batch_size=24)
    return sum(judge.refused(c.text, c.finish_reason) for c in done) / len(done)


# ---- the dense model's answers


def test_answers_are_chosen_by_label_and_hold_no_evaluated_text(made: dict[str, Path]) -> None:
    evaluated = EvaluatedText({"attack": made["harmful_attack"]})
    answers, counts = training_answers(made["harmful"], "refused", "arditi-12", evaluated)
    assert counts == {"prompts": 33, "labelled": 33, "evaluated": 1, "used": 32}
    assert [a.prompt for a in answers] == [r["prompt"] for r in read_jsonl(made["harmful"])[:-1]]
    assert all(a.ended for a in answers)
    with pytest.raises(HoldfastError, match="answered none of the 33 prompts"):
        training_answers(made["harmful"], "answered", "arditi-12", evaluated)


def test_a_conversation_is_the_chat_template_with_one_beginning_and_the_answer_as_it_was() -> None:
    tokenizer = tiny_tokenizer()
    # A tokenizer that begins texts by itself, as Llama's do, and whose template begins chats.
    begin = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", begin)]
    )
    tokenizer.chat_template = "<|endoftext|>" + tokenizer.chat_template
    assert tokenizer("snow")["input_ids"][0] == begin
    answers = [Answer("snow", [43, 316], True), Answer("the river", [43], False)]
    for answer, (ids, labels) in zip(answers, conversations(tokenizer, answers, {}), strict=True):
        said = [*answer.tokens, tokenizer.eos_token_id] if answer.ended else answer.tokens
        assert ids.count(begin) == 1
        assert ids[0] == begin
        assert tokenizer.decode(ids[: -len(said)]) == (
            f"<|endoftext|><|im_start|>user\n{answer.prompt}<|im_end|>\n<|im_start|>assistant\n"
        )
        assert (
            labels
            == [-100] * (len(ids) - len(said)) + said
            == [-100] * (len(ids) - len(said)) + ids[-len(said) :]
        )


# ---- new calibrations


def test_chats_fill_the_place_of_the_texts_they_replace() -> None:
    chats = [[i] * n for i, n in enumerate((30, 80, 10, 25, 40))]
    taken = chosen(chats, tokens=40, budget=100, seed=3)
    assert all(t.shape[0] == 1 and t.shape[1] <= 40 for t in taken)
    assert 60 < sum(t.shape[1] for t in taken) <= 100
    assert [t.tolist() for t in taken] == [t.tolist() for t in chosen(chats, tokens=40, budget=100, seed=3)]
    assert len({int(t[0, 0]) for t in chosen(chats, tokens=40, budget=1000, seed=3)}) == 5
    assert len(chosen(chats, tokens=40, budget=1, seed=3)) == 1


def test_a_new_calibration_is_the_same_pruning_on_text_and_refusals(
    made: dict[str, Path], tmp_path: Path
) -> None:
    recipe = {"recalibrate": "refusals", "share": 0.5, "compress": WANDA}
    recalibrate(made, tmp_path / "again", recipe)
    record = read_json(tmp_path / "again/provenance.json")
    about = record["calibration"]
    assert record["density"] == pytest.approx(0.4, abs=0.01)
    assert about["answers"] == {"prompts": 33, "labelled": 33, "evaluated": 1, "used": 32}
    assert about["chats"]["sequences"] == about["sequences"] - 3
    assert 0.5 * 3 * 64 < about["chats"]["tokens"] <= 3 * 64
    # The same weights from the same sequences, put together here.
    tokenizer, model = load_tokenizer(made["dense"]), load_model(made["dense"])
    from holdfast.compression.calibration import sequences

    texts = sequences(made["calibration"], tokenizer, samples=6, tokens=64, seed=0)[:3]
    said = training_answers(
        made["harmful"], "refused", "arditi-12", EvaluatedText({"attack": made["harmful_attack"]})
    )[0]
    chats = chosen([ids for ids, _ in conversations(tokenizer, said, {})], tokens=64, budget=192, seed=0)
    assert "".join(tokenizer.decode(chats[0][0])).endswith(f"assistant\n{REFUSAL}<|im_end|>")
    prune(model, record["recipe"]["compress"], [*texts, *chats])
    stored = load_file(tmp_path / "again/model.safetensors")
    for name, linear in decoder_linears(model).items():
        assert torch.equal(stored[f"{name}.weight"], linear.weight)
    # The control has the dense model's answers in their place, and other masks.
    recalibrate(made, tmp_path / "control", recipe | {"recalibrate": "answers"}, answers=made["harmless"])
    name = "model.layers.1.mlp.down_proj.weight"
    assert not torch.equal(stored[name], load_file(tmp_path / "control/model.safetensors")[name])


@pytest.mark.parametrize(
    "method",
    [
        {"quantize": "gptq", "bits": 4, "group_size": 32},
        {"quantize": "awq", "bits": 4, "group_size": 32},
        {"quantize": "smoothquant"},
        {"quantize": "fp8", "activations": "static"},
        {"prune": "sparsegpt", "pattern": "2:4"},
    ],
    ids=lambda m: m.get("quantize") or m["prune"],
)
def test_every_calibrated_method_takes_chats(
    made: dict[str, Path], tmp_path: Path, method: dict[str, Any]
) -> None:
    recipe = {"recalibrate": "refusals", "compress": method | {"samples": 8, "tokens": 64}}
    assert not recalibrate(made, tmp_path / "again", recipe)
    assert load_model(tmp_path / "again").config.hidden_size == 64
    assert read_json(tmp_path / "again/provenance.json")["calibration"]["chats"]["sequences"] > 1


# ---- refusal tunes


def test_a_tune_brings_refusal_back_and_its_control_does_not(made: dict[str, Path], tmp_path: Path) -> None:
    compress(made["dense"], tmp_path / "pruned", {"prune": "magnitude", "sparsity": 0.7})
    assert refused(made, made["dense"], "harmful") == 1
    before = refused(made, tmp_path / "pruned", "harmful")
    tune(made, tmp_path / "pruned", tmp_path / "tuned", {})
    tune(made, tmp_path / "pruned", tmp_path / "control", {"data": "answers"})
    assert refused(made, tmp_path / "tuned", "harmful") >= 0.9 > before
    assert refused(made, tmp_path / "tuned", "harmless") <= 0.1
    assert refused(made, tmp_path / "control", "harmful") <= before + 0.1
    about = read_json(tmp_path / "tuned/tuning.json")
    assert len(about["losses"]) == 40
    assert about["losses"][-1] < 0.5 * about["losses"][0]
    assert about["refusals"] == {"prompts": 33, "labelled": 33, "evaluated": 1, "used": 32}
    assert "refusals" not in read_json(tmp_path / "control/tuning.json")
    record = read_json(tmp_path / "tuned/provenance.json")
    assert record["density"] == 1
    assert record["recipe"]["rank"] == 8
    # Embeddings, norms and all that is not a linear of the decoder keep their bits.
    old, new = (load_file(tmp_path / name / "model.safetensors") for name in ("pruned", "tuned"))
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed == {f"{name}.weight" for name in decoder_linears(load_model(tmp_path / "tuned"))}


def test_a_tune_is_reproducible_and_of_low_rank(made: dict[str, Path], tmp_path: Path) -> None:
    for name, recipe in {"one": {}, "two": {}, "other": {"seed": 1}}.items():
        tune(made, made["dense"], tmp_path / name, {"steps": 3, "rank": 2} | recipe)
    dense, one, two, other = (
        load_file(folder / "model.safetensors")
        for folder in (made["dense"], tmp_path / "one", tmp_path / "two", tmp_path / "other")
    )
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"):
        assert torch.equal(one[name], two[name])
        assert not torch.equal(one[name], other[name])
        values = torch.linalg.svdvals((one[name] - dense[name]).double())
        assert values[1] > 1e-7
        assert values[2] < 1e-3 * values[1]


@pytest.mark.parametrize(
    "method",
    [
        {"quantize": "rtn", "bits": 4, "group_size": 32},
        {"quantize": "smoothquant"},
        {"quantize": "llm-int8"},
        {"quantize": "nf4"},
    ],
    ids=lambda m: m["quantize"],
)
def test_quantized_checkpoints_are_tuned_dense_or_quantized_again(
    made: dict[str, Path], tmp_path: Path, method: dict[str, Any]
) -> None:
    compress(made["dense"], tmp_path / "quantized", method, made["calibration"])
    source = read_json(tmp_path / "quantized/provenance.json")
    for name, again in (("dense", False), ("again", True)):
        tune(made, tmp_path / "quantized", tmp_path / name, {"requantize": again})
        assert refused(made, tmp_path / name, "harmful") >= 0.9
        assert refused(made, tmp_path / name, "harmless") <= 0.1
        bits = read_json(tmp_path / name / "provenance.json")["bits_per_weight"]
        assert bits == pytest.approx(source["bits_per_weight"], abs=0.01) if again else bits >= 16
    assert (
        read_json(tmp_path / "dense/tuning.json")["losses"]
        == read_json(tmp_path / "again/tuning.json")["losses"]
    )


# ---- mistakes


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (
            {"recalibrate": "refusals", "compress": {"prune": "magnitude", "sparsity": 0.5}},
            "is not calibrated",
        ),
        ({"recalibrate": "refusals", "share": 0.01, "compress": WANDA}, "share 0.01 of 6 sequences is 0"),
        ({"recalibrate": "refusals", "compress": WANDA | {"sparsity": 3}}, "sparsity"),
        ({"recalibrate": "refusal", "compress": WANDA}, "'refusal' is not known; did you mean refusals?"),
        ({"recalibrate": "refusals", "judge": "none", "compress": WANDA}, "unknown judge 'none'"),
        ({"recalibrate": "answers", "compress": WANDA}, "answered none of the 33 prompts"),
    ],
)
def test_a_bad_new_calibration_is_told_in_one_line(
    made: dict[str, Path], tmp_path: Path, recipe: dict[str, Any], message: str
) -> None:
    told = recalibrate(made, tmp_path / "out", recipe)
    assert message in told
    assert len(told.splitlines()) == 1


def test_bad_answers_and_rates_are_told_in_one_line(made: dict[str, Path], tmp_path: Path) -> None:
    mistakes: list[tuple[dict[str, Any], dict[str, Path], str]] = [
        ({"rank": 0}, {}, "rank: 0 is out of range"),
        ({}, {"harmful-answers": tmp_path / "none.jsonl"}, "none.jsonl: no such file"),
        ({}, {"harmful-answers": made["harmful_train"]}, "record 1: has no prompt_id"),
        ({}, {"harmful-answers": made["harmless"]}, "refused none of the 32 prompts"),
        ({"learning_rate": 1e30}, {}, "the loss is not finite after"),
    ]
    for recipe, files, message in mistakes:
        told = tune(made, made["dense"], tmp_path / "out", {"steps": 12} | recipe, **files)
        assert message in told
        assert len(told.splitlines()) == 1
    assert REPLY in read_jsonl(made["harmless"])[0]["completion"]
