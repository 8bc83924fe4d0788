"""The embedded vision-language model: training on tiny settings, its parts in files, how they become a model."""

import contextlib
import copy
import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from good_study import GOOD
from holdfast.checkpoints import load_model, load_processor, load_tokenizer
from holdfast.config import Study
from holdfast.config.recipes import recipe as stage_recipe
from holdfast.embedded.vision import training
from holdfast.embedded.vision.assembling import assembled, llava, processor_of, save, with_image_token
from holdfast.embedded.vision.measuring import answers, seen_questions
from holdfast.embedded.vision.optimising import SAVED_EVERY, optimise
from holdfast.embedded.vision.pictures import Scene, scene_picture
from holdfast.embedded.vision.seeing import CAPTION, Captions, pixels
from holdfast.embedded.vision.speaking import SHOWN, answer_loss, asked, chat_at, cut
from holdfast.embedded.vision.training import train_vision
from holdfast.embedded.vision.vocabulary import (
    COLOURS,
    COUNTS,
    HELD_OUT_PAIRS,
    QUESTIONS,
    SHAPES,
    WORDS,
    Words,
    read_words,
)
from holdfast.errors import HoldfastError
from holdfast.files import read_json, sha256
from holdfast.methods.lora import collate
from holdfast.sources import fetch
from safetensors import safe_open
from tiny import tiny_llama
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    LlavaForConditionalGeneration,
)

SPARE = "<empty_output>"
# So that every attribute is one or two tokens of the tiny tokenizer.
TEXTS = (
    *(text for texts in QUESTIONS.values() for text in texts),
    " ".join(("shapes word", *COUNTS, *COLOURS, *SHAPES)),
)
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 96,
    "patch_size": 16,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random language model whose tokenizer has a special token to spare."""
    folder = tiny_llama(tmp_path_factory.mktemp("vision") / "base", layers=2, texts=TEXTS)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": [SPARE]})
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def words_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The vocabulary's words of at most five letters."""
    stated, words = read_json(WORDS), read_words()
    short = [i for i, word in enumerate(words.harmful) if len(word) <= 5]
    stated["harmful"]["words"] = [stated["harmful"]["words"][i] for i in short]
    text = "\n".join(words.harmful[i] for i in short)
    stated["harmful"]["words_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    stated["benign"] = [word for word in stated["benign"] if len(word) <= 5]
    file = tmp_path_factory.mktemp("words") / "words.json"
    file.write_text(json.dumps(stated))
    return file


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    lines = [{"id": str(i), "text": f"Tell me a story of {i} boats."} for i in range(4)]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    some = {"source": f"file:{prompts}"}
    batch = {"colour": 1, "count": 1, "shape": 1, "word": 1, "harmful": 1, "benign": 1, "text": 1}
    return {
        "tower": TOWER,
        "image_token": SPARE,
        "see": {"steps": 30, "batch_size": 8, "learning_rate": 0.003, "words": 0.6},
        "text": {"harmful": some, "harmless": some, "answer_tokens": 4},
        "speak": {
            "rank": 2,
            "alpha": 4,
            "learning_rate": 0.01,
            "projector_learning_rate": 0.001,
            "steps": 25,
            "answer_tokens": 12,
            "batch": batch,
        },
        "measure": {
            "scenes": 3,
            "unseen_pairs": 3,
            "word_renderings": 1,
            "make_renderings": 1,
            "text": {"harmful": some, "harmless": some},
        },
        "seed": 0,
    }


@pytest.fixture(scope="module")
def parts(
    tmp_path_factory: pytest.TempPathFactory, base: Path, words_file: Path, recipe: dict[str, Any]
) -> Path:
    out = tmp_path_factory.mktemp("trained") / "parts"
    train_vision(base, out, recipe, words_file)
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, base: Path, parts: Path) -> Path:
    """The parts and their language model as a plain Hugging Face folder."""
    model, processor = assembled(load_model(base, torch.float32), load_tokenizer(base), parts)
    out = tmp_path_factory.mktemp("assembled")
    save(model, processor, out)
    return out


