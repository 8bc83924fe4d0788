"""The stage ``transfer``: does the dense model's direction act in the compressed model, and the other way round?

Bypass and induce scores of the other model's direction on validation prompts (Arditi et al. 2024, section 2.3), beside
those of the receiving model's own, of no intervention, and of three nulls: random directions drawn with the receiving
model's activations' covariance where the other's direction comes from; differences of means of the other model's
activations over shuffled labels; and, the ceiling, directions from halves of the receiving model's own prompts.
"""

import gc
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from holdfast.batching import fitting_batch_size, halving
from holdfast.errors import HoldfastError
from holdfast.files import write_json
from holdfast.prompts.images import Instruction, read_instructions
from holdfast.provenance import Recorder
from holdfast.refusal.activations import load_activations, refuse_other_activations
from holdfast.refusal.comparison import at, kept_prompts, used
from holdfast.refusal.direction import Direction, load_direction, load_fitting, refuse_other_places
from holdfast.refusal.interventions import ablated
from holdfast.refusal.nulls import Pair, random_directions, shuffled_directions, split_halves
from holdfast.refusal.passes import BlockInputs, next_token_logits, pack_size
from holdfast.refusal.prompt_trees import Prompts, Rows
from holdfast.refusal.score_check import load_score
from holdfast.refusal.scores import RefusalScore
from holdfast.statistics import bootstrap_mean, p_beyond

Null = tuple[Tensor, int]  # a difference of means, float32 [d_model], and the layer that it is added at

WAYS = {"dense_in_compressed": ("dense", "compressed"), "compressed_in_dense": ("compressed", "dense")}
SCORES = {"bypass": -1, "induce": 1}  # where a direction that mediates refusal takes the refusal score

# The nulls, and what stands after ``null``, ``nulls`` and ``p`` in transfer.json; p is of those that chance makes.
SUFFIXES = {"random": "", "shuffled": "_shuffled", "split_half": "_split_half"}
CHANCE = ("random", "shuffled")


