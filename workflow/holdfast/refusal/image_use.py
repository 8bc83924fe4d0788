"""The stage ``image-use``: does what a model says, and whether it refuses, depend on the image it is shown?

A vision-language model can answer well and never look. Asked of a study's pairs that have images. Their halves need not
ask the same: refusals are compared on the harmful half's question alone.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from holdfast.batching import halving
from holdfast.errors import HoldfastError
from holdfast.files import sha256, write_json
from holdfast.pairs.joined import REMEDY, joined_pairs
from holdfast.prompts.images import Picture, Pictured, instructions
from holdfast.provenance import Recorder
from holdfast.refusal.direction import load_direction
from holdfast.refusal.passes import next_token_logits
from holdfast.refusal.prompt_trees import Rows
from holdfast.refusal.score_check import load_score
from holdfast.refusal.scores import BATCH, RefusalScore
from holdfast.statistics import bootstrap_mean

GREY = (127, 127, 127)
OTHER_BATCH = 3  # halves at a time where the null is measured
LABELS = ("harmful", "benign")


def image_use(model_dir: Path, out: Path, pairs: Path, direction: Path, recipe: Mapping[str, Any]) -> None:
    """Write how far a checkpoint's answers and refusals depend on the images of the pairs.

    Of each modality with images, means with 95 % bootstrap intervals: over halves the total variation (0..1) between
    the distributions of the first answer token with the half's own image and with a blank one of its size
    (``distance_blank``), with another pair's (``distance_other``), and, the null, with its own again in another batch
    (``distance_again``); over pairs the refusal score (log-odds) of the harmful half less that of its question about
    the benign half's image (``score_difference``), and about a blank image (``score_blank``). Pairs whose halves show
    one image are left out of ``score_difference``; ``one_image`` is their number, and with fewer than two others it is
    null. ``refusals_use_image``: both intervals of the score lie above 0, null where there is no difference.

    Args:
        pairs: a file of ``holdfast pairs build``.
        direction: the checkpoint's direction folder, which names the refusal score.
        recipe: ``seed`` of the bootstrap.

    Raises:
        HoldfastError: fewer than two pairs of a modality with images, or none at all; a model that takes no images.
    """
    from holdfast.checkpoints import load_model, load_tokenizer
    from holdfast.model_folders import settings

    recorder = Recorder("image-use", dict(recipe))
    by_modality = _with_images(pairs)
    shown = {m: _instructions(records, pairs.parent, model_dir) for m, records in by_modality.items()}
    model, tokenizer = load_model(model_dir), load_tokenizer(model_dir)
    score = load_score(load_direction(direction).about, tokenizer, settings(model_dir))
    found = {}
    with tempfile.TemporaryDirectory(prefix="holdfast-") as scratch:
        for modality, own in shown.items():
            other = [replace(one, pictures=own[i - len(LABELS)].pictures) for i, one in enumerate(own)]
            blank = [_blank(one, Path(scratch)) for one in own]
            found[modality] = _measured(model, score, own, blank, other, recipe["seed"])
    write_json(out, found)
    recorder.write(out.with_name(out.name + ".provenance.json"), [model_dir, pairs, direction])


def _with_images(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Records of the pairs with images by modality, the harmful half of each pair before its benign one."""
    found: dict[str, list[dict[str, Any]]] = {}
    for pair in joined_pairs(path):
        if bool(pair.harmful.get("images")) != bool(pair.benign.get("images")):
            raise HoldfastError(f"one half of pair {pair.name} has no image", str(path), REMEDY)
        if pair.harmful.get("images"):
            found.setdefault(pair.modality, []).extend((pair.harmful, pair.benign))
    remedy = "give a file of `holdfast pairs build` with two or more image or typographic pairs"
    if not found:
        raise HoldfastError("no pair has images", str(path), remedy)
    for modality, halves in found.items():
        if len(halves) == len(LABELS):
            raise HoldfastError(f"one {modality} pair alone gives no interval", str(path), remedy)
    return found


def _instructions(records: Sequence[Mapping[str, Any]], folder: Path, model_dir: Path) -> list[Pictured]:
    return [one for one in instructions(records, folder, model_dir) if isinstance(one, Pictured)]


def _blank(one: Pictured, scratch: Path) -> Pictured:
    """The same question about plain grey images of the same sizes."""
    pictures = []
    for picture in one.pictures:
        width, height = picture.load().size
        file = scratch / f"{width}x{height}.png"
        if not file.is_file():
            Image.new("RGB", (width, height), GREY).save(file)
        pictures.append(Picture(file, sha256(file)))
    return replace(one, pictures=tuple(pictures))


def _measured(
    model: PreTrainedModel,
    score: RefusalScore,
    own: Sequence[Pictured],
    blank: Sequence[Pictured],
    other: Sequence[Pictured],
    seed: int,
) -> dict[str, Any]:
    def read(shown: Sequence[Pictured], batch: int = BATCH) -> tuple[Tensor, Tensor]:
        """Probabilities of the first answer token [half, vocabulary], and refusal scores [half]; what is shown twice,
        as a blank image with both halves' question, is read once."""
        places = {one: place for place, one in enumerate(dict.fromkeys(shown))}
        prompts = score.prompts(list(places))

        def of(rows: Rows) -> tuple[Tensor, Tensor]:
            logits = next_token_logits(model, prompts, rows)
            return logits[:, 0].softmax(-1).cpu(), score.of(logits)

        order = [row for rows in prompts.batches(batch) for row in rows]
        done = halving(of, order, batch)
        back = torch.tensor(order).argsort()[[places[one] for one in shown]]
        return torch.cat([p for p, _ in done])[back], torch.cat([s for _, s in done])[back]

    pairs = list(zip(own[0::2], own[1::2], strict=True))
    changed = [place for place, (harmful, benign) in enumerate(pairs) if _images(harmful) != _images(benign)]
    # Published pairs differ in their texts too, and another question is refused for itself.
    swapped = [replace(pairs[place][0], pictures=pairs[place][1].pictures) for place in changed]
    # Read together: where the halves ask the same, what is asked of the benign image is the benign half.
    first, scores = read([*own, *swapped])
    first, scores, of_swapped = first[: len(own)], scores[: len(own)], scores[len(own) :]

    def distance(probabilities: Tensor) -> dict[str, Any]:
        moved = (probabilities.double() - first.double()).abs().sum(-1) / 2
        return bootstrap_mean(moved.tolist(), seed)._asdict()

    of_blank, blank_scores = read(blank)
    harmful = scores[0::2]
    difference = bootstrap_mean((harmful[changed] - of_swapped).tolist(), seed) if len(changed) > 1 else None
    from_blank = bootstrap_mean((harmful - blank_scores[0::2]).tolist(), seed)
    return {
        "distance_blank": distance(of_blank),
        "distance_other": distance(read(other)[0]),
        "distance_again": distance(read(own, OTHER_BATCH)[0]),
        "score_difference": difference._asdict() if difference else None,
        "one_image": len(pairs) - len(changed),
        "score_blank": from_blank._asdict(),
        "refusals_use_image": difference.low > 0 and from_blank.low > 0 if difference else None,
    }


def _images(one: Pictured) -> tuple[str, ...]:
    return tuple(picture.sha256 for picture in one.pictures)
