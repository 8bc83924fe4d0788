"""The stage ``tune``: a short LoRA that teaches a compressed model the dense model's refusals again, merged.

Loss on answers only: refusals of harmful training prompts and, so that answering stays, answers to harmless ones,
both the dense model's own. Its control learns the answers alone: what tuning does by itself.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from holdfast.architectures import decoder_linears
from holdfast.checkpoints import load_dequantized, load_tokenizer
from holdfast.edited_checkpoints import edited_copy
from holdfast.errors import HoldfastError
from holdfast.files import atomic_folder, write_json
from holdfast.methods.lora import train
from holdfast.methods.training_answers import conversations, training_answers
from holdfast.model_folders import config_dtype, refuse_steered, settings
from holdfast.prompts.overlap import EvaluatedText
from holdfast.provenance import Recorder
from holdfast.skeletons import skeleton
from holdfast.weight_statistics import weight_statistics

ALPHA = 2  # the adapter's scaling alpha / rank, whatever the rank


def tune(
    model_dir: Path,
    out: Path,
    recipe: Mapping[str, Any],
    *,
    harmful: Path,
    harmless: Path,
    evaluated: Mapping[str, Path],
) -> dict[str, Any]:
    """Write the tuned copy of a compressed checkpoint, with ``tuning.json`` (the data and the loss of every step).

    The adapter is on every linear of the decoder. A quantized checkpoint is trained with its weights dequantized
    and its activations not quantized, half precision in float32. Merged, the matrices of a pruned checkpoint are
    no longer sparse, those of a quantized one dense, or with ``requantize`` rounded to nearest in its own scheme.

    Args:
        recipe: ``rank``, ``steps``, ``batch_size``, ``learning_rate``, ``seed``, ``requantize``, ``judge`` of the
            refusals; ``data``: ``refusals`` (with answers) or ``answers`` alone, the control.
        harmful: the dense model's answers to harmful training prompts, from ``holdfast generate``; harmless: to
            harmless ones.
        evaluated: prompt sets that no training prompt may hold, by name.

    Raises:
        HoldfastError: no refusal or no answer to learn, a loss that is not finite, a format that cannot be read
            or, with ``requantize``, written.
    """
    from peft import LoraConfig, get_peft_model

    recorder = Recorder("tune", dict(recipe))
    refuse_steered(model_dir)
    wanted = EvaluatedText(evaluated)
    answers, answer_counts = training_answers(harmless, "answered", recipe["judge"], wanted)
    counts = {"answers": answer_counts}
    if recipe["data"] == "refusals":
        refusals, counts["refusals"] = training_answers(harmful, "refused", recipe["judge"], wanted)
        answers = refusals + answers
    tokenizer, chosen = load_tokenizer(model_dir), settings(model_dir)
    embedding: Any = skeleton(model_dir).get_input_embeddings()
    if beyond := [t for answer in answers for t in answer.tokens if t >= embedding.num_embeddings]:
        what = f"token {beyond[0]} of an answer is not among the model's {embedding.num_embeddings}"
        raise HoldfastError(what, f"{harmful} or {harmless}", "give answers of its dense original")
    data = conversations(tokenizer, answers, chosen)
    # Gradients of half precision overflow without loss scaling.
    half = config_dtype(model_dir) == torch.float16
    model = load_dequantized(model_dir, torch.float32 if half else None)
    names = list(decoder_linears(model, whole=False))
    torch.manual_seed(recipe["seed"])
    rank = recipe["rank"]
    lora = LoraConfig(r=rank, lora_alpha=ALPHA * rank, target_modules=names, lora_dropout=0.0)
    tuned: Any = get_peft_model(model, lora)
    losses = train(tuned, data, recipe, tokenizer.pad_token_id)
    if not all(map(math.isfinite, losses)):
        what = f"the loss is not finite after {next(i for i, x in enumerate(losses) if not math.isfinite(x))} steps"
        raise HoldfastError(what, str(model_dir), "use a lower learning_rate")
    linears = {name: model.get_submodule(name) for name in names}
    weights = {f"{name}.weight": merged(linear) for name, linear in linears.items()}
    about = {"data": recipe["data"], **counts, "matrices": len(names), "losses": losses}
    with atomic_folder(out) as folder:
        edited_copy(model_dir, folder, weights, requantize=recipe["requantize"])
        write_json(folder / "tuning.json", about)
        recorder.write(
            folder / "provenance.json",
            [model_dir, harmful, harmless, *evaluated.values()],
            tuning={key: value for key, value in about.items() if key != "losses"},
            **weight_statistics(folder, source=model_dir),
        )
    return about


def merged(linear: Any) -> torch.Tensor:
    """W + 2 B A of a linear with an adapter, (d_out, d_in), summed in float32, in the linear's own dtype."""
    weight = linear.get_base_layer().weight.detach()
    return (weight.float() + linear.get_delta_weight("default").detach().float()).to(weight.dtype)
