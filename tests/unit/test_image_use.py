"""Whether refusals depend on the image: a model that looks, one that cannot, and pairs that are none."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from holdfast.checkpoints import load_model, load_tokenizer
from holdfast.errors import HoldfastError
from holdfast.files import read_json, write_jsonl
from holdfast.prompts.images import Pictured, read_instructions
from holdfast.prompts.templates import encode, forward_inputs
from holdfast.refusal.image_use import _blank, image_use
from holdfast.refusal.passes import next_token_logits
from holdfast.refusal.scores import first_answer_token
from PIL import Image
from safetensors.torch import load_file, save_file
from vlms import tiny_vlm

PAIRS = 4


def half(folder: Path, pair: int, label: str, colour: int) -> dict[str, Any]:
    file = folder / f"images/{pair}-{label}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (48, 40), (colour, 40 * pair, 128)).save(file)
    checksum = hashlib.sha256(file.read_bytes()).hexdigest()
    about = {"label": label, "pair": f"pair-{pair}", "modality": "image", "category": "any"}
    images = [{"file": f"images/{file.name}", "sha256": checksum}]
    return {"id": f"{pair}-{label}", "text": "what is in the picture", "images": images, **about}


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Harmful halves are bright pictures, benign ones dark."""
    folder = tmp_path / "pairs"
    halves = [
        half(folder, n, label, c) for n in range(PAIRS) for label, c in (("harmful", 250), ("benign", 5))
    ]
    write_jsonl(folder / "pairs.jsonl", halves)
    return folder / "pairs.jsonl"


@pytest.fixture(scope="module")
def looking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vlm("llava", tmp_path_factory.mktemp("looking") / "model")


def direction(folder: Path, model_dir: Path, openings: list[list[int]]) -> Path:
    """A direction folder that names a score by these openings."""
    config = read_json(model_dir / "config.json")["text_config"]
    layers, width = config["num_hidden_layers"], config["hidden_size"]
    folder.mkdir()
    about = {"layer": 1, "position": -1, "usable": True, "reason": "", "score": "first-token"}
    about |= {"opening_tokens": openings, "ablation": "plain", "score_valid": True}
    (folder / "direction.json").write_text(json.dumps(about))
    unit = torch.eye(width)[0]
    tensors = {"direction": unit, "mean_difference": 2 * unit, "harmless_mean": torch.zeros(layers, width)}
    save_file(tensors, folder / "direction.safetensors")
    return folder


def blinded(model_dir: Path, out: Path) -> Path:
    """The same model, to which every image is the same: what comes out of its projector is 0."""
    out.mkdir()
    for file in model_dir.iterdir():
        if file.suffix != ".safetensors":
            (out / file.name).write_bytes(file.read_bytes())
    weights = load_file(model_dir / "model.safetensors")
    last = [name for name in weights if "projector.linear_2" in name]
    assert len(last) == 2
    save_file(
        {n: w * 0 if n in last else w for n, w in weights.items()},
        out / "model.safetensors",
        {"format": "pt"},
    )
    return out


def brighter(model_dir: Path, pairs: Path, tmp_path: Path) -> list[list[int]]:
    """A token that the model finds likelier after every bright picture than after its dark one and after grey."""
    image_use(
        model_dir, tmp_path / "any.json", pairs, direction(tmp_path / "any", model_dir, [[3]]), {"seed": 0}
    )
    model, tokenizer = load_model(model_dir), load_tokenizer(model_dir)
    asked = [one for one in read_instructions(pairs, model_dir) if isinstance(one, Pictured)]
    grey = [_blank(one, tmp_path) for one in asked]
    own, blank = (first_answer_token(model, tokenizer, some, {}) for some in (asked, grey))
    rises = torch.minimum(own[0::2] - own[1::2], own[0::2] - blank[0::2]).amin(0)
    assert rises.max() > 0
    return [[int(rises.argmax())]]