def test_the_loss_of_both_stages_falls(parts: Path) -> None:
    for stage in ("stage-1", "stage-2"):
        losses = read_json(parts.with_name(f"parts.{stage}") / "losses.json")
        assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_parts_are_float16_with_recipe_rates_and_checksums(parts: Path, recipe: dict[str, Any]) -> None:
    rates = read_json(parts / "rates.json")
    assert read_json(parts / "recipe.json") == recipe
    assert read_json(parts / "provenance.json")["weights"] == rates["weights"]
    for file, checksum in rates["weights"].items():
        assert sha256(parts / file) == checksum
        with safe_open(parts / file, "pt") as stored:
            assert {stored.get_slice(name).get_dtype() for name in stored.keys()} == {"F16"}  # noqa: SIM118
    seen = ("colour", "count", "shape", "word")
    names = {f"{name}{kind}" for name in seen for kind in ("", "_swapped", "_blank")}
    names |= {"unseen_pair_colour", "unseen_pair_shape"}
    names |= {f"{label}{kind}_refused" for label in ("harmful", "benign") for kind in ("", "_untaught")}
    assert set(rates["pictures"]) == names
    for rate in (*rates["pictures"].values(), *rates["text"]["with_vision"].values()):
        assert 0 <= rate["low"] <= rate["value"] <= rate["high"] <= 1
        assert rate["n"] > 0


