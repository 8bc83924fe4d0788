"""Ground truth of `realign`: a direction turned by a known angle in one layer is turned back, and refusal with it."""

import math
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from holdfast.architectures import decoder_layers, writer
from holdfast.checkpoints import load_model, load_tokenizer
from holdfast.evaluation.generation import complete
from holdfast.evaluation.judges import substring_judge
from holdfast.methods.edit import edit_checkpoint
from holdfast.refusal.activations import cache_activations
from holdfast.refusal.direction import Direction, find_direction, load_direction
from holdfast.refusal.interventions import component, random_unit
from holdfast.refusal.score_check import load_score
from planted import PLANTED_LAYER, RECIPE, REFUSAL, SETTINGS, files, planted_llama, prompts

TURN = 1.5  # radians
PROMPTS = 12


class Found(NamedTuple):
    """A model's direction behind the planted layer, its score on harmful prompts and how many it refuses."""

    direction: Direction
    score: float
    refused: int


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Found]:
    """The planted model, a copy with what one matrix writes along r turned by TURN, and that copy realigned."""
    root = tmp_path_factory.mktemp("realign")
    given = files(root)
    dense, r = planted_llama(root / "dense", REFUSAL, 4.0)
    drawn = random_unit(r, 12)
    other = (drawn - component(drawn, r)) / (drawn - component(drawn, r)).norm()
    model = load_model(dense)
    with torch.no_grad():
        weight = writer(decoder_layers(model)[PLANTED_LAYER - 1], "o_proj").weight
        weight[:, 0] = weight[:, 0].norm() * (math.cos(TURN) * r + math.sin(TURN) * other)
    model.save_pretrained(root / "turned")
    load_tokenizer(dense).save_pretrained(root / "turned")

    def measured(folder: Path) -> Found:
        activations, direction = (root / f"{folder.name}-{name}" for name in ("activations", "direction"))
        cache_activations(folder, activations, given["harmful_train"], given["harmless_train"], {})
        recipe = {**RECIPE, "positions": [-1], "layers": [PLANTED_LAYER]}
        validation = given["harmful_validation"], given["harmless_validation"]
        it = find_direction(folder, direction, activations, *validation, recipe)
        loaded, tokenizer = load_model(folder), load_tokenizer(folder)
        about = load_direction(root / "dense-direction").about  # one score for all
        asked = prompts("harmful", PROMPTS, 300)
        score = load_score(about, tokenizer, SETTINGS)(loaded, asked).mean().item()
        judge = substring_judge("study-l-31")
        done = complete(loaded, tokenizer, asked, SETTINGS, max_new_tokens=8)
        return Found(it, score, sum(judge.refused(c.text, c.finish_reason) for c in done))

    made = {name: measured(root / name) for name in ("dense", "turned")}
    edit_checkpoint(
        root / "turned", root / "realigned", dense=dense, direction_dir=root / "dense-direction",
        own_direction_dir=root / "turned-direction", harmful=given["harmful_validation"],
        harmless=given["harmless_validation"], harmful_train=given["harmful_train"],
        harmless_train=given["harmless_train"],
        recipe={
            "edit": "aird", "variant": "realign", "layer": PLANTED_LAYER - 1, "matrices": ["o_proj"],
            "keep_sparsity": False, "requantize": False,
        },
    )  # fmt: skip
    return made | {"realigned": measured(root / "realigned")}


def angle(a: Found, b: Found) -> float:
    return math.acos((a.direction.unit.double() @ b.direction.unit.double()).clamp(-1, 1))


def test_the_angle_is_the_planted_one(found: dict[str, Found]) -> None:
    assert angle(found["dense"], found["turned"]) == pytest.approx(TURN, abs=0.1)


def test_the_direction_is_turned_back(found: dict[str, Found]) -> None:
    assert angle(found["dense"], found["realigned"]) < 0.1
    norms = [found[name].direction.difference.norm().item() for name in ("dense", "realigned")]
    assert norms[1] == pytest.approx(norms[0], rel=0.02)


def test_refusal_comes_back(found: dict[str, Found]) -> None:
    assert [found[name].refused for name in ("dense", "turned", "realigned")] == [PROMPTS, 0, PROMPTS]
    lost = found["dense"].score - found["turned"].score
    assert lost > 2
    assert found["realigned"].score == pytest.approx(found["dense"].score, abs=0.05 * lost)