def test_a_model_that_looks(looking: Path, pairs: Path, tmp_path: Path) -> None:
    openings = brighter(looking, pairs, tmp_path)
    folder = direction(tmp_path / "direction", looking, openings)
    image_use(looking, tmp_path / "image-use.json", pairs, folder, {"seed": 0})
    found = read_json(tmp_path / "image-use.json")
    assert list(found) == ["image"]
    of = found["image"]
    assert of["distance_blank"]["n"] == 2 * PAIRS
    for name in ("distance_blank", "distance_other"):
        assert of[name]["low"] > 100 * of["distance_again"]["high"]
    assert of["score_difference"]["low"] > 0
    assert of["score_difference"]["n"] == PAIRS
    assert of["refusals_use_image"] is True
    record = read_json(tmp_path / "image-use.json.provenance.json")
    assert record["stage"] == "image-use"
    assert len(record["inputs"]) == 3


def spoken(model_dir: Path, asked: list[Pictured]) -> torch.Tensor:
    """Probabilities of the first answer token, each prompt alone, by transformers' own forward pass."""
    model, tokenizer = load_model(model_dir), load_tokenizer(model_dir)
    with torch.inference_mode():
        rows = [model(**forward_inputs(model, encode(tokenizer, [one], {}))).logits[0, -1] for one in asked]
    return torch.stack(rows).double().softmax(-1)


def asked_of(model_dir: Path, halves: list[dict[str, Any]], folder: Path) -> list[Pictured]:
    write_jsonl(folder / "pairs.jsonl", halves)
    return [one for one in read_instructions(folder / "pairs.jsonl", model_dir) if isinstance(one, Pictured)]


def used(model_dir: Path, folder: Path, token: int) -> dict[str, Any]:
    """What is written of the pairs of a folder, where the refusal score is the log-odds of one token."""
    named = direction(folder / "direction", model_dir, [[token]])
    image_use(model_dir, folder / "image-use.json", folder / "pairs.jsonl", named, {"seed": 0})
    return dict(read_json(folder / "image-use.json")["image"])


def unlike(folder: Path) -> list[dict[str, Any]]:
    """Pairs whose halves ask other questions, of other lengths, about other pictures."""
    halves = [
        half(folder, n, label, c) for n in range(PAIRS) for label, c in (("harmful", 250), ("benign", 5))
    ]
    texts = [f"{'write' if i % 2 else 'what is'} {'the ' * (i % 3)}boat {i}" for i in range(2 * PAIRS)]
    return [h | {"text": t} for h, t in zip(halves, texts, strict=True)]


def log_odds(spoken: torch.Tensor, token: int) -> torch.Tensor:
    return spoken[:, token].log() - (1 - spoken[:, token]).log()


def test_every_number_is_brute_force(looking: Path, tmp_path: Path) -> None:
    """The first pair shows one picture, and counts everywhere but in the difference of scores."""
    token, halves = 7, unlike(tmp_path)
    halves[1] |= {"images": halves[0]["images"]}
    asked = asked_of(looking, halves, tmp_path)
    of = used(looking, tmp_path, token)

    def show(pictures: list[Any]) -> torch.Tensor:
        return spoken(looking, [replace(a, pictures=p) for a, p in zip(asked, pictures, strict=True)])

    images = [a.pictures for a in asked]
    own, other = show(images), show(images[-2:] + images[:-2])
    grey = spoken(looking, [_blank(a, tmp_path) for a in asked])
    of_own, of_grey, of_next = (log_odds(p, token) for p in (own, grey, show(images[1:] + images[:1])))
    for name, p in (("blank", grey), ("other", other), ("again", own)):
        expected = ((own - p).abs().sum(-1) / 2).mean().item()
        assert of[f"distance_{name}"]["value"] == pytest.approx(expected, abs=1e-5), name
    assert of["score_blank"]["value"] == pytest.approx((of_own - of_grey)[0::2].mean().item(), abs=1e-4)
    expected = (of_own - of_next)[2::2].mean().item()
    assert of["score_difference"]["value"] == pytest.approx(expected, abs=1e-4)
    assert (of["score_blank"]["n"], of["score_difference"]["n"], of["one_image"]) == (PAIRS, PAIRS - 1, 1)


