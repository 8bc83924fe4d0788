"""Refusal in vision-language models: scores and activations of prompts with images, and every stage on every family."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from holdfast.architectures import decoder_layers, module_name
from holdfast.checkpoints import load_model, load_tokenizer
from holdfast.compression import compress
from holdfast.config.by_hand import validated
from holdfast.errors import HoldfastError
from holdfast.evaluation.generation import generate
from holdfast.evaluation.judges import judge_files
from holdfast.methods.edit import edit_checkpoint
from holdfast.prompts.images import read_instructions
from holdfast.prompts.processors import Input, collated, model_inputs
from holdfast.prompts.templates import forward_inputs, post_instruction_tokens, render
from holdfast.refusal.activations import block_inputs, cache_activations, load_activations
from holdfast.refusal.candidate_scores import Candidate, Sweep
from holdfast.refusal.comparison import compare
from holdfast.refusal.direction import find_direction
from holdfast.refusal.interventions import ablated, added, random_unit
from holdfast.refusal.mediation import mediate
from holdfast.refusal.modalities import modalities
from holdfast.refusal.scores import RefusalScore, first_answer_token, kl_divergence, log_odds
from safetensors.torch import load_file
from vlms import FAMILIES, records, shown_as, tiny_vlm

OPENINGS = [[40, 41, 42], [40, 50], [60]]


@pytest.fixture(scope="module", params=FAMILIES)
def vlm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vlm(request.param, tmp_path_factory.mktemp(request.param) / "model")


def naive_score(model: Any, tokenizer: Any, asked: Any) -> float:
    """The log-odds of OPENINGS, each run as a whole sequence of its own without padding."""
    total = torch.zeros((), dtype=torch.float64)
    shown = model_inputs(tokenizer, render(tokenizer, [asked], {}), [asked])[0]
    for opening in OPENINGS:
        types = {name: [*of, *[0] * len(opening)] for name, of in shown.types.items()}
        batch = collated([Input([*shown.ids, *opening], types, shown.images)], 0)
        with torch.inference_mode():
            logits = model(**forward_inputs(model, batch)).logits[0, -len(opening) - 1 : -1]
        total += logits.double().log_softmax(-1)[range(len(opening)), opening].sum().exp()
    return float(log_odds(total))


def test_scores_of_prompts_with_images_are_those_of_whole_sequences(vlm: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(vlm), load_tokenizer(vlm)
    asked = read_instructions(records(tmp_path, "asked", 4), vlm)
    score = RefusalScore(tokenizer, {}, OPENINGS, "phrases")
    expected = torch.tensor([naive_score(model, tokenizer, one) for one in asked], dtype=torch.float64)
    assert torch.allclose(score(model, asked), expected, atol=2e-4)
    assert len({round(v, 3) for v in expected.tolist()}) == 4


def test_sweeps_of_prompts_with_images_are_plain_passes(vlm: Path, tmp_path: Path) -> None:
    """Each of a sweep's measures, which resumes at a layer and shares batches, beside the whole model run as it is."""
    model, tokenizer = load_model(vlm), load_tokenizer(vlm)
    harmful = read_instructions(records(tmp_path / "a", "harmful", 3), vlm)
    harmless = read_instructions(records(tmp_path / "b", "harmless", 3, seed=1), vlm)
    score = RefusalScore(tokenizer, {}, OPENINGS, "phrases")
    vector = 3 * random_unit(torch.zeros(64), 1)
    sweep = Sweep(model, score, [Candidate(-1, 1, vector), Candidate(-1, 2, vector)], harmful, harmless)
    for measure in (sweep.kl, sweep.induce, sweep.bypass):
        measure.advance([0, 1])
    before = first_answer_token(model, tokenizer, harmless, {})
    with ablated(model, vector / vector.norm()):
        bypass = score(model, harmful).mean().item()
        kl = kl_divergence(before, first_answer_token(model, tokenizer, harmless, {})).mean().item()
    for number, layer in enumerate((1, 2)):
        with added(model, vector, layer):
            induce = score(model, harmless).mean().item()
        assert sweep.induce.mean(number) == pytest.approx(induce, abs=1e-3)
        assert sweep.bypass.mean(number) == pytest.approx(bypass, abs=1e-3)
        assert sweep.kl.mean(number) == pytest.approx(kl, abs=1e-4)


