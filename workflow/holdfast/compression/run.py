"""The stage ``compress``: a dense checkpoint and a recipe in, a compressed checkpoint with provenance out."""

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast.checkpoints import load_model, load_tokenizer, save_model
from holdfast.compression import calibration as calibration_texts
from holdfast.compression.calibration import Sample
from holdfast.config.by_hand import validated
from holdfast.config.compressions import calibrated
from holdfast.errors import HoldfastError
from holdfast.files import atomic_folder, sha256
from holdfast.model_folders import carry, read_config, refuse_steered, settings, weight_files
from holdfast.provenance import Recorder
from holdfast.skeletons import answers_questions
from holdfast.weight_statistics import weight_statistics


def compress(
    model_dir: Path, out_dir: Path, recipe: Mapping[str, Any], calibration: Path | None = None
) -> None:
    """Compress any dense Hugging Face folder, or put a published compressed checkpoint beside it.

    Args:
        model_dir: the dense checkpoint.
        out_dir: the compressed one, written atomically: weights, the source's tokenizer and holdfast.json,
            provenance.json with the density and the bits stored per weight of every decoder linear.
        recipe: a section of a study's ``compressions`` (see config/compressions.py), with samples, tokens and
            seed of the calibration draw where the method is calibrated.
        calibration: JSONL records with ``text``; calibrated methods need it, others do not read it.

    Raises:
        HoldfastError: a bad recipe, checkpoint or calibration file, an unsupported architecture, a group size
            or pattern that does not fit, weights that are not finite, a backend that is not installed.
    """
    full = {key: value for key, value in validated("compress", dict(recipe)).items() if value is not None}
    if not calibrated(full):
        full = {key: value for key, value in full.items() if key not in ("samples", "tokens", "seed")}
    recorder = Recorder("compress", full)
    refuse_compressed(model_dir)
    sequences: list[Sample] = []
    if calibrated(full):
        if answers_questions(model_dir):
            method = full.get("prune") or full["quantize"]
            what = f"{method} goes through one language model, and an encoder-decoder has two"
            raise HoldfastError(what, str(model_dir), "use magnitude, rtn, dynamic fp8, llm-int8 or nf4")
        if calibration is None:
            remedy = "give --calibration, a JSONL file whose records have a text"
            raise HoldfastError("the method is calibrated", "compress", remedy)
        drawn = {key: full[key] for key in ("samples", "tokens", "seed")}
        tokenizer, chosen = load_tokenizer(model_dir), settings(model_dir)
        sequences = calibration_texts.sequences(calibration, tokenizer, chosen, **drawn)
    about = (
        {"calibration": size(sequences) | {"sha256": sha256(calibration)}}
        if calibration and sequences
        else {}
    )
    inputs = [model_dir, calibration] if calibration and sequences else [model_dir]
    write_checkpoint(model_dir, out_dir, full, sequences, recorder, inputs, about)


def refuse_compressed(model_dir: Path) -> None:
    """Raises HoldfastError: the model is quantized already or steered, or its weights are not all there."""
    if read_config(model_dir).get("quantization_config"):
        raise HoldfastError("the model is quantized already", str(model_dir), "compress its dense original")
    refuse_steered(model_dir)
    weight_files(model_dir)


def size(sequences: Sequence[Sample]) -> dict[str, Any]:
    """How many sequences and tokens; where some have images, how many."""
    tokens = sum(calibration_texts.token_ids(s).shape[1] for s in sequences)
    seen = calibration_texts.with_images(sequences)
    return {"sequences": len(sequences), "tokens": tokens, **({"with_images": seen} if seen else {})}


def write_checkpoint(
    model_dir: Path,
    out_dir: Path,
    full: Mapping[str, Any],
    sequences: list[Sample],
    recorder: Recorder,
    inputs: Sequence[Path],
    about: dict[str, Any],
) -> None:
    """The compressed checkpoint with its record, whole or not at all.

    Args:
        full: a compression's recipe with its defaults.
        sequences: what a calibrated method sees.
        inputs, about: of the record.
    """
    with atomic_folder(out_dir) as folder:
        if "source" in full:
            from holdfast.compression import published

            about["revision"] = published.bring(full["source"], model_dir, folder)
        else:
            write_compressed(model_dir, folder, full, sequences)
            gc.collect()  # a model's modules refer to each other: it would stay while its files are read
        carry(model_dir, folder)
        parts = sorted({"language", *full.get("parts", [])})
        statistics = weight_statistics(folder, parts=parts, named=full.get("source"))
        recorder.write(folder / "provenance.json", inputs, **about, **statistics)


def write_compressed(model_dir: Path, out: Path, recipe: Mapping[str, Any], sequences: list[Sample]) -> None:
    """Compress and save by the recipe's own backend; imports only that one."""
    method = recipe.get("prune") or recipe["quantize"]
    if recipe.get("format") == "auto-gptq":
        from holdfast.compression import auto_gptq

        auto_gptq.quantize_and_save(model_dir, out, recipe, sequences)
    elif method in ("llm-int8", "nf4"):
        from holdfast.compression import bits_and_bytes

        save_model(bits_and_bytes.load_quantized(model_dir, recipe), None, out)
    elif "prune" in recipe:
        from holdfast.compression import pruning

        model = load_model(model_dir)
        pruning.prune(model, recipe, sequences)
        save_model(model, None, out)
    else:
        from holdfast.compression import llm_compressor

        model = load_model(model_dir)
        llm_compressor.quantize(model, recipe, sequences)
        llm_compressor.save(model, out)
