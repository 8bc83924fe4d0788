"""The stage ``recalibrate``: a compression made again with refusals among what it is calibrated on.

A calibrated method keeps what its calibration inputs need, and plain text never needs a refusal. Here part of
the text gives way to chats in the dense model's own template: harmful training prompts with the refusals that
the dense model gave, or, as the control, harmless ones with its answers. All else of the compression is as it was.
"""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from holdfast.checkpoints import load_tokenizer
from holdfast.compression import calibration as calibration_texts
from holdfast.compression.run import refuse_compressed, size, write_checkpoint
from holdfast.config.by_hand import validated
from holdfast.config.compressions import calibrated
from holdfast.errors import HoldfastError
from holdfast.files import sha256
from holdfast.methods.training_answers import conversations, training_answers
from holdfast.model_folders import settings
from holdfast.prompts.overlap import EvaluatedText
from holdfast.provenance import Recorder

LABELS: dict[str, Literal["refused", "answered"]] = {"refusals": "refused", "answers": "answered"}


def recalibrate(
    dense: Path,
    out: Path,
    recipe: Mapping[str, Any],
    *,
    calibration: Path,
    answers: Path,
    evaluated: Mapping[str, Path],
) -> None:
    """Compress the dense checkpoint anew and write the result, as ``compress`` does, to ``out``.

    Args:
        recipe: ``compress``, the recipe of a calibrated compression; ``recalibrate``, what is mixed in (refusals
            or answers); ``share`` of the sequences that gives way to chats; ``judge`` of the refusals.
        calibration: plain text, JSONL records with ``text``: the first of the same draw as the compression's.
        answers: the dense model's answers to training prompts, from ``holdfast generate``: to harmful ones for
            refusals, to harmless ones for answers.
        evaluated: prompt sets that no chat may hold, by name.

    Raises:
        HoldfastError: the compression is not calibrated, the share leaves no text or no chat, no answer of the
            kind is left; and as ``compress``.
    """
    full = {
        key: value
        for key, value in validated("compress", dict(recipe["compress"])).items()
        if value is not None
    }
    if not calibrated(full):
        remedy = "use it with wanda, sparsegpt, gptq, awq, smoothquant or static fp8"
        raise HoldfastError("the compression is not calibrated", "--recipe, compress", remedy)
    recorder = Recorder("recalibrate", {**recipe, "compress": full})
    refuse_compressed(dense)
    replaced = round(recipe["share"] * full["samples"])
    if not 0 < replaced < full["samples"]:
        what = f"share {recipe['share']} of {full['samples']} sequences is {replaced}"
        raise HoldfastError(
            what, "--recipe, share", "give a share that leaves text and chats, or more samples"
        )
    found, counts = training_answers(
        answers, LABELS[recipe["recalibrate"]], recipe["judge"], EvaluatedText(evaluated)
    )
    tokenizer, chosen_settings = load_tokenizer(dense), settings(dense)
    draw = {"tokens": full["tokens"], "seed": full["seed"]}
    left = full["samples"] - replaced
    texts = calibration_texts.sequences(calibration, tokenizer, chosen_settings, samples=left, **draw)
    ids = [ids for ids, _ in conversations(tokenizer, found, chosen_settings)]
    chats = chosen(ids, tokens=full["tokens"], budget=replaced * full["tokens"], seed=full["seed"])
    about = {
        "calibration": size([*texts, *chats])
        | {"sha256": sha256(calibration), "chats": size(chats), "answers": counts}
    }
    inputs = [dense, calibration, answers, *evaluated.values()]
    write_checkpoint(dense, out, full, [*texts, *chats], recorder, inputs, about)


def chosen(chats: Sequence[list[int]], *, tokens: int, budget: int, seed: int) -> list[torch.Tensor]:
    """Chats in an order drawn by the seed, up to ``budget`` tokens in all or until there are no more.

    int64 [1, n] each, its first ``tokens`` tokens; at least one. Each stays a sequence of its own: joined, the
    later ones would see the earlier.
    """
    order = random.Random(seed).sample(range(len(chats)), len(chats))
    taken: list[torch.Tensor] = []
    for index in order:
        chat = torch.tensor([chats[index][:tokens]])
        if taken and sum(t.shape[1] for t in taken) + chat.shape[1] > budget:
            break
        taken.append(chat)
    return taken
