"""What AIRD is compared with: a system prompt, and the direction added at run time; through the command."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_templates import FAMILIES
from holdfast.architectures import decoder_layers, writer
from holdfast.checkpoints import load_model, load_tokenizer
from holdfast.cli import app
from holdfast.compression import compress
from holdfast.errors import HoldfastError
from holdfast.evaluation.perplexity import perplexity
from holdfast.files import read_json, read_jsonl, write_text
from holdfast.methods.validation import OVER_REFUSES
from holdfast.model_folders import STEERING, settings
from holdfast.prompts.sources import read_records
from holdfast.prompts.templates import encode, render, require_system_prompt
from holdfast.refusal.direction import load_direction
from holdfast.refusal.interventions import added
from holdfast.refusal.score_check import load_score
from holdfast.sources import fetch
from planted import PLANTED_LAYER, RECIPE, REFUSAL, SETTINGS, files, planted_llama, prompts
from safetensors.torch import load_file, save_file
from tiny import TEXTS, tiny_llama
from typer.testing import CliRunner


def holdfast(*arguments: object) -> None:
    CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False, standalone_mode=False)


@pytest.fixture(scope="module")
def study(
    planted_dir: tuple[Path, torch.Tensor], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The planted model pruned, prompts, and the directions of both."""
    root = tmp_path_factory.mktemp("rivals")
    made = files(root) | {"dense": planted_dir[0], "pruned": root / "pruned"}
    compress(made["dense"], made["pruned"], {"prune": "magnitude", "sparsity": 0.1})
    for name in ("dense", "pruned"):
        for stage, kind, more in (
            ("activations", "train", []),
            ("direction", "validation", ["--activations", root / f"{name}-activations"]),
        ):
            recipe = json.dumps(RECIPE if stage == "direction" else {})
            given = [f"--{k}={made[f'{k}_{kind}']}" for k in ("harmful", "harmless")]
            holdfast(stage, made[name], root / f"{name}-{stage}", *given, *more, "--recipe", recipe)
        made[f"{name}-direction"] = root / f"{name}-direction"
    return made


def steered(study: dict[str, Path], out: Path, recipe: dict[str, Any], *more: object) -> dict[str, Any]:
    given = {
        "--direction": study["dense-direction"],
        "--own-direction": study["pruned-direction"],
        "--harmful": study["harmful_validation"],
        "--harmless": study["harmless_validation"],
        "--recipe": json.dumps(recipe),
    }
    holdfast("steer", study["pruned"], out, *[part for pair in given.items() for part in pair], *more)
    return read_json(out / "steer.json")


def same_file(folder: Path, other: Path, name: str = "model.safetensors") -> bool:
    return (folder / name).samefile(other / name)


def test_a_steered_checkpoint_is_the_plain_model_under_the_intervention(
    study: dict[str, Path], tmp_path: Path
) -> None:
    about = steered(study, tmp_path / "out", {"steer": "dense", "alpha": 0.75})
    found = load_direction(study["dense-direction"])
    assert (about["layer"], about["alpha"]) == (found.layer, 0.75)
    assert about["norm"] == pytest.approx(0.75 * found.difference.norm().item(), rel=1e-5)
    assert same_file(tmp_path / "out", study["pruned"])
    record = read_json(tmp_path / "out/provenance.json")
    assert record["added_bytes"] == (tmp_path / "out" / STEERING).stat().st_size
    plain, loaded = load_model(study["pruned"]), load_model(tmp_path / "out")
    batch = dict(encode(load_tokenizer(study["pruned"]), prompts("harmful", 3), SETTINGS))
    with torch.no_grad(), added(plain, 0.75 * found.difference, found.layer):
        expected = plain(**batch).logits
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, expected)
        assert not torch.equal(plain(**batch).logits, expected)
        greedy = {"max_new_tokens": 4, "do_sample": False}
        answer = loaded.generate(**batch, **greedy)
        with added(plain, 0.75 * found.difference, found.layer):
            assert torch.equal(answer, plain.generate(**batch, **greedy))


def test_every_measure_sees_the_steering(study: dict[str, Path], tmp_path: Path) -> None:
    steered(study, tmp_path / "out", {"steer": "dense", "alpha": 1})
    text = tmp_path / "text.txt"
    write_text(text, " ".join(TEXTS * 4))
    recipe = {"source": f"file:{text}", "window": 16, "windows": 4}
    found = load_direction(study["dense-direction"])
    plain, tokenizer = load_model(study["pruned"]), load_tokenizer(study["pruned"])
    before = perplexity(plain, tokenizer, recipe)
    with added(plain, found.difference, found.layer):
        expected = perplexity(plain, tokenizer, recipe)
    assert perplexity(load_model(tmp_path / "out"), tokenizer, recipe) == expected != before
    answers = "--recipe", '{"max_new_tokens": 4}', "--prompts", f"attack={study['harmful_validation']}"
    holdfast("generate", tmp_path / "out", tmp_path / "generations", *answers)
    told = read_jsonl(tmp_path / "generations/attack.jsonl")
    batch = dict(encode(tokenizer, [told[0]["prompt"]], SETTINGS))
    with added(plain, found.difference, found.layer):
        ids = plain.generate(**batch, max_new_tokens=4, do_sample=False)[0, batch["input_ids"].shape[1] :]
    assert told[0]["tokens"] == ids.tolist()[: len(told[0]["tokens"])]