def test_activations_of_prompts_with_images_batched_and_alone(vlm: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(vlm), load_tokenizer(vlm)
    asked = read_instructions(records(tmp_path, "asked", 5), vlm)
    together, alone = (block_inputs(model, tokenizer, asked, {}, batch_size=size) for size in (5, 1))
    assert torch.allclose(together, alone, atol=1e-4)
    assert together.shape[1:] == (len(post_instruction_tokens(tokenizer, {})), len(decoder_layers(model)), 64)
    without = block_inputs(model, tokenizer, [one if isinstance(one, str) else one.text for one in asked], {})
    differ = [not torch.allclose(a, b, atol=1e-4) for a, b in zip(together, without, strict=True)]
    assert differ == [not isinstance(one, str) for one in asked]


DIRECTION = validated("direction", {"max_kl": 50.0, "min_induce": -50.0, "score": "phrases"})
EDIT = {
    **{"edit": "aird", "matrices": ["o_proj", "down_proj"], "direction": "dense", "variant": "centred"},
    **{"layer": "source", "alpha": 2.0, "keep_sparsity": False, "requantize": False},
}


def test_every_stage_on_every_family(vlm: Path, tmp_path: Path) -> None:
    """Compressed, answered, judged, direction found on prompts with images, edited, and answered again."""
    sets = {
        name: records(tmp_path / name, name, 4, seed=i)
        for i, name in enumerate(("harmful_train", "harmless_train", "harmful", "harmless", "attack"))
    }
    pruned, generation = tmp_path / "pruned", {"max_new_tokens": 8, "batch_size": 4}
    compress(vlm, pruned, {"prune": "magnitude", "sparsity": 0.3})
    generate(pruned, tmp_path / "answers", {"attack": sets["attack"]}, generation)
    judge_files([tmp_path / "answers/attack.jsonl"], tmp_path / "verdicts", {"judges": ["arditi-12"]})
    verdicts = [json.loads(line) for line in (tmp_path / "verdicts/attack.jsonl").read_text().splitlines()]
    assert [v["prompt_id"] for v in verdicts] == [f"attack-{i}" for i in range(4)]
    for name, folder in (("dense", vlm), ("compressed", pruned)):
        train = sets["harmful_train"], sets["harmless_train"]
        cache_activations(folder, tmp_path / name / "activations", *train, {})
        cached, _ = load_activations(tmp_path / name / "activations")
        assert cached["harmful"].shape[0] == 4
        places = tmp_path / name / "direction", tmp_path / name / "activations"
        found = find_direction(folder, *places, sets["harmful"], sets["harmless"], DIRECTION)
        assert found.unit.shape == (64,)
    compare(tmp_path / "dense", tmp_path / "compressed", tmp_path / "c.json", tmp_path / "c.csv", 0)
    about = edit_checkpoint(
        pruned,
        tmp_path / "edited",
        dense=vlm,
        direction_dir=tmp_path / "dense/direction",
        own_direction_dir=tmp_path / "compressed/direction",
        harmful=sets["harmful"],
        harmless=sets["harmless"],
        harmful_train=sets["harmful_train"],
        harmless_train=sets["harmless_train"],
        recipe=EDIT,
    )
    before, after = (load_file(folder / "model.safetensors") for folder in (pruned, tmp_path / "edited"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    model = load_model(tmp_path / "edited")
    layer = module_name(model, decoder_layers(model)[about["layers"][0]])
    ending = layer.rpartition("layers.")[2]
    assert len(changed) == 2
    assert all(
        f"layers.{ending}." in name and "vision" not in name and "visual" not in name for name in changed
    )
    generate(tmp_path / "edited", tmp_path / "again", {"attack": sets["attack"]}, generation)
    texts = [(tmp_path / name / "attack.jsonl").read_text() for name in ("answers", "again")]
    assert texts[0] != texts[1]
    mediation = validated("mediate", {"prompts": 2, "max_new_tokens": 4, "random_seeds": 1})
    mediate(
        pruned,
        tmp_path / "m",
        tmp_path / "compressed/direction",
        sets["harmful"],
        sets["harmless"],
        mediation,
    )
    assert len((tmp_path / "m/answers.jsonl").read_text().splitlines()) == 12
    shown = shown_as(tmp_path / "shown", ("text", "image"), 4)
    for name, folder, dense in (("dense", vlm, None), ("compressed", pruned, tmp_path / "dense/modalities")):
        found = modalities(
            folder,
            tmp_path / name / "modalities",
            direction_dir=tmp_path / name / "direction",
            activations_dir=tmp_path / name / "activations",
            prompts=shown,
            pairs=shown,
            recipe={"nulls": 3, "pairs": 2, "seed": 0},
            dense=dense,
        )
        assert set(found["tried"]) == {"text", "image"}
        assert -1 <= found["between"]["text-image"]["cosine"]["value"] <= 1
    assert -1 <= found["to_dense"]["image"]["cosine"]["value"] <= 1


def test_the_activations_folder_has_the_images_itself(vlm: Path, tmp_path: Path) -> None:
    train = records(tmp_path / "x", "train", 2)
    cache_activations(vlm, tmp_path / "out", train, train, {})
    own = [json.loads(line) for line in (tmp_path / "out/harmful.jsonl").read_text().splitlines()]
    assert [r["images"][0]["file"] for r in own] == [f"images/{r['images'][0]['sha256']}.png" for r in own]
    assert read_instructions(tmp_path / "out/harmful.jsonl", vlm)[0].text == own[0]["text"]


def test_a_text_only_model_in_a_vision_study(tmp_path: Path) -> None:
    from tiny import tiny_llama

    model = tiny_llama(tmp_path / "llama")
    train = records(tmp_path, "train", 2)
    with pytest.raises(HoldfastError, match="a text-only model, and the prompts have images") as raised:
        cache_activations(model, tmp_path / "out", train, train, {})
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()