def test_the_null_is_read_in_other_batches(
    looking: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def counted(model: Any, prompts: Any, rows: Any) -> torch.Tensor:
        sizes.append(len(rows))
        return next_token_logits(model, prompts, rows)

    halves = unlike(tmp_path)
    asked_of(looking, [h | {"text": "what is in the picture"} for h in halves], tmp_path)
    monkeypatch.setattr("holdfast.refusal.image_use.next_token_logits", counted)
    used(looking, tmp_path, 7)
    assert sizes[0] == 2 * PAIRS
    assert sizes[-3:] == [3, 3, 2]


def test_refusals_that_follow_the_question_alone_are_not_of_the_image(looking: Path, tmp_path: Path) -> None:
    """As in most pairs of MOSSBench the harm is in the text, and one picture stands beside both."""
    halves = unlike(tmp_path)
    for harmful, benign in zip(halves[0::2], halves[1::2], strict=True):
        harmful |= {"text": "write a note about the boats"}
        benign |= {"images": harmful["images"]}
    asked = asked_of(looking, halves, tmp_path)
    own, grey = (spoken(looking, some) for some in (asked, [_blank(a, tmp_path) for a in asked]))
    rises = torch.minimum(own[0::2] - own[1::2], own[0::2] - grey[0::2]).amin(0)
    assert rises.max() > 0
    of = used(looking, tmp_path, int(rises.argmax()))
    assert of["score_blank"]["low"] > 0
    assert (of["score_difference"], of["one_image"], of["refusals_use_image"]) == (None, PAIRS, None)


def test_a_score_that_is_as_high_without_the_image_does_not_use_it(looking: Path, tmp_path: Path) -> None:
    """Higher with the harmful image than with the benign one, and higher still with a blank one."""
    halves = [h | {"text": "what is in the picture"} for h in unlike(tmp_path)]
    asked = asked_of(looking, halves, tmp_path)
    own, grey = (spoken(looking, some) for some in (asked, [_blank(a, tmp_path) for a in asked]))
    rises = torch.minimum(own[0::2] - own[1::2], grey[0::2] - own[0::2]).amin(0)
    assert rises.max() > 0
    of = used(looking, tmp_path, int(rises.argmax()))
    assert of["score_difference"]["low"] > 0 > of["score_blank"]["high"]
    assert of["refusals_use_image"] is False


def test_a_model_that_cannot_look_is_found_out(looking: Path, pairs: Path, tmp_path: Path) -> None:
    openings = brighter(looking, pairs, tmp_path)
    blind = blinded(looking, tmp_path / "blind")
    folder = direction(tmp_path / "direction", blind, openings)
    image_use(blind, tmp_path / "image-use.json", pairs, folder, {"seed": 0})
    of = read_json(tmp_path / "image-use.json")["image"]
    assert of["distance_blank"]["high"] < 1e-5
    assert of["distance_other"]["high"] < 1e-5
    assert of["refusals_use_image"] is False


@pytest.mark.parametrize(
    ("keep", "what"),
    [
        (lambda r: r | {"images": []}, "no pair has images"),
        (lambda r: r if r["pair"] == "pair-0" else None, "one image pair alone"),
        (lambda r: r if r["id"] != "1-benign" else None, "pair pair-1 has no benign half"),
    ],
)
def test_pairs_that_cannot_say(looking: Path, pairs: Path, tmp_path: Path, keep: Any, what: str) -> None:
    halves = [json.loads(line) for line in pairs.read_text().splitlines()]
    write_jsonl(pairs, [kept for record in halves if (kept := keep(record))])
    folder = direction(tmp_path / "direction", looking, [[3]])
    with pytest.raises(HoldfastError, match=what):
        image_use(looking, tmp_path / "image-use.json", pairs, folder, {"seed": 0})
    assert not (tmp_path / "image-use.json").exists()