class Receiver:
    """A model that directions are tried in, on prompts of its own.

    Args:
        own: the direction whose kind of ablation is used, and whose harmless mean affine ablation puts back.
        layers: of the directions that will be added.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        score: RefusalScore,
        own: Direction,
        harmful: Sequence[Instruction],
        harmless: Sequence[Instruction],
        layers: Sequence[int],
    ) -> None:
        self.model, self.score, self.own = model, score, own
        self.harmful, self.harmless = score.prompts(harmful), score.prompts(harmless)
        self.mean = own.harmless if own.about["ablation"] == "affine" else None
        longest = max(self.harmful.lengths() + self.harmless.lengths())
        self.size = fitting_batch_size(self.model, longest)
        self.pack = pack_size(self.model, [self.harmful, self.harmless], self.size)
        self.kept = BlockInputs(self.model, self.harmless, layers, self.size, self.pack)

    def _scores(self, prompts: Prompts, rows: Rows) -> Tensor:
        return self.score.of(next_token_logits(self.model, prompts, rows))

    def _in_order(self, prompts: Prompts, of: Callable[[Rows], Tensor]) -> Tensor:
        """``of`` over all prompts, several a row, its scores in the prompts' order."""
        packs = prompts.packs(range(len(prompts)), self.pack)
        found = torch.cat(halving(of, packs, max(1, self.size // self.pack)))
        return found[torch.tensor([row for pack in packs for row in pack]).argsort()]

    def unchanged(self) -> dict[str, Tensor]:
        """Refusal scores [prompt] of harmful (``bypass``) and harmless prompts (``induce``), nothing done."""
        return {
            "bypass": self._in_order(self.harmful, lambda rows: self._scores(self.harmful, rows)),
            "induce": self._in_order(self.harmless, lambda rows: self._scores(self.harmless, rows)),
        }

    def scores(self, difference: Tensor, layer: int) -> dict[str, Tensor]:
        """``bypass``: scores of harmful prompts with the direction of ``difference`` ablated; ``induce``: of harmless
        ones with ``difference`` added at ``layer``; both [prompt]. Affine ablation puts back this model's own harmless
        mean.
        """

        def bypass(rows: Rows) -> Tensor:
            with ablated(self.model, difference / difference.norm(), self.mean):
                return self._scores(self.harmful, rows)

        def induce(rows: Rows) -> Tensor:
            with self.kept.resumed(self.model, layer, rows, difference):
                return self._scores(self.harmless, rows)

        return {
            "bypass": self._in_order(self.harmful, bypass),
            "induce": self._in_order(self.harmless, induce),
        }


def loaded(folder: Path) -> tuple[PreTrainedModel, RefusalScore, Direction]:
    """The model of ``MODEL/COMPRESSION``, the refusal score that its direction was chosen by, and that direction."""
    from holdfast.checkpoints import load_model, load_tokenizer
    from holdfast.model_folders import settings

    checkpoint, own = folder / "checkpoint", load_direction(folder / "direction")
    model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
    return model, load_score(own.about, tokenizer, settings(checkpoint)), own


def transfer(
    dense: Path,
    compressed: Path,
    out: Path,
    harmful: Path,
    harmless: Path,
    recipe: Mapping[str, Any],
) -> dict[str, Any]:
    """Write ``out`` (JSON): both ways, each with both scores; see docs/formats.md.

    Args:
        dense, compressed: folders of a compression (``MODEL/COMPRESSION``) that hold ``checkpoint/``,
            ``direction/`` and ``activations/``.
        harmful, harmless: validation prompts.
        recipe: nulls (how many directions of each kind), seed.

    Raises:
        HoldfastError: the two directions are not of models of one shape; one that was found in other activations.
    """
    recorder = Recorder("transfer", dict(recipe))
    refused, answered = (read_instructions(path, dense / "checkpoint") for path in (harmful, harmless))
    for path, texts in ((harmful, refused), (harmless, answered)):
        if len(texts) < 2:
            raise HoldfastError(
                "one prompt, and an interval needs two or more", str(path), "give more prompts"
            )
    folders = {"dense": dense, "compressed": compressed}
    directions = {name: load_direction(folder / "direction") for name, folder in folders.items()}
    if len({d.harmless.shape for d in directions.values()}) > 1:
        what = f"its direction is of a model of another shape than {dense}"
        raise HoldfastError(what, str(compressed / "direction"), "give two folders of one model")
    for folder in folders.values():
        load_fitting(folder / "direction", folder / "checkpoint")
        refuse_other_activations(folder / "direction", folder / "activations")
    found: dict[str, Any] = {}
    # One model after the other: two need not fit into memory.
    for way, (giver, receiver) in WAYS.items():
        layers = sorted({d.layer for d in directions.values()})
        tried = Receiver(*loaded(folders[receiver]), refused, answered, layers)
        nulls = null_differences(
            directions[giver],
            tried.own,
            folders[giver],
            folders[receiver],
            recipe["nulls"],
            recipe["seed"],
        )
        found[way] = measured(tried, directions[giver], nulls, recipe["seed"], way)
        del tried
        gc.collect()
    result = {"nulls": recipe["nulls"], **found}
    write_json(out, result)
    inputs = [f / name for f in folders.values() for name in ("checkpoint", "direction", "activations")]
    recorder.write(out.with_name(out.name + ".provenance.json"), [*inputs, harmful, harmless])
    return result


def null_differences(
    other: Direction, own: Direction, giver: Path, receiver: Path, draws: int, seed: int
) -> dict[str, list[Null]]:
    """The directions of each null, by its name in ``SUFFIXES``.

    ``random`` and ``shuffled`` ones are made as long as the other model's mean difference, for a longer one does more
    when added; those of half of the prompts (``split_half``) are as long as they come.

    Args:
        other, own: the giving and the receiving model's directions.
        giver, receiver: the models' folders, with ``direction/`` and ``activations/``.
        draws: of each null.
    """
    theirs, mine = (load_activations(folder / "activations")[0] for folder in (giver, receiver))
    refuse_other_places(other, giver / "direction", theirs, giver / "activations")
    refuse_other_places(other, giver / "direction", mine, receiver / "activations")
    refuse_other_places(own, receiver / "direction", mine, receiver / "activations")
    of_other = used(at(theirs, other.position, other.layer), kept_prompts(other, theirs))
    of_own = used(at(mine, own.position, own.layer), kept_prompts(own, mine))
    found = chance_differences(other, at(mine, other.position, other.layer), of_other, draws, seed)
    return found | {"split_half": [(d.float(), own.layer) for d in split_halves(of_own, draws, seed)[0]]}


def chance_differences(
    other: Direction, receiving: Pair, giving: Pair, draws: int, seed: int
) -> dict[str, list[Null]]:
    """As long as ``other``, at its layer: ``random`` ones with the covariance of ``receiving``, block inputs at its
    place, and ``shuffled`` ones over shuffled labels of ``giving``, those that it was found in."""
    drawn = {
        "random": random_directions(receiving, draws, seed),
        "shuffled": shuffled_directions(giving, draws, seed),
    }
    return {
        name: [((d / d.norm() * other.difference.norm()).float(), other.layer) for d in of_null]
        for name, of_null in drawn.items()
    }


def measured(
    receiver: Receiver, other: Direction, nulls: Mapping[str, Sequence[Null]], seed: int, way: str
) -> dict[str, Any]:
    """One way: where both directions come from, and ``bypass`` and ``induce`` as :func:`summarised`."""
    own = receiver.own
    about = {
        of: {"layer": d.layer, "position": d.position, "norm": d.difference.norm().item(), "usable": d.usable}
        for of, d in (("own", own), ("other", other))
    }
    return {
        **about,
        "score": own.about["score"],
        "score_valid": own.about.get("score_valid"),
        "ablation": own.about["ablation"],
        **both_scores(receiver, other, nulls, seed, way.replace("_", " ")),
    }


def both_scores(
    receiver: Receiver, other: Direction, nulls: Mapping[str, Sequence[Null]], seed: int, name: str
) -> dict[str, Any]:
    """``bypass`` and ``induce`` of the receiver's own direction and of ``other``, as :func:`summarised`."""
    own = receiver.own
    base = receiver.unchanged()
    tried = [(own.difference, own.layer), (other.difference, other.layer), *chain(*nulls.values())]
    scores = [
        receiver.scores(*direction) for direction in tqdm(tried, desc=name, unit="direction", mininterval=2)
    ]
    of_nulls = iter(scores[2:])
    by_null = {null: [next(of_nulls) for _ in drawn] for null, drawn in nulls.items()}
    return {
        measure: summarised(
            base[measure],
            scores[0][measure],
            scores[1][measure],
            {null: [s[measure] for s in of_null] for null, of_null in by_null.items()},
            sign,
            seed,
        )
        for measure, sign in SCORES.items()
    }


def summarised(
    base: Tensor, own: Tensor, other: Tensor, nulls: Mapping[str, Sequence[Tensor]], sign: int, seed: int
) -> dict[str, Any]:
    """Means over prompts of refusal scores [prompt], with bootstrap intervals, and paired differences.

    ``other_effect`` and ``own_effect``: change against no intervention on the same prompts; ``other_minus_own``
    likewise; ``nulls``: the mean of each random direction; ``null``: their mean and range; ``p``: one-sided, that a
    random direction moves the score as far as the other model's does (``statistics.p_beyond``; ``sign`` says which
    way); the same names with ``_shuffled`` of those over shuffled labels, and with ``_split_half``, which have no p.
    All are None where a score is not finite.
    """
    whole = torch.cat([base, own, other, *chain(*nulls.values())])
    finite = bool(torch.isfinite(whole).all())

    def band(values: Tensor) -> dict[str, Any]:
        if not finite:
            return {"value": None, "n": len(values), "low": None, "high": None}
        return bootstrap_mean(values.tolist(), seed)._asdict()

    found: dict[str, Any] = {
        "baseline": band(base),
        "own": band(own),
        "other": band(other),
        "own_effect": band(own - base),
        "other_effect": band(other - base),
        "other_minus_own": band(other - own),
    }
    for name, of_null in nulls.items():
        suffix = SUFFIXES[name]
        means = [null.mean().item() for null in of_null]
        middle = sum(means) / len(means)
        spread = {"mean": middle, "low": min(means), "high": max(means), "n": len(means)}
        found[f"nulls{suffix}"], found[f"null{suffix}"] = (means, spread) if finite else (None, None)
        if name in CHANCE:
            p = p_beyond(sign * other.mean().item(), [sign * m for m in means]) if finite else None
            found[f"p{suffix}"] = p
    return found