def test_a_second_run_goes_on_after_the_stage_that_is_finished(
    tmp_path: Path, base: Path, words_file: Path, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "parts"
    with monkeypatch.context() as patched:
        patched.setattr(training, "speak", killed)
        with pytest.raises(KeyboardInterrupt):
            train_vision(base, out, recipe, words_file)
    assert [path.name for path in tmp_path.iterdir()] == ["parts.stage-1"]
    seen = sha256(tmp_path / "parts.stage-1" / "vision.safetensors")
    with monkeypatch.context() as patched:
        patched.setattr(training, "see", killed)
        train_vision(base, out, recipe, words_file)
        with pytest.raises(KeyboardInterrupt):  # another seed is another stage 1
            train_vision(base, out, {**recipe, "seed": 1}, words_file)
    assert sha256(tmp_path / "parts.stage-1" / "vision.safetensors") == seen
    assert (out / "rates.json").is_file()


@pytest.mark.parametrize("killed_at", [150, 100, 20])
def test_a_stage_that_was_killed_goes_on_to_the_same_weights(tmp_path: Path, killed_at: int) -> None:
    target = torch.linspace(-1, 1, 12).reshape(3, 4)

    def trained(
        name: str, made_of: dict[str, int], until: int
    ) -> tuple[torch.Tensor, list[float], list[int]]:
        weight, unreached = torch.nn.Parameter(torch.zeros(3, 4)), torch.nn.Parameter(torch.zeros(2))
        taken = []

        def loss_of(step: int) -> torch.Tensor:
            if step == until:
                raise KeyboardInterrupt
            taken.append(step)
            noise = torch.randn(3, 4, generator=torch.Generator().manual_seed(step))
            return (weight - target - noise).square().mean()

        losses: list[float] = []
        with contextlib.suppress(KeyboardInterrupt):
            groups = [{"params": [unreached, weight], "lr": 0.05}]
            losses = optimise(groups, 200, loss_of, tmp_path / f"{name}.partial", made_of)
        return weight.detach(), losses, taken

    whole, losses, _ = trained("whole", {"seed": 0}, -1)
    trained("killed", {"seed": 0}, killed_at)
    assert trained("killed", {"seed": 1}, 0)[2] == []  # another recipe's: from the start
    again, other, taken = trained("killed", {"seed": 0}, -1)
    assert taken[0] == killed_at // SAVED_EVERY * SAVED_EVERY
    assert torch.equal(whole, again)
    assert losses == other
    assert sum(losses[-20:]) < sum(losses[:20])


def test_every_chat_is_seen_once_before_any_is_seen_again() -> None:
    chats = [([number], [number]) for number in range(7)]
    seen = [chat_at(chats, place, 0)[0][0] for place in range(21)]
    assert [sorted(seen[i : i + 7]) for i in (0, 7, 14)] == [list(range(7))] * 3
    assert seen[:7] != seen[7:14]


def test_the_same_seed_gives_the_same_weights(
    tmp_path: Path, base: Path, parts: Path, words_file: Path, recipe: dict[str, Any]
) -> None:
    train_vision(base, tmp_path / "again", recipe, words_file)
    assert read_json(tmp_path / "again" / "rates.json") == read_json(parts / "rates.json")


def test_the_folder_loads_in_plain_transformers_and_answers_alike_alone_and_in_a_batch(
    base: Path, parts: Path, folder: Path
) -> None:
    ours, our_processor = assembled(load_model(base, torch.float32), load_tokenizer(base), parts)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    assert isinstance(model, LlavaForConditionalGeneration)
    assert processor.tokenizer.padding_side == "left"
    questions = [
        *seen_questions(read_words(), {"scenes": 3, "unseen_pairs": 0, "word_renderings": 0})["colour"]
    ]
    asked_of = [(q.picture, q.text) for q in questions]
    batched = answers(model.eval(), processor, asked_of, 6, "batched")
    assert batched == answers(ours, our_processor, asked_of, 6, "before saving")
    alone = [answers(model, processor, [one], 6, "alone")[0] for one in asked_of]
    assert batched == alone


def test_pictures_and_chats_are_trained_on_as_the_processor_shows_them(
    base: Path, recipe: dict[str, Any]
) -> None:
    processor = processor_of(load_tokenizer(base), recipe)
    picture = scene_picture(Scene("star", "red", "two"), random.Random(0))
    content = [{"type": "image"}, {"type": "text", "text": "How many?"}]
    chat = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    shown = processor(text=[chat], images=[picture], return_tensors="pt")
    as_text = processor.tokenizer.apply_chat_template(
        [{"role": "user", "content": SHOWN + "How many?"}], tokenize=False, add_generation_prompt=True
    )
    assert processor.tokenizer(as_text)["input_ids"] == shown["input_ids"][0].tolist()
    torch.testing.assert_close(pixels([picture]), shown["pixel_values"].float())


def test_chats_without_a_picture_are_shown_as_by_the_language_models_own_tokenizer(base: Path) -> None:
    own = load_tokenizer(base)
    ours = with_image_token(own, SPARE)
    chat = [{"role": "user", "content": "What is 2 + 2?"}]
    shown = [t.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for t in (own, ours)]
    assert shown[0] == shown[1]
    assert own(shown[0])["input_ids"] == ours(shown[1])["input_ids"]
    assert len(own) == len(ours)
    assert ours("a<image>b")["input_ids"][1] == own.convert_tokens_to_ids(SPARE)


def test_captions_name_what_is_seen_and_fill_up_with_a_full_stop(base: Path, words_file: Path) -> None:
    tokenizer = load_tokenizer(base)
    captions = Captions(tokenizer, read_words(words_file).all)
    scene = Scene("ring", "blue", "four")
    assert tokenizer.decode(captions.of(scene)) == " shapes four blue ring"
    assert tokenizer.decode(captions.of("kite")) == " word kite"
    targets = captions.targets("kite")
    assert captions.ids[targets].tolist()[: len(captions.of("kite"))] == captions.of("kite")
    assert tokenizer.decode(captions.ids[targets[CAPTION:]]) == "." * (36 - CAPTION)
    with pytest.raises(HoldfastError, match="a caption takes"):
        Captions(tokenizer, ["incomprehensible"])


def test_the_loss_is_the_models_own_on_the_answer(base: Path, recipe: dict[str, Any]) -> None:
    processor = processor_of(load_tokenizer(base), recipe)
    model = llava(load_model(base, torch.float32), processor, recipe)
    draw = asked(processor.tokenizer, read_words(), 12, 0)
    items = [draw(kind, random.Random(kind)) for kind in ("colour", "benign")]
    pad = processor.tokenizer.pad_token_id
    each = [
        model(**collate([example], pad), pixel_values=pixels([picture])).loss for picture, example in items
    ]
    torch.testing.assert_close(answer_loss(model, items, pad), sum(each) / 2)
    without = (None, cut(items[0][1], 0))
    assert set(without[1][1]) == {-100}


def test_training_never_asks_to_make_an_untaught_word_nor_draws_a_held_out_pair(base: Path) -> None:
    words = Words(tuple("abcde"), tuple("fghij"))
    assert words.untaught == {"e", "j"}
    tokenizer = with_image_token(load_tokenizer(base), SPARE)
    draw_item = asked(tokenizer, words, 40, 0)
    draw, said = random.Random(0), set()
    for _ in range(100):
        text = tokenizer.decode(draw_item("benign", draw)[1][0])
        said |= {word for word in words.benign if f"For the {word}," in text}
    assert said == set("fghi")
    for name, questions in seen_questions(
        words, {"scenes": 1, "unseen_pairs": 20, "word_renderings": 1}
    ).items():
        if name == "unseen_pair_colour":
            colours = {q.answer for q in questions}
    assert colours <= {colour for _, colour in HELD_OUT_PAIRS}


def test_what_does_not_fit_is_told_in_one_line(tmp_path: Path, base: Path, parts: Path, folder: Path) -> None:
    tokenizer = load_tokenizer(base)
    with pytest.raises(HoldfastError, match=r"no special token <nothing> to spare"):
        with_image_token(tokenizer, "<nothing>")
    with pytest.raises(HoldfastError, match=r"no vision\.safetensors"):
        assembled(load_model(base), tokenizer, tmp_path)
    with pytest.raises(HoldfastError, match="the model sees already"):
        assembled(load_model(folder), tokenizer, parts)
    wider = tiny_llama(tmp_path / "wider", layers=2, hidden=128, texts=TEXTS)
    with pytest.raises(HoldfastError, match="the vision parts do not fit the model"):
        assembled(load_model(wider), tokenizer, parts)


def test_fetch_puts_parts_and_language_model_together(tmp_path: Path, base: Path, parts: Path) -> None:
    recipe = {"source": f"path:{base}", "vision": f"path:{parts}", "dtype": "bfloat16"}
    fetch(recipe, tmp_path / "out")
    model = load_model(tmp_path / "out")
    assert isinstance(model, LlavaForConditionalGeneration)
    assert model.dtype == torch.bfloat16
    provenance = read_json(tmp_path / "out" / "provenance.json")
    assert provenance["recipe"] == recipe
    assert provenance["inputs"][str(parts)] == sha256(parts / "provenance.json")
    picture = scene_picture(Scene("star", "red", "two"), random.Random(0))
    [said] = answers(model, load_processor(tmp_path / "out"), [(picture, "How many?")], 4, "fetched")
    assert isinstance(said, str)
    with pytest.raises(HoldfastError, match="is no folder of vision parts"):
        fetch({**recipe, "vision": "hub:a/b@c"}, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_vision_of_a_model_stands_in_its_fetch_recipe_and_in_no_others(
    load: Callable[[dict[str, Any]], Study], parts: Path
) -> None:
    config = copy.deepcopy(GOOD)
    assert "vision" not in stage_recipe(load(config), "fetch", model="one")
    config["models"]["one"]["vision"] = f"path:{parts}"
    assert stage_recipe(load(config), "fetch", model="one")["vision"] == f"path:{parts}"
    config["models"]["one"]["vision"] = "path:nowhere"
    with pytest.raises(HoldfastError, match="no folder 'nowhere'"):
        load(config)
