"""Directions found on text and on images: planted as one, planted apart, and what cannot be compared."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from holdfast.checkpoints import load_model, load_tokenizer
from holdfast.errors import HoldfastError
from holdfast.files import read_json, read_jsonl, write_json, write_jsonl
from holdfast.prompts.images import read_instructions
from holdfast.refusal.activations import block_inputs, load_activations
from holdfast.refusal.comparison import at, everything
from holdfast.refusal.direction import load_direction
from holdfast.refusal.modalities import modalities
from holdfast.refusal.modality_cosines import KINDS, Seen, aligned, shuffled_products
from holdfast.refusal.nulls import Pair, difference
from holdfast.refusal.transfer import chance_differences
from planted import studied
from safetensors.torch import load_file
from torch.nn.functional import cosine_similarity
from vlms import planted_llava, shown_as

SHOWN = ("text", "image", "typographic")
RECIPE = {"nulls": 4, "pairs": 6, "seed": 0}


class Made:
    """A planted model with its direction, and what directions by modality are learnt and tried on."""

    def __init__(self, root: Path, *, shared: bool) -> None:
        self.model, self.r, self.q = planted_llava(root / "checkpoint", shared=shared)
        self.folders = studied(self.model, root, positions=[-1], layers=[1])
        self.prompts = shown_as(root / "learnt", SHOWN, 16)
        self.pairs = shown_as(root / "tried", SHOWN, 8, start=300)

    def run(self, out: Path, **changed: Any) -> dict[str, Any]:
        given = {
            "direction_dir": self.folders["direction"],
            "activations_dir": self.folders["activations"],
            "prompts": self.prompts,
            "pairs": self.pairs,
            "recipe": RECIPE,
        }
        return modalities(self.model, out, **{**given, **changed})


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("one"), shared=True)


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("apart"), shared=False)


def test_one_direction_of_all_modalities_is_found_and_acts_on_all(one: Made, tmp_path: Path) -> None:
    found = one.run(tmp_path / "out")
    for name, of in (found["between"] | found["to_chosen"]).items():
        assert of["cosine"]["value"] > 0.9, name
        assert of["p_chance"] < 0.01
    for modality, of in found["tried"].items():
        assert of["bypass"]["other_effect"]["high"] < 0, modality
        assert of["bypass"]["other"]["n"] == RECIPE["pairs"]
        assert of["induce"]["other_effect"]["low"] > 0
        # Ablation does not ask for length; added, the text's difference of means is shorter than the images'.
        own, text = (of["bypass"][whose]["value"] for whose in ("own_effect", "other_effect"))
        assert text == pytest.approx(own, rel=0.05)
        for score in ("bypass", "induce"):
            assert len(of[score]["nulls_shuffled"]) == RECIPE["nulls"]
            assert 0 < of[score]["p"] <= 1


def test_directions_of_their_own_are_told_apart(apart: Made, tmp_path: Path) -> None:
    found = apart.run(tmp_path / "out")
    assert abs(found["between"]["text-image"]["cosine"]["value"]) < 0.3
    assert found["between"]["text-image"]["p_below"] < 0.001
    assert found["between"]["image-typographic"]["cosine"]["value"] > 0.9
    assert abs(load_direction(tmp_path / "out/image").unit @ apart.q) > 0.9
    assert abs(load_direction(tmp_path / "out/text").unit @ apart.r) > 0.9
    image, text = (found["tried"][m]["bypass"] for m in ("image", "text"))
    assert text["other_effect"]["high"] < 0
    # What the text's direction leaves of refusal of images, the images' own takes away.
    assert abs(image["other_effect"]["value"]) < 0.2 * abs(image["own_effect"]["value"])
    assert image["other_minus_own"]["low"] > 0


def test_beside_the_dense_model_and_on_its_own_place(one: Made, tmp_path: Path) -> None:
    one.run(tmp_path / "dense")
    found = one.run(tmp_path / "again", dense=tmp_path / "dense")
    for of in found["to_dense"].values():
        assert of["cosine"]["value"] == pytest.approx(1)
        assert of["p_below"] > 0.05
    assert read_json(tmp_path / "dense/modalities.json")["to_dense"] is None
    record = read_json(tmp_path / "again/provenance.json")
    assert (record["stage"], len(record["inputs"])) == ("modalities", 6)


def test_numbers_are_brute_force_and_the_dense_model_is_met_at_its_own_place(
    one: Made, tmp_path: Path
) -> None:
    """The dense model's direction at a token before: the same model there agrees with itself."""
    there = studied(one.model, tmp_path / "there", positions=[-2], layers=[1])
    given = {"direction_dir": there["direction"], "activations_dir": there["activations"]}
    at = one.run(tmp_path / "dense", **given)["chosen"]
    found = one.run(tmp_path / "out", dense=tmp_path / "dense")
    assert [(of["layer"], of["position"]) for of in (at, found["chosen"])] == [(1, -2), (1, -1)]
    model, tokenizer = load_model(one.model), load_tokenizer(one.model)
    records = read_jsonl(one.prompts)
    inputs = block_inputs(model, tokenizer, read_instructions(one.prompts, one.model), {}, batch_size=1)
    harmful = torch.tensor([r["label"] == "harmful" for r in records])
    means = {}
    for modality in SHOWN:
        of = torch.tensor([r["modality"] == modality for r in records])
        means[modality] = [inputs[of & kind].double().mean(0) for kind in (harmful, ~harmful)]
        own = load_direction(tmp_path / "out" / modality)
        difference = means[modality][0] - means[modality][1]
        assert torch.allclose(own.difference.double(), difference[-1, 1], atol=1e-5)
        dense = load_direction(tmp_path / "dense" / modality)
        assert torch.allclose(dense.difference.double(), difference[-2, 1], atol=1e-5)
        assert torch.allclose(own.harmless.double(), means[modality][1][-1], atol=1e-5)
        assert found["to_dense"][modality]["cosine"]["value"] == pytest.approx(1, abs=1e-5)
    text, image = (means[m][0] - means[m][1] for m in ("text", "image"))
    expected = cosine_similarity(text[-1, 1], image[-1, 1], dim=0).item()
    assert found["between"]["text-image"]["cosine"]["value"] == pytest.approx(expected, abs=1e-5)
    assert cosine_similarity(text[-1, 1], text[-2, 1], dim=0).item() < 0.99  # the places are told apart