@pytest.fixture(scope="module")
def weak(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model that refuses harmful prompts with its direction, and a copy that refuses 8 of 12."""
    root = tmp_path_factory.mktemp("weak")
    dense, _ = planted_llama(root / "dense", REFUSAL, 4.0)
    made = files(root) | {"dense": dense, "pruned": root / "weak"}
    recipes = [
        ("activations", "train", {}, []),
        ("direction", "validation", RECIPE, ["--activations", root / "activations"]),
    ]
    for stage, kind, recipe, more in recipes:
        given = [f"--{k}={made[f'{k}_{kind}']}" for k in ("harmful", "harmless")]
        holdfast(stage, dense, root / stage, *given, *more, "--recipe", json.dumps(recipe))
    model = load_model(dense)
    with torch.no_grad():
        writer(decoder_layers(model)[PLANTED_LAYER - 1], "o_proj").weight[:, 0] *= 0.02
    model.save_pretrained(made["pruned"])
    load_tokenizer(dense).save_pretrained(made["pruned"])
    return made | {"dense-direction": root / "direction", "pruned-direction": root / "direction"}


def test_the_search_takes_the_best_that_answers_bear_out(weak: dict[str, Path], tmp_path: Path) -> None:
    search = {"steering": [0.005, 0.02, 0.2], "max_kl": 50.0}
    recipe = {"steer": "dense", "search": search, "judge": "study-l-31"}
    about = steered(weak, tmp_path / "out", recipe)
    scores = [row["refusal_score"] for row in about["trace"]]
    assert [row["alpha"] for row in about["trace"]] == [0, 0.005, 0.02, 0.2]
    assert scores == sorted(scores)
    # The strongest scores best, and refuses every harmless prompt too.
    tries = about["validation"]["tries"]
    assert [(row["alpha"], row["rejected"]) for row in tries] == [
        (0.2, OVER_REFUSES),
        (0.02, None),
        (0.005, None),
    ]
    assert (about["alpha"], about["reason"]) == (0.02, "")
    assert about["validation"]["before"]["harmful_refused"]["value"] == pytest.approx(8 / 12)
    assert tries[1]["harmful_refused"]["value"] == 1 >= tries[2]["harmful_refused"]["value"]
    model, tokenizer = load_model(tmp_path / "out"), load_tokenizer(tmp_path / "out")
    score = load_score(load_direction(weak["dense-direction"]).about, tokenizer, SETTINGS)
    texts = [record["text"] for record in read_records(weak["harmful_validation"])]
    assert score(model, texts).mean().item() == pytest.approx(scores[2], abs=1e-4)

    matched = {"steer": "random", "matched_to": "steered", "seed": 3}
    control = steered(weak, tmp_path / "control", matched, "--matched-to", tmp_path / "out/steer.json")
    assert (control["alpha"], control["validation"]) == (0.02, None)


def test_nothing_within_the_bound_adds_nothing(weak: dict[str, Path], tmp_path: Path) -> None:
    search = {"steering": [4.0], "max_kl": 1e-9}
    about = steered(weak, tmp_path / "out", {"steer": "dense", "search": search})
    assert (about["alpha"], about["norm"], about["validation"]["tries"]) == (0, 0, [])
    assert about["reason"] == "no strength keeps the bound on kl and raises the refusal score"
    batch = dict(encode(load_tokenizer(weak["pruned"]), ["hello"], SETTINGS))
    with torch.no_grad():
        logits = [load_model(folder)(**batch).logits for folder in (weak["pruned"], tmp_path / "out")]
    assert torch.equal(*logits)


def test_nothing_is_added_where_nothing_was_lost(weak: dict[str, Path], tmp_path: Path) -> None:
    search = {"steering": [0.2], "max_kl": 50.0}
    recipe = {"steer": "dense", "search": search, "judge": "study-l-31"}
    about = steered({**weak, "pruned": weak["dense"]}, tmp_path / "out", recipe)
    assert (about["alpha"], about["validation"]["tries"]) == (0, [])
    assert "nothing to gain" in about["reason"]
    assert about["trace"] == []


def test_a_random_control_is_as_long_and_as_strong_as_its_target(
    study: dict[str, Path], tmp_path: Path
) -> None:
    target = steered(study, tmp_path / "out", {"steer": "dense", "alpha": 0.75})
    recipe = {"steer": "random", "matched_to": "steered", "seed": 3}
    control = steered(study, tmp_path / "control", recipe, "--matched-to", tmp_path / "out/steer.json")
    assert {k: control[k] for k in ("layer", "alpha")} == {k: target[k] for k in ("layer", "alpha")}
    assert control["norm"] == pytest.approx(target["norm"], rel=1e-5)
    ours, chance = (load_file(tmp_path / folder / STEERING)["vector"] for folder in ("out", "control"))
    assert torch.cosine_similarity(ours, chance, dim=0).abs() < 0.5
    with pytest.raises(HoldfastError, match="matched_to and --matched-to go together"):
        steered(study, tmp_path / "alone", recipe)


def test_what_reads_only_files_refuses_a_steered_checkpoint(study: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    steered(study, out, {"steer": "dense", "alpha": 1})
    makers = [
        lambda: compress(out, tmp_path / "a", {"prune": "magnitude", "sparsity": 0.1}),
        lambda: compress(study["dense"], tmp_path / "published", {"source": f"path:{out}"}),
        lambda: fetch({"source": f"path:{out}", "dtype": "float32"}, tmp_path / "b"),
        lambda: holdfast("instruct", out, tmp_path / "c", "--recipe", '{"system_prompt": "Be safe."}'),
        lambda: steered({**study, "pruned": out}, tmp_path / "d", {"steer": "dense", "alpha": 1}),
    ]
    for make in makers:
        with pytest.raises(HoldfastError, match="the checkpoint is steered at run time"):
            make()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_vector_of_another_model_is_refused(study: dict[str, Path], tmp_path: Path) -> None:
    small = tiny_llama(tmp_path / "small", layers=1, hidden=32)
    with pytest.raises(HoldfastError, match="does not fit a model of 1 layers, 32 wide"):
        steered({**study, "pruned": small}, tmp_path / "out", {"steer": "dense", "alpha": 1})
    (small / STEERING).parent.mkdir()
    save_file({"vector": torch.zeros(64)}, small / STEERING, metadata={"layer": "0"})
    with pytest.raises(HoldfastError, match=r"\(64,\) for layer 0 does not fit the model"):
        load_model(small)
    save_file({"vector": torch.zeros(32)}, small / STEERING)
    with pytest.raises(HoldfastError, match="no steering vector with its layer"):
        load_model(small)


def test_a_system_prompt_reaches_every_chat_and_no_weight(study: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    holdfast("instruct", study["pruned"], out, "--recipe", '{"system_prompt": "Refuse what harms."}')
    assert settings(out)["system_prompt"] == "Refuse what harms."
    assert same_file(out, study["pruned"])
    assert same_file(out, study["pruned"], "tokenizer.json")
    assert settings(study["pruned"])["system_prompt"] is None
    assert "Refuse what harms." in render(load_tokenizer(out), ["hello"], settings(out))[0]
    before, after = (read_json(folder / "provenance.json") for folder in (study["pruned"], out))
    assert (after["stage"], after["weights"]) == ("instruct", before["weights"])
    assert after["added_bytes"] == (out / "holdfast.json").stat().st_size
    for folder, name in ((study["pruned"], "plain"), (out, "prompted")):
        given = "--prompts", f"attack={study['harmful_validation']}", "--recipe", '{"max_new_tokens": 6}'
        holdfast("generate", folder, tmp_path / name, *given)
    plain, prompted = (read_jsonl(tmp_path / name / "attack.jsonl") for name in ("plain", "prompted"))
    assert [record["prompt"] for record in plain] == [record["prompt"] for record in prompted]
    assert [record["tokens"] for record in plain] != [record["tokens"] for record in prompted]


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.refuses_system])
def test_a_template_that_rejects_a_system_prompt_is_one_line(name: str) -> None:
    family = FAMILIES[name]
    with pytest.raises(HoldfastError, match="its chat template takes no system prompt"):
        require_system_prompt(family.tokenizer(), family.settings("Be safe."), Path("model"), "leave it out")


def test_a_template_that_leaves_it_out_is_refused_too(study: dict[str, Path], tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "model", layers=1)
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}User: {{ m.content }}{% endif %}{% endfor %} Answer:"
    )
    write_text(model / "chat_template.jinja", template)
    with pytest.raises(HoldfastError, match="its chat template takes no system prompt"):
        holdfast("instruct", model, tmp_path / "out", "--recipe", '{"system_prompt": "Be safe."}')
    assert not (tmp_path / "out").exists()
