"""`holdfast train-vision`: gives the embedded model a tower and a projector, trained here on rendered pictures.

The result is a small model with a closed picture vocabulary, a stand-in for a vision-language model and not one that
sees the world.
"""

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.embedded.tuning import REFUSALS, examples, own_answers
from holdfast.embedded.vision.assembling import (
    ADAPTER,
    FILES,
    VISION,
    assembled,
    llava,
    load_vision,
    processor_of,
    vision_weights,
)
from holdfast.embedded.vision.measuring import picture_rates, text_rates
from holdfast.embedded.vision.optimising import Optimise, optimise
from holdfast.embedded.vision.seeing import see
from holdfast.embedded.vision.speaking import speak
from holdfast.embedded.vision.vocabulary import WORDS, read_words
from holdfast.evaluation.judges import substring_judge
from holdfast.files import atomic_folder, read_json, sha256, write_json
from holdfast.methods.training_answers import Example
from holdfast.prompts.sources import read_prompts
from holdfast.provenance import Recorder, input_checksum

SHIPPED = Path(__file__).parents[1] / "vision-parts"


def train_vision(base: Path, out: Path, recipe: dict[str, Any], words_file: Path = WORDS) -> dict[str, Any]:
    """Train tower, projector and LoRA for the language model ``base``; write them, float16, with rates, to ``out``.

    Each stage's result is kept beside ``out`` (``OUT.stage-1``, ``OUT.stage-2``) and taken from there when it was made
    of the same base and recipe; so is what a stage has learnt so far (``OUT.stage-1.partial``): a killed run goes on.

    Args:
        recipe: ``tower`` (a SigLIP config), ``image_token`` (the special token that becomes ``<image>``), ``seed``,
            ``see`` (stage 1), ``text`` (prompt sets ``harmful``, ``harmless`` and ``answer_tokens``), ``speak``
            (stage 2), ``measure`` (numbers of pictures, and ``text``: prompt sets never trained on).

    Raises:
        HoldfastError: as of the recipe's prompt sets, of the words, and of :func:`assembled`.
    """
    from holdfast.checkpoints import load_model, load_tokenizer

    recorder = Recorder("train-vision", recipe)
    words = read_words(words_file)
    measured = {name: [r["text"] for r in read_prompts(p)] for name, p in recipe["measure"]["text"].items()}
    tokenizer = load_tokenizer(base)
    made_of = {
        "base": input_checksum(base),
        "words": sha256(words_file),
        **{key: recipe[key] for key in ("tower", "image_token", "seed", "see")},
    }

    def seeing(folder: Path, optimise: Optimise) -> list[float]:
        processor = processor_of(tokenizer, recipe)
        model = llava(load_model(base, torch.float32), processor, recipe)
        losses = see(model, processor.tokenizer, words.all, recipe["see"], recipe["seed"], optimise)
        save_file(vision_weights(model), folder / VISION)
        return losses

    def speaking(folder: Path, optimise: Optimise) -> list[float]:
        processor = processor_of(tokenizer, recipe)
        language_model = load_model(base, torch.float32)
        chats = text_chats(language_model, processor.tokenizer, recipe["text"])
        model = llava(language_model, processor, recipe)
        load_vision(model, load_file(first / VISION))
        tuned, losses = speak(
            model, processor.tokenizer, words, chats, recipe["speak"], recipe["seed"], optimise
        )
        write_parts(tuned, folder, recipe)
        return losses

    first = kept(out.with_name(f"{out.name}.stage-1"), made_of, seeing)
    made_of |= {key: recipe[key] for key in ("text", "speak")}
    second = kept(out.with_name(f"{out.name}.stage-2"), made_of, speaking)

    language_model = load_model(base, torch.float32)
    text = {"language_model": text_rates(language_model, tokenizer, measured, "language model")}
    model, processor = assembled(language_model, tokenizer, second)
    text["with_vision"] = text_rates(model, processor.tokenizer, measured, "with vision")
    sums = {file: sha256(second / file) for file in (VISION, ADAPTER)}
    rates = {
        "pictures": picture_rates(model, processor, words, recipe["measure"]),
        "text": text,
        "loss_last_10": {
            name: sum(losses[-10:]) / len(losses[-10:])
            for name, losses in ((f.suffix[1:], read_json(f / "losses.json")) for f in (first, second))
        },
        "weights": sums,
    }
    with atomic_folder(out) as folder:
        for file in FILES:
            shutil.copyfile(second / file, folder / file)
        write_json(folder / "recipe.json", recipe)
        write_json(folder / "rates.json", rates)
        recorder.write(folder / "provenance.json", [base, words_file, REFUSALS], weights=sums)
    return rates


def kept(folder: Path, made_of: dict[str, Any], make: Callable[[Path, Optimise], list[float]]) -> Path:
    """The folder of a finished stage; made, with its losses, where it is not there or was made of something else."""
    record, partial = folder / "made-of.json", folder.with_name(f"{folder.name}.partial")
    if not record.is_file() or read_json(record) != made_of:
        run = functools.partial(optimise, partial=partial, made_of=made_of)
        with atomic_folder(folder) as new:
            write_json(new / "losses.json", make(new, run))
            write_json(new / record.name, made_of)
    partial.unlink(missing_ok=True)
    return folder


def text_chats(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, recipe: dict[str, Any]
) -> list[Example]:
    """Chats without a picture, answered by the language model itself; of harmless prompts those it did not refuse."""
    judge = substring_judge("arditi-12")
    chats: list[Example] = []
    for label in ("harmful", "harmless"):
        prompts = [r["text"] for r in read_prompts(recipe[label])]
        said = own_answers(model, tokenizer, prompts, recipe["answer_tokens"])
        told = [
            (prompt, answer)
            for prompt, answer in zip(prompts, said, strict=True)
            if answer[0] and (label == "harmful" or not judge.refused(answer[0], ""))
        ]
        chats += examples(tokenizer, [prompt for prompt, _ in told], [answer for _, answer in told])
    return chats


def write_parts(tuned: Any, folder: Path, recipe: dict[str, Any]) -> None:
    """Tower, projector and LoRA in float16, as they ship; ``tuned`` is spent."""
    vision = vision_weights(tuned.get_base_model())
    save_file({name: weight.half() for name, weight in vision.items()}, folder / VISION)
    tuned.half().save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)  # peft's card template, empty of facts
    config = read_json(folder / "adapter_config.json")
    config["base_model_name_or_path"] = None
    write_json(folder / "adapter_config.json", config)
    write_json(folder / "recipe.json", recipe)
