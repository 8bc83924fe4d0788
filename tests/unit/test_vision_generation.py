"""Answers of vision-language models to prompts with images: batched, resumed, and what ends in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from holdfast.checkpoints import load_model, load_tokenizer, save_model
from holdfast.errors import HoldfastError
from holdfast.evaluation.generation import Transformers, generate
from holdfast.evaluation.shown import Chat
from holdfast.prompts.images import load_images, read_instructions, text_of
from holdfast.prompts.overlap import check_disjoint
from holdfast.prompts.templates import post_instruction_tokens, render
from PIL import Image
from tiny import tiny_llama
from vlms import FAMILIES, picture, records, tiny_vlm

RECIPE = {"max_new_tokens": 8, "batch_size": 4}


@pytest.fixture(scope="module", params=FAMILIES)
def vlm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vlm(request.param, tmp_path_factory.mktemp(request.param) / "model")


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vlm("llava", tmp_path_factory.mktemp("llava") / "model")


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    return records(tmp_path, "asked", 7)


def answers(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_batched_answers_are_those_one_by_one(vlm: Path, asked: Path, tmp_path: Path) -> None:
    generate(vlm, tmp_path / "out", {"asked": asked}, RECIPE)
    found = answers(tmp_path / "out/asked.jsonl")
    model, tokenizer = load_model(vlm), load_tokenizer(vlm)
    alone = Transformers(model, Chat(tokenizer, {}))
    instructions = read_instructions(asked, vlm)
    assert [a["tokens"] for a in found] == [alone.answer([i], 8)[0].tokens for i in instructions]
    without = [alone.answer([text_of(i)], 8)[0].tokens for i in instructions]
    differ = [a["tokens"] != b for a, b in zip(found, without, strict=True)]
    assert differ == ["images" in a for a in found]
    named = [r.get("images", []) for r in answers(asked)]
    assert [a.get("images", []) for a in found] == [[image["sha256"] for image in r] for r in named]


def test_the_prompt_ends_alike_with_and_without_an_image(vlm: Path, asked: Path) -> None:
    tokenizer = load_tokenizer(vlm)
    assert tokenizer.padding_side == tokenizer.processor.tokenizer.padding_side == "left"
    after = post_instruction_tokens(tokenizer, {})
    batch = Chat(tokenizer, {}).encoded(read_instructions(asked, vlm))
    assert batch["input_ids"][:, -len(after) :].tolist() == [after] * 7
    for with_image, text in zip(
        render(tokenizer, read_instructions(asked, vlm), {}),
        render(tokenizer, [text_of(i) for i in read_instructions(asked, vlm)], {}),
        strict=True,
    ):
        assert text_of(text)[-20:] == with_image[-20:]


def test_a_resumed_run_answers_again_what_has_another_image(llava: Path, asked: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    generate(llava, out, {"asked": asked}, RECIPE)
    whole = answers(out / "asked.jsonl")
    made: list[int] = []
    answering = Transformers.answer

    def counted(self: Transformers, texts: Any, *args: Any) -> Any:
        made.append(len(texts))
        return answering(self, texts, *args)

    def resumed(kept: list[dict[str, Any]]) -> list[dict[str, Any]]:
        shutil.rmtree(out)
        with pytest.MonkeyPatch.context() as patch:
            # The name of the partial file is that of the run before: killed before its end, it would have left it.
            patch.setattr(Path, "unlink", lambda *_a, **_k: None)
            generate(llava, out, {"asked": asked}, RECIPE)
            partial = next(out.glob("*.partial"))
            partial.write_text("".join(json.dumps(a) + "\n" for a in kept))
            made.clear()
            patch.setattr(Transformers, "answer", counted)
            generate(llava, out, {"asked": asked}, RECIPE)
        return answers(out / "asked.jsonl")

    assert resumed(whole) == whole
    assert made == []
    changed = [{**a, "images": ["0" * 64]} if a["id"] == "asked-0" else a for a in whole]
    assert resumed(changed) == whole
    assert made == [4]  # its whole batch


def test_one_question_about_two_images_is_two_prompts(tmp_path: Path) -> None:
    images = [picture(tmp_path / "images" / f"{i}.png", i) for i in range(2)]
    for name, image in zip("ab", images, strict=True):
        record = {"id": name, "text": "What is on the label?", "images": [image]}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(record) + "\n")
    paths = {name: tmp_path / f"{name}.jsonl" for name in "ab"}
    assert check_disjoint(paths) == {"a": 1, "b": 1}
    with pytest.raises(HoldfastError, match="a is also in first"):
        check_disjoint({"first": paths["a"], "second": paths["a"]})


def test_images_come_as_rgb_however_they_are_stored(tmp_path: Path) -> None:
    about = picture(tmp_path / "images/x.png", 0)
    with Image.open(tmp_path / about["file"]) as image:
        image.convert("P").save(tmp_path / "images/p.png")
    for name in ("x", "p"):
        from holdfast.files import sha256

        path = tmp_path / f"images/{name}.png"
        found = load_images(
            {"images": [{"file": str(path.relative_to(tmp_path)), "sha256": sha256(path)}]}, tmp_path
        )
        assert [(i.mode, i.size) for i in found] == [("RGB", (48, 40))]
    assert load_images({"text": "no image"}, tmp_path) == []


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("damage", "rehash", "told"),
    [
        (Path.unlink, False, "no such image"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), False, "the record says"),
        (truncated, True, "cannot be read as an image"),
        (lambda path: path.write_text("no image"), True, "cannot be read as an image"),
    ],
)
def test_an_image_that_is_not_what_its_record_says(
    llava: Path, tmp_path: Path, damage: Callable[[Path], object], rehash: bool, told: str
) -> None:
    from holdfast.files import sha256

    asked = records(tmp_path, "asked", 2)
    image = tmp_path / "images/asked-1.png"
    damage(image)
    if rehash:
        lines = answers(asked)
        lines[1]["images"][0]["sha256"] = sha256(image)
        asked.write_text("".join(json.dumps(r) + "\n" for r in lines))
    refused(llava, asked, tmp_path, told, "asked-1.png")


def refused(model: Path, asked: Path, tmp_path: Path, *told: str) -> None:
    """Generating ends in one line that says so, and leaves nothing."""
    with pytest.raises(HoldfastError) as raised:
        generate(model, tmp_path / "out", {"asked": asked}, RECIPE)
    assert "\n" not in str(raised.value)
    for words in told:
        assert words in str(raised.value)
    assert not (tmp_path / "out/asked.jsonl").exists()


@pytest.mark.parametrize(
    ("images", "told"),
    [
        ("x.png", "images is no list"),
        ([{"file": "images/x.png"}], "an image without file or sha256"),
        ([{"file": "/x.png", "sha256": "0" * 64}], "is not relative"),
    ],
)
def test_records_with_images_written_wrongly(llava: Path, tmp_path: Path, images: Any, told: str) -> None:
    (tmp_path / "asked.jsonl").write_text(
        json.dumps({"id": "a", "text": "What is it?", "images": images}) + "\n"
    )
    refused(llava, tmp_path / "asked.jsonl", tmp_path, told, "record a")


def test_a_text_only_model_is_given_no_images(asked: Path, tmp_path: Path) -> None:
    refused(tiny_llama(tmp_path / "llama"), asked, tmp_path, "a text-only model", "llama")


def test_a_missing_processor(llava: Path, asked: Path, tmp_path: Path) -> None:
    shutil.copytree(llava, tmp_path / "model")
    (tmp_path / "model/processor_config.json").unlink()
    refused(tmp_path / "model", asked, tmp_path, "it has no processor")


def test_a_broken_processor(llava: Path, asked: Path, tmp_path: Path) -> None:
    shutil.copytree(llava, tmp_path / "model")
    (tmp_path / "model/processor_config.json").write_text("{")
    refused(tmp_path / "model", asked, tmp_path, "no processor can be loaded")


def test_a_processor_that_counts_an_images_tokens_otherwise(llava: Path, asked: Path, tmp_path: Path) -> None:
    shutil.copytree(llava, tmp_path / "model")
    file = tmp_path / "model/processor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"patch_size": 8}))
    refused(tmp_path / "model", asked, tmp_path, "its processor does not fit it", "tokens: ")


def test_a_processor_that_makes_pictures_of_another_size(llava: Path, asked: Path, tmp_path: Path) -> None:
    """As many tokens as the model counts, of pictures that its tower has no positions for."""
    shutil.copytree(llava, tmp_path / "model")
    file = tmp_path / "model/processor_config.json"
    config = json.loads(file.read_text())
    sizes = config["image_processor"]
    for key in ("size", "crop_size"):
        if isinstance(sizes.get(key), dict):
            sizes[key] = {name: 2 * side for name, side in sizes[key].items()}
    file.write_text(json.dumps(config))
    refused(tmp_path / "model", asked, tmp_path, "its processor does not fit it", "Input image size")


def test_a_prompt_that_holds_the_placeholder_itself(llava: Path, tmp_path: Path) -> None:
    for images in ([], [picture(tmp_path / "images/x.png", 0)]):
        record = {"id": "a", "text": "What does <image> mean?", **({"images": images} if images else {})}
        (tmp_path / "asked.jsonl").write_text(json.dumps(record) + "\n")
        count = len(images) + 1
        refused(llava, tmp_path / "asked.jsonl", tmp_path, f"{count} placeholders <image> for {len(images)}")


def test_a_template_without_images(llava: Path, asked: Path, tmp_path: Path) -> None:
    from tiny import CHAT_TEMPLATE

    model, tokenizer = load_model(llava), load_tokenizer(llava)
    shutil.copytree(llava, tmp_path / "model")
    tokenizer.chat_template = CHAT_TEMPLATE
    save_model(model, tokenizer, tmp_path / "model")
    (tmp_path / "model/chat_template.jinja").write_text(CHAT_TEMPLATE)
    refused(tmp_path / "model", asked, tmp_path, "its chat template shows 0 of 1 images")


def test_a_template_that_processors_alone_have(llava: Path, asked: Path, tmp_path: Path) -> None:
    """Older checkpoints keep it in chat_template.json, where tokenizers do not look."""
    shutil.copytree(llava, tmp_path / "model")
    template = (tmp_path / "model/chat_template.jinja").read_text()
    (tmp_path / "model/chat_template.jinja").unlink()
    (tmp_path / "model/chat_template.json").write_text(json.dumps({"chat_template": template}))
    generate(tmp_path / "model", tmp_path / "a", {"asked": asked}, RECIPE)
    generate(llava, tmp_path / "b", {"asked": asked}, RECIPE)
    assert (tmp_path / "a/asked.jsonl").read_bytes() == (tmp_path / "b/asked.jsonl").read_bytes()


def test_a_prompt_set_drawn_from_pairs_has_their_images_beside_it(tmp_path: Path) -> None:
    images = [picture(tmp_path / "pairs/images" / f"{i}.png", i) for i in range(2)]
    (tmp_path / "pairs/pairs.jsonl").write_text(
        "".join(
            json.dumps({**half, "id": f"p0-{half['label']}", "pair": "p0", "category": "c", "source": "s"})
            + "\n"
            for half in (
                {"label": "harmful", "modality": "image", "text": "What is in it?", "images": images[:1]},
                {"label": "benign", "modality": "image", "text": "What is in it?", "images": images[1:]},
                {"label": "harmful", "modality": "text", "text": "Say how."},
            )
        )
    )
    source = {"source": f"file:{tmp_path / 'pairs/pairs.jsonl'}", "where": {"modality": "image"}}
    from holdfast.cli import app
    from typer.testing import CliRunner

    run = CliRunner().invoke(
        app, ["prompts", str(tmp_path / "out/attack.jsonl"), "--recipe", json.dumps(source)]
    )
    assert run.exit_code == 0, run.output
    found = answers(tmp_path / "out/attack.jsonl")
    assert [(r["label"], r["pair"], r["modality"]) for r in found] == [
        ("harmful", "p0", "image"),
        ("benign", "p0", "image"),
    ]
    for record, image in zip(found, images, strict=True):
        assert record["images"] == [{"file": f"images/{image['sha256']}.png", "sha256": image["sha256"]}]
        assert [i.size for i in load_images(record, tmp_path / "out")] == [(48, 40)]
