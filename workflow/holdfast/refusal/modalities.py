"""The stage ``modalities``: directions found on text, images and drawn text, at the refusal direction's place.

Is it one direction? Their cosines with each other, with the refusal direction, and with the dense model's, beside
nulls. Does it act? What ablating and adding the refusal direction does to refusal scores of pairs of every modality,
beside the modality's own direction and random ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from holdfast.errors import HoldfastError
from holdfast.files import atomic_folder, read_json, sha256, write_json
from holdfast.prompts.images import Instruction, instructions
from holdfast.prompts.sources import MODALITIES, read_records
from holdfast.provenance import Recorder
from holdfast.records import Record, require
from holdfast.refusal.activations import (
    batches_of_block_inputs,
    load_activations,
    read_tensors,
    refuse_other_activations,
    refuse_other_model,
)
from holdfast.refusal.comparison import at, differ, kept_prompts
from holdfast.refusal.direction import Direction, load_direction, refuse_other_places, write_direction
from holdfast.refusal.modality_cosines import KINDS, Seen, beside, seen
from holdfast.refusal.nulls import Pair, difference
from holdfast.refusal.score_check import load_score
from holdfast.refusal.scores import RefusalScore
from holdfast.refusal.transfer import Receiver, both_scores, chance_differences

FEWEST = 4  # prompts of a kind: halves of fewer have no scatter
ACTIVATIONS = "activations.safetensors"
Grouped = dict[str, dict[str, list[dict[str, Any]]]]  # records by modality and kind


def modalities(
    model_dir: Path,
    out: Path,
    *,
    direction_dir: Path,
    activations_dir: Path,
    prompts: Path,
    pairs: Path,
    recipe: Mapping[str, Any],
    dense: Path | None = None,
) -> dict[str, Any]:
    """Write ``modalities.json``, the block inputs at the direction's place, and each modality's direction in a folder.

    Args:
        direction_dir, activations_dir: of the same checkpoint, as the stages of these names wrote them.
        prompts: what directions are learnt on: records with ``modality``, ``label`` (``harmful`` or another) and,
            where the same content stands in several modalities, ``content``.
        pairs: what they are tried on, a file of ``holdfast pairs build``: harmful halves with a direction ablated,
            benign ones with it added.
        recipe: ``nulls`` (random directions of either kind, 3 or more), ``pairs`` (of each modality, the first ones;
            None for all), ``seed``.
        dense: what this stage wrote of the dense model, of a compressed checkpoint.

    Raises:
        HoldfastError: too few prompts or pairs, or none of a modality in common; images and a text-only model; folders
            of other checkpoints or other prompts.
    """
    from holdfast.checkpoints import load_model, load_tokenizer
    from holdfast.model_folders import settings

    recorder = Recorder("modalities", dict(recipe))
    learnt = {m: _grouped(records, prompts, m, FEWEST) for m, records in by_modality(prompts).items()}
    tried = {
        m: {kind: some[: recipe["pairs"]] for kind, some in _grouped(records, pairs, m, 2).items()}
        for m, records in by_modality(pairs).items()
        if m in learnt
    }
    if not tried:
        what = f"has no pair of {', '.join(learnt)}, which directions are learnt on"
        raise HoldfastError(what, str(pairs), "give pairs of these modalities")
    asked = _instructions(learnt, prompts.parent, model_dir), _instructions(tried, pairs.parent, model_dir)
    chosen = load_direction(direction_dir)
    refuse_other_activations(direction_dir, activations_dir)
    refuse_other_model(activations_dir, model_dir, recorder.checksum(model_dir))
    cached, _ = load_activations(activations_dir)
    refuse_other_places(chosen, direction_dir, cached, activations_dir)
    checksum = sha256(prompts)
    there = _dense(dense, checksum, learnt, chosen) if dense else None

    model, tokenizer, about = load_model(model_dir), load_tokenizer(model_dir), settings(model_dir)
    positions = [chosen.position, *([there[1]] if there else [])]
    inputs = {
        m: {kind: _inputs(model, tokenizer, texts, about, positions) for kind, texts in of.items()}
        for m, of in asked[0].items()
    }
    here = {m: _seen(learnt[m], inputs[m], 0, chosen.layer) for m in learnt}
    directions = {m: _direction(chosen, here[m].pair, inputs[m]["harmless"][:, 0]) for m in learnt}
    records = [read_records(activations_dir / f"{kind}.jsonl") for kind in KINDS]
    study = seen(
        at(cached, chosen.position, chosen.layer), (records[0], records[1]), kept_prompts(chosen, cached)
    )
    seed, score, names = recipe["seed"], load_score(chosen.about, tokenizer, about), list(learnt)
    result = {
        "chosen": {
            **{"layer": chosen.layer, "position": chosen.position, "norm": chosen.difference.norm().item()},
            **{"usable": chosen.usable, "score_valid": chosen.about.get("score_valid")},
            "ablation": chosen.about["ablation"],
        },
        "prompts": checksum,
        "learnt": {
            m: {kind: len(x) for kind, x in zip(KINDS, of.pair, strict=True)}
            | {"norm": difference(of.pair).norm().item()}
            for m, of in here.items()
        },
        "between": {
            f"{a}-{b}": beside(here[a], here[b], seed) for i, a in enumerate(names) for b in names[i + 1 :]
        },
        "to_chosen": {m: beside(study, of, seed) for m, of in here.items()},
        "to_dense": {m: beside(there[2][m], _seen(learnt[m], inputs[m], 1, there[0]), seed) for m in learnt}
        if there
        else None,
        "tried": {
            m: _tried(model, score, chosen, directions[m], here[m].pair, study.used, asked[1][m], recipe, m)
            for m in tried
        },
    }
    with atomic_folder(out) as folder:
        write_json(folder / "modalities.json", result)
        tensors = {f"{m}.{kind}": x for m, of in here.items() for kind, x in zip(KINDS, of.pair, strict=True)}
        save_file({name: x.contiguous() for name, x in tensors.items()}, folder / ACTIVATIONS)
        for m, found in directions.items():
            if found:
                write_direction(found, folder / m)
        given = [model_dir, direction_dir, activations_dir, prompts, pairs, *([dense] if dense else [])]
        recorder.write(folder / "provenance.json", given)
    return result


def by_modality(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Records of a file by their modality, text first.

    Raises:
        HoldfastError: a record names none that is known.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for record in read_records(path):
        if record.get("modality") not in MODALITIES:
            what = f"record {record['id']} has modality {record.get('modality')}"
            raise HoldfastError(what, str(path), f"give each record one of {', '.join(MODALITIES)}")
        found.setdefault(record["modality"], []).append(record)
    return {m: found[m] for m in MODALITIES if m in found}


def _grouped(
    records: Sequence[dict[str, Any]], path: Path, modality: str, fewest: int
) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for record in records:
        found["harmful" if record.get("label") == "harmful" else "harmless"].append(record)
    for kind, some in found.items():
        if len(some) < fewest:
            what = f"{len(some)} {kind} prompts of modality {modality}, and {fewest} are needed"
            raise HoldfastError(what, str(path), "give more, of both kinds")
    return found


def _instructions(grouped: Grouped, folder: Path, model_dir: Path) -> dict[str, dict[str, list[Instruction]]]:
    return {
        m: {kind: instructions(records, folder, model_dir) for kind, records in of.items()}
        for m, of in grouped.items()
    }


def _inputs(
    model: PreTrainedModel,
    tokenizer: Any,
    texts: Sequence[Instruction],
    settings: Mapping[str, Any],
    positions: Sequence[int],
) -> Tensor:
    """Block inputs at some positions, float32 [prompt, position, layer, d_model]."""
    found: list[Tensor] = [torch.empty(0)] * len(texts)
    for rows, values in batches_of_block_inputs(model, tokenizer, texts, settings):
        for row, value in zip(rows, values[:, positions], strict=True):
            found[row] = value
    return torch.stack(found)


def _seen(
    records: Mapping[str, Sequence[Mapping[str, Any]]], inputs: Mapping[str, Tensor], place: int, layer: int
) -> Seen:
    harmful, harmless = (inputs[kind][:, place, layer] for kind in KINDS)
    return seen((harmful, harmless), (records["harmful"], records["harmless"]))


def _direction(chosen: Direction, pair: Pair, harmless: Tensor) -> Direction | None:
    """The modality's own direction at the chosen one's place; None where the kinds do not differ there at all.

    ``harmless``: block inputs of its harmless prompts at that position, [prompt, layer, d_model].
    """
    if not differ(pair):
        return None
    raw = difference(pair)
    about = {
        k: v for k, v in chosen.about.items() if k not in ("train_rows", "train_prompts", "chosen", "norm")
    }
    about |= {"norm": raw.norm().item(), "train_prompts": dict(zip(KINDS, map(len, pair), strict=True))}
    return replace(
        chosen,
        unit=(raw / raw.norm()).float(),
        difference=raw.float(),
        harmless=harmless.double().mean(0).float(),
        about=about,
    )


class _There(Record):
    layer: int = Field(ge=0)
    position: int = Field(lt=0)


class _Dense(Record):
    prompts: str
    chosen: _There


def _dense(
    folder: Path, prompts: str, learnt: Grouped, chosen: Direction
) -> tuple[int, int, dict[str, Seen]]:
    """Layer, position and block inputs of what this stage wrote of the dense model.

    Raises:
        HoldfastError: it is of other prompts, or of a model of another shape; files that are missing or damaged.
    """
    file, remedy = folder / "modalities.json", "run holdfast modalities again, on the dense model"
    found = read_json(file)
    require(_Dense, found, str(file), remedy)
    place = _Dense.model_validate(found).chosen
    if found["prompts"] != prompts:
        raise HoldfastError("it is of other prompts", str(folder), remedy)
    if place.layer >= len(chosen.harmless):
        what = f"is of layer {place.layer}, and the model has {len(chosen.harmless)}"
        raise HoldfastError(what, str(folder), "give that of the same model's dense original")
    names = [f"{m}.{kind}" for m in learnt for kind in KINDS]
    tensors = read_tensors(folder / ACTIVATIONS, names, remedy)
    return (
        place.layer,
        place.position,
        {
            m: seen((tensors[f"{m}.harmful"], tensors[f"{m}.harmless"]), (of["harmful"], of["harmless"]))
            for m, of in learnt.items()
        },
    )


def _tried(
    model: PreTrainedModel,
    score: RefusalScore,
    chosen: Direction,
    own: Direction | None,
    receiving: Pair,
    giving: Pair,
    asked: Mapping[str, Sequence[Instruction]],
    recipe: Mapping[str, Any],
    name: str,
) -> dict[str, Any] | None:
    """The refusal direction (``other``) and the modality's own, on pairs of the modality; None where it has no own.

    Affine ablation puts back the mean of the modality's own harmless prompts.
    """
    if own is None:
        return None
    nulls = chance_differences(chosen, receiving, giving, recipe["nulls"], recipe["seed"])
    receiver = Receiver(model, score, own, asked["harmful"], asked["harmless"], [chosen.layer])
    return both_scores(receiver, chosen, nulls, recipe["seed"], name)
