"""Activations, interventions, scores and the direction, against ground truth."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from holdfast.architectures import decoder_layers, mlp
from holdfast.checkpoints import load_model, load_tokenizer
from holdfast.errors import HoldfastError
from holdfast.files import read_json, read_jsonl
from holdfast.prompts.templates import encode
from holdfast.refusal.activations import block_inputs, cache_activations, load_activations
from holdfast.refusal.direction import find_direction
from holdfast.refusal.interventions import ablated, added, random_unit
from holdfast.refusal.mediation import mediate
from holdfast.refusal.scores import RefusalScore, kl_divergence, learn_openings
from holdfast.refusal.selection import choose
from planted import PLANTED_LAYER, RECIPE, SETTINGS, files, prompts, studied
from safetensors.torch import load_file, save_file
from tiny import TEXTS, tiny_llama


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model") / "tiny", layers=6)


def test_batched_activations_equal_one_by_one(model_dir: Path) -> None:
    model, tokenizer = load_model(model_dir), load_tokenizer(model_dir)
    texts = [*prompts("harmful", 5), *TEXTS[:4]]
    batched = block_inputs(model, tokenizer, texts, SETTINGS, batch_size=9)
    single = torch.cat([block_inputs(model, tokenizer, [t], SETTINGS, batch_size=1) for t in texts])
    assert torch.allclose(batched, single, atol=1e-5)
    assert not torch.allclose(batched[0], batched[1], atol=1e-3)


def test_the_cache_holds_every_prompt_in_its_place(model_dir: Path, tmp_path: Path) -> None:
    made = files(tmp_path, train=40)  # two batches, sorted by length within the stage
    cache_activations(model_dir, tmp_path / "out", made["harmful_train"], made["harmless_train"], {})
    cached, positions = load_activations(tmp_path / "out")
    model, tokenizer = load_model(model_dir), load_tokenizer(model_dir)
    for kind in ("harmful", "harmless"):
        whole = block_inputs(model, tokenizer, prompts(kind, 40), SETTINGS)
        assert torch.equal(cached[kind], whole)
    assert cached["harmful"].shape[1] == len(positions["positions"])


def test_activations_are_block_inputs_not_outputs(model_dir: Path) -> None:
    model, tokenizer = load_model(model_dir), load_tokenizer(model_dir)
    batch = encode(tokenizer, ["hello"], SETTINGS)
    found = block_inputs(model, tokenizer, ["hello"], SETTINGS)
    embedded = model.get_input_embeddings()(batch["input_ids"])
    assert torch.equal(found[0, :, 0], embedded[0, -found.shape[1] :])
    hidden = model(**batch, output_hidden_states=True).hidden_states
    for layer in range(6):
        assert torch.allclose(found[0, :, layer], hidden[layer][0, -found.shape[1] :], atol=1e-5)


def test_ablation_leaves_no_component_anywhere(model_dir: Path) -> None:
    model, tokenizer = load_model(model_dir), load_tokenizer(model_dir)
    r = random_unit(torch.zeros(64), 3)
    seen: list[torch.Tensor] = []
    hooks = [model.base_model.norm.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))]
    for layer in decoder_layers(model):
        hooks += [mlp(layer).register_forward_pre_hook(lambda _m, args: None)]
    batch = encode(tokenizer, list(TEXTS[:3]), SETTINGS)
    plain = model(**batch).logits
    with ablated(model, r):
        changed = model(**batch).logits
    assert (seen[0] @ r).abs().max() > 0.05
    assert (seen[1] @ r).abs().max() < 1e-5
    assert (changed - plain).abs().max() > 1e-3
    assert torch.equal(model(**batch).logits, plain)  # every hook is gone again
    for hook in hooks:
        hook.remove()


def test_affine_ablation_gives_back_the_harmless_component(model_dir: Path) -> None:
    model, tokenizer = load_model(model_dir), load_tokenizer(model_dir)
    r = random_unit(torch.zeros(64), 3)
    mean = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    batch = encode(tokenizer, list(TEXTS[:3]), SETTINGS)
    seen: list[torch.Tensor] = []
    with ablated(model, r, mean):
        layer = decoder_layers(model)[4]
        hook = layer.register_forward_pre_hook(lambda _m, args, kw: seen.append(args[0]), with_kwargs=True)
        model(**batch)
        hook.remove()
    assert torch.allclose(seen[0] @ r, (mean[4] @ r).expand_as(seen[0] @ r), atol=1e-4)


def test_one_direction_a_row_equals_one_direction_a_pass(model_dir: Path) -> None:
    model, tokenizer = load_model(model_dir), load_tokenizer(model_dir)
    batch = encode(tokenizer, ["the same text", "the same text"], SETTINGS)
    rows = torch.stack([random_unit(torch.zeros(64), i) for i in (1, 2)])
    with ablated(model, rows):
        both = model(**batch).logits
    for i in (0, 1):
        with ablated(model, rows[i]):
            assert torch.allclose(model(**batch).logits[i], both[i], atol=1e-5)


def test_addition_moves_one_block_input_by_the_vector(model_dir: Path) -> None:
    model, tokenizer = load_model(model_dir), load_tokenizer(model_dir)
    vector = torch.randn(64, generator=torch.Generator().manual_seed(0))
    before = block_inputs(model, tokenizer, ["hello there"], SETTINGS)
    seen: list[torch.Tensor] = []
    with added(model, vector, 3):
        layer = decoder_layers(model)[3]
        hook = layer.register_forward_pre_hook(lambda _m, args, kw: seen.append(args[0]), with_kwargs=True)
        model(**encode(tokenizer, ["hello there"], SETTINGS))
        hook.remove()
    positions = before.shape[1]
    assert torch.allclose(seen[0][0, -positions:], before[0, :, 3] + vector, atol=1e-5)


def test_planted_direction_is_found_again(planted_dir: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    folder, r = planted_dir
    made = files(tmp_path)
    activations, out = tmp_path / "activations", tmp_path / "direction"
    cache_activations(folder, activations, made["harmful_train"], made["harmless_train"], {})
    found = find_direction(
        folder, out, activations, made["harmful_validation"], made["harmless_validation"], RECIPE
    )
    assert found.usable
    assert found.layer >= PLANTED_LAYER  # before that block nothing has reached the template's positions
    assert abs(found.unit @ r) > 0.95
    table = pd.read_csv(out / "selection.csv", keep_default_na=False)
    assert table["chosen"].astype(str).eq("True").sum() == 1
    assert (table.loc[table["layer"] >= 4, "dropped"] == "last 20 % of the layers").all()
    assert found.about["chosen"]["bypass"] < found.about["baseline"]["harmful"] - 1
    assert found.about["chosen"]["induce"] > found.about["baseline"]["harmless"] + 1
    kept = load_file(out / "direction.safetensors")
    assert kept["direction"].dtype == torch.float32


def test_random_direction_does_not_do_what_the_planted_one_does(
    planted_dir: tuple[Path, torch.Tensor], tmp_path: Path
) -> None:
    folder, r = planted_dir
    made, out = studied(folder, tmp_path), tmp_path / "mediation"
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    score = RefusalScore(
        tokenizer, SETTINGS, [tokenizer("I", add_special_tokens=False)["input_ids"]], "first-token"
    )
    harmful = prompts("harmful", 8, 200)
    base = score(model, harmful).mean()
    with ablated(model, r):
        ours = score(model, harmful).mean()
    with ablated(model, random_unit(r, 5)):
        random = score(model, harmful).mean()
    assert base - ours > 4 * abs(base - random)
    settings = {
        "prompts": 4,
        "max_new_tokens": 4,
        "random_seeds": 2,
        "seed": 0,
        "ablation": "plain",
        "judge": "arditi-12",
    }
    held_out = made["harmful_validation"], made["harmless_validation"]
    mediate(folder, out, made["direction"], *held_out, settings, dense_direction_dir=made["direction"])
    answers = read_jsonl(out / "answers.jsonl")
    assert len(answers) == len(read_jsonl(out / "verdicts.jsonl")) == 4 * (2 + (1 + 1 + 2) + (1 + 1 + 2 + 2))
    said = {
        name: [a["completion"] for a in answers if a["intervention"] == name]
        for name in ("ablate", "ablate-dense", "add", "add-dense", "add-random", "add-dense-random")
    }
    assert said["ablate"] == said["ablate-dense"]  # here the two directions are one
    assert said["add"] == said["add-dense"]
    assert said["add-random"] == said["add-dense-random"]


def test_what_is_added_at_random_is_as_long_as_what_it_controls(
    planted_dir: tuple[Path, torch.Tensor], tmp_path: Path
) -> None:
    folder, _ = planted_dir
    made = studied(folder, tmp_path)
    recipe = {"prompts": 2, "max_new_tokens": 4, "random_seeds": 1, "seed": 0}
    lengths = {"own": 50.0, "dense": 1e-6}  # one drowns every answer, the other does nothing
    for name, length in lengths.items():
        shutil.copytree(made["direction"], tmp_path / name)
        tensors = load_file(tmp_path / name / "direction.safetensors")
        tensors["mean_difference"] *= length / tensors["mean_difference"].norm()
        save_file(tensors, tmp_path / name / "direction.safetensors")
    mediate(
        folder,
        tmp_path / "mediation",
        tmp_path / "own",
        made["harmful_validation"],
        made["harmless_validation"],
        {**recipe, "ablation": "plain", "judge": "arditi-12"},
        dense_direction_dir=tmp_path / "dense",
    )
    said: dict[str, list[str]] = {}
    for answer in read_jsonl(tmp_path / "mediation/answers.jsonl"):
        if answer["set"] == "harmless":
            said.setdefault(answer["intervention"], []).append(answer["completion"])
    assert said["add-dense"] == said["add-dense-random"] == said["baseline"]
    assert said["add-random"] != said["baseline"]


def test_no_usable_candidate_is_a_result_not_a_crash(model_dir: Path, tmp_path: Path) -> None:
    made = files(tmp_path)
    activations, out = tmp_path / "activations", tmp_path / "direction"
    cache_activations(model_dir, activations, made["harmful_train"], made["harmless_train"], {})
    strict = {**RECIPE, "max_kl": -1.0, "layers": [1, 2], "positions": [-1]}
    found = find_direction(
        model_dir, out, activations, made["harmful_validation"], made["harmless_validation"], strict
    )
    assert not found.usable
    assert "filtered out" in read_json(out / "direction.json")["reason"]
    with pytest.raises(HoldfastError, match="no candidate"):
        choose(
            pd.DataFrame([(-1, 0, 0.0, 1.0, 9.0)], columns=["position", "layer", "bypass", "induce", "kl"]),
            10,
        )


def test_phrase_score_is_the_probability_of_the_phrases(model_dir: Path) -> None:
    model, tokenizer = load_model(model_dir), load_tokenizer(model_dir)
    openings = [
        tokenizer(t, add_special_tokens=False)["input_ids"][:n] for t, n in (("I'm sorry", 3), ("As an", 2))
    ]
    texts = list(TEXTS[:4])
    found = RefusalScore(tokenizer, SETTINGS, openings, "phrases")(model, texts)
    for text, value in zip(texts, found, strict=True):
        asked = encode(tokenizer, [text], SETTINGS)["input_ids"][0].tolist()
        total = 0.0
        for opening in openings:
            logits = model(torch.tensor([asked + opening])).logits[0].log_softmax(-1)
            steps = [logits[len(asked) - 1 + i, token] for i, token in enumerate(opening)]
            total += float(torch.stack(steps).sum().exp())
        assert value == pytest.approx(float(torch.logit(torch.tensor(total, dtype=torch.float64))), abs=1e-4)


def test_openings_are_prefix_free(model_dir: Path) -> None:
    tokenizer = load_tokenizer(model_dir)
    said = [[5, 6, 7, 8, 9]] * 3 + [[5, 6]] + [[10, 11, 12, 13]]
    found = learn_openings(said, tokenizer)
    assert [5, 6, 7, 8] in found
    assert not any(a != b and b[: len(a)] == a for a in found for b in found)


def test_kl_of_equal_distributions_is_zero_and_of_known_ones_is_known() -> None:
    p = torch.tensor([[0.5, 0.5]]).log()
    q = torch.tensor([[0.25, 0.75]]).log()
    assert kl_divergence(p, p).item() == pytest.approx(0, abs=1e-9)
    assert kl_divergence(p, q).item() == pytest.approx(0.5 * torch.log(torch.tensor(4 / 3)).item(), abs=1e-6)