def test_what_the_refusal_direction_was_found_in_is_the_prompts_that_it_kept(
    one: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cosines are of those alone; nulls scatter as the modality does, and shuffle what the direction was found in."""
    folder = tmp_path / "direction"
    shutil.copytree(one.folders["direction"], folder)
    rows = {"harmful": [0, 2, 3, 5, 7], "harmless": [1, 2, 4, 6]}
    write_json(folder / "direction.json", read_json(folder / "direction.json") | {"train_rows": rows})
    drawn: list[tuple[Pair, Pair]] = []

    def counted(chosen: Any, receiving: Pair, giving: Pair, *rest: Any) -> Any:
        drawn.append((receiving, giving))
        return chance_differences(chosen, receiving, giving, *rest)

    monkeypatch.setattr("holdfast.refusal.modalities.chance_differences", counted)
    found = one.run(tmp_path / "out", direction_dir=folder)
    cached = at(load_activations(one.folders["activations"])[0], -1, 1)
    kept = cached[0][rows["harmful"]], cached[1][rows["harmless"]]
    inputs = load_file(tmp_path / "out/activations.safetensors")
    for modality, (receiving, giving) in zip(SHOWN, drawn, strict=True):
        own = inputs[f"{modality}.harmful"], inputs[f"{modality}.harmless"]
        expected = cosine_similarity(difference(kept), difference(own), dim=0).item()
        assert found["to_chosen"][modality]["cosine"]["value"] == pytest.approx(expected, abs=1e-6)
        for number in (0, 1):
            assert torch.equal(receiving[number], own[number])
            assert torch.equal(giving[number], kept[number])


def test_prompts_without_content_are_other_prompts(one: Made, tmp_path: Path) -> None:
    """Cosines are the same; the interval does not know of noise that the same prompts share."""
    with_content = one.run(tmp_path / "a")["between"]["text-image"]["cosine"]
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "images").symlink_to(one.prompts.parent / "images")
    records = [{k: v for k, v in r.items() if k != "content"} for r in read_jsonl(one.prompts)]
    write_jsonl(bare / "pairs.jsonl", records)
    without = one.run(tmp_path / "b", prompts=bare / "pairs.jsonl")["between"]["text-image"]["cosine"]
    assert without["value"] == with_content["value"]
    assert (with_content["n"], without["n"]) == (32, 64)


@pytest.mark.parametrize(
    ("keep", "what"),
    [
        (lambda r: r | {"modality": "sound"}, "has modality sound"),
        (lambda r: None if r["modality"] == "image" and r["label"] == "benign" else r, "0 harmless prompts"),
    ],
)
def test_prompts_that_cannot_say(one: Made, tmp_path: Path, keep: Any, what: str) -> None:
    file = tmp_path / "pairs.jsonl"
    write_jsonl(file, [kept for record in read_jsonl(one.prompts) if (kept := keep(record))])
    with pytest.raises(HoldfastError, match=what):
        one.run(tmp_path / "out", prompts=file)
    assert not (tmp_path / "out").exists()


def test_pairs_of_other_modalities_are_one_line(one: Made, tmp_path: Path) -> None:
    text = shown_as(tmp_path / "text", ("text",), 6)
    pictures = shown_as(tmp_path / "pictures", ("image",), 6)
    with pytest.raises(HoldfastError, match="has no pair of image, which directions are learnt on"):
        one.run(tmp_path / "out", prompts=pictures, pairs=text)


def test_other_prompts_than_the_dense_models_are_one_line(one: Made, tmp_path: Path) -> None:
    (tmp_path / "dense").mkdir()
    about = {"prompts": "0" * 64, "chosen": {"layer": 1, "position": -1}}
    (tmp_path / "dense/modalities.json").write_text(json.dumps(about))
    with pytest.raises(HoldfastError, match="it is of other prompts"):
        one.run(tmp_path / "out", dense=tmp_path / "dense")


def test_a_text_only_model_is_one_line(one: Made, tmp_path: Path) -> None:
    from tiny import tiny_llama

    model = tiny_llama(tmp_path / "llama")
    with pytest.raises(HoldfastError, match="a text-only model, and the prompts have images"):
        modalities(
            model,
            tmp_path / "out",
            direction_dir=one.folders["direction"],
            activations_dir=one.folders["activations"],
            prompts=one.prompts,
            pairs=one.pairs,
            recipe=RECIPE,
        )


def test_a_modality_that_changes_nothing_has_no_direction(one: Made, tmp_path: Path) -> None:
    """Every prompt of both kinds with the same picture and question."""
    records = read_jsonl(one.prompts)
    same = next(r for r in records if r["modality"] == "image")
    told = {k: same[k] for k in ("text", "images")}
    records = [r | told if r["modality"] == "image" else r for r in records]
    folder = tmp_path / "same"
    folder.mkdir()
    (folder / "images").symlink_to(one.prompts.parent / "images")
    write_jsonl(folder / "pairs.jsonl", records)
    found = one.run(tmp_path / "out", prompts=folder / "pairs.jsonl")
    assert found["between"]["text-image"] is None
    assert found["tried"]["image"] is None
    assert not (tmp_path / "out/image").exists()
    assert torch.isfinite(load_direction(tmp_path / "out/typographic").unit).all()


@pytest.mark.parametrize("same", [True, False])
def test_what_prompts_share_is_no_agreement_of_kinds(same: bool) -> None:
    """Two modalities in which the kinds do not differ: alike in what is particular to each prompt, or in nothing."""
    generator = torch.Generator().manual_seed(0)
    small, trials, n, width = 0, 60, 12, 24

    def draw() -> torch.Tensor:
        return torch.randn(n, width, generator=generator)

    for _ in range(trials):
        own = (draw(), draw())
        other = tuple(x + 0.5 * draw() for x in own) if same else (draw(), draw())
        keys = [[f"{kind}{i}" for i in range(n)] for kind in KINDS]
        theirs = keys if same else [[f"other {key}" for key in of] for of in keys]
        sides = [
            Seen((pair[0], pair[1]), (of[0], of[1]), everything((pair[0], pair[1])))
            for pair, of in ((own, keys), (other, theirs))
        ]
        product, shuffled = shuffled_products(*aligned(*sides), 100, 0)
        small += int((1 + (shuffled >= product).sum()) / 101 < 0.05)
    assert small <= 0.15 * trials
