"""Hugging Face folders: load and save. Safetensors only, never pickle.

Shards are written with at most 500 MB each. What concerns files alone is in ``model_folders``, how weights are
stored in ``formats``.
"""

import contextlib
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from holdfast.architectures import decoder_layers
from holdfast.cluster.sizes import size_of
from holdfast.errors import HoldfastError, first_line
from holdfast.files import write_json
from holdfast.formats import FORMATS, Format, format_of
from holdfast.formats.bitsandbytes import quantization_state
from holdfast.formats.compressed_tensors import decompress
from holdfast.model_folders import (
    SETTINGS,
    STEERING,
    config_dtype,
    headers,
    read_config,
    settings,
    weight_files,
)
from holdfast.prompts.processors import no_processor, with_processor
from holdfast.refusal.interventions import add
from holdfast.silence import quiet
from holdfast.skeletons import auto_class, dense_config, model_config, skeleton, takes_images, unloadable

SHARD_SIZE = "500MB"
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
FILLED = 0.75  # share of a GPU that weights may take: the rest is for what is computed
LOADING_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    RuntimeError,
    ImportError,
    AttributeError,
    TypeError,
    SafetensorError,
)


def load_model(folder: Path, dtype: torch.dtype | str | None = None) -> PreTrainedModel:
    """The model of a checkpoint, in eval mode, without gradients, spread over the GPUs if there are any.

    Where only weights are quantized (W4A16 and the like in compressed-tensors, auto-gptq) the linears come back
    plain and dense: the same numbers, faster on a CPU, free to be edited in memory, and without the package that
    quantized them. They are dequantized one at a time while loading. Checkpoints that quantize activations too
    come back with the modules that do so, bitsandbytes ones as they are. A steered checkpoint comes back steered.

    Args:
        folder: a Hugging Face folder.
        dtype: of the floating-point weights; None for the one the checkpoint's config states.

    Raises:
        HoldfastError: no such folder, no config.json, no safetensors weights, weights missing from the
            shards, a damaged shard, weights that are NaN or infinite, transformers cannot build the model, or a
            steering vector that does not fit it.
    """
    model = _load(folder, dtype)
    if (folder / STEERING).is_file():
        steer(model, folder)
    return model


def steer(model: PreTrainedModel, folder: Path) -> None:
    """Add the folder's steering vector at its layer in every forward pass of ``model`` from now on.

    Raises:
        HoldfastError: the file is damaged, or it is a vector for another model.
    """
    path = folder / STEERING
    try:
        with safe_open(path, "pt") as file:
            vector, layer = file.get_tensor("vector"), int((file.metadata() or {})["layer"])
    except (SafetensorError, KeyError, ValueError) as error:
        what = f"no steering vector with its layer ({first_line(error)})"
        raise HoldfastError(what, str(path), "run `holdfast steer` again") from error
    size = model.get_input_embeddings().embedding_dim
    if vector.shape != (size,) or not 0 <= layer < len(decoder_layers(model)):
        what = f"{tuple(vector.shape)} for layer {layer} does not fit the model"
        raise HoldfastError(what, str(path), "run `holdfast steer` again")
    add(model, vector, layer)


def _load(folder: Path, dtype: torch.dtype | str | None) -> PreTrainedModel:
    method = (read_config(folder).get("quantization_config") or {}).get("quant_method")
    if method in FORMATS and format_of(folder).loads_dense:
        return _load_dense(folder, format_of(folder), dtype)
    model = from_pretrained(folder, dtype=dtype or "auto")
    if method == "compressed-tensors":
        decompress(model)
    return model


def load_dequantized(folder: Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The model with plain, dense linears whatever its format: what it computes when activations are not quantized.

    Args and errors as :func:`load_model`; a quantization that cannot be read is one too.
    """
    stored_as = format_of(folder)
    return _load_dense(folder, stored_as, dtype) if stored_as.config else load_model(folder, dtype)


def from_pretrained(folder: Path, **options: Any) -> PreTrainedModel:
    """transformers' ``from_pretrained`` with Holdfast's errors, silence and device placement."""
    weight_files(folder)
    trust = bool(settings(folder)["trust_remote_code"])
    _warn_of_unseen_gpus()
    with quiet():
        config = model_config(folder)
        model_class = auto_class(config, folder)
        options |= {"config": config, "trust_remote_code": trust, "local_files_only": True}
        model = _loaded(model_class, folder, folder, use_safetensors=True, **options)
    module: Any
    for module in model.modules():
        # bitsandbytes would repack 4-bit weights in the first forward pass on CPUs with AVX-512 bf16, and compute
        # in bf16 from then on: other numbers than elsewhere, in a layout that cannot be saved or read back.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def _load_dense(folder: Path, stored_as: Format, dtype: torch.dtype | str | None) -> PreTrainedModel:
    """The model with its quantized linears dequantized, each when transformers asks for that weight."""
    # The formats need it, and transformers reads weights in several threads: of two that import a package at once
    # one may see half of it.
    import_module("compressed_tensors.compressors")
    stored = headers(folder)
    _warn_of_unseen_gpus()
    with quiet(), contextlib.ExitStack() as stack:
        shards = {file.name: stack.enter_context(safe_open(file, "pt")) for file in weight_files(folder)}
        weights: dict[str, Any] = {}
        packed: set[str] = set()
        for module, parts in stored_as.modules(stored).items():
            if stored_as.is_quantized(parts):
                tensors = {part: shards[stored[entry].file].get_slice(entry) for part, entry in parts.items()}
                weights[f"{module}.weight"] = _Dequantized(stored_as, module, tensors)
                packed |= set(parts.values())
        weights |= {
            name: shards[about.file].get_slice(name) for name, about in stored.items() if name not in packed
        }
        # transformers takes either a folder or a state dict, and finds remote code by the folder only.
        model_class = type(skeleton(folder))
        options = {"config": dense_config(folder), "state_dict": weights}
        model: Any = _loaded(model_class, None, folder, dtype=dtype or config_dtype(folder), **options)
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
        model.name_or_path = str(folder)
        return model


class _Dequantized:
    """A weight that is dequantized when it is sliced, as transformers does with a safetensors slice to read it."""

    def __init__(self, stored_as: Format, module: str, tensors: dict[str, Any]) -> None:
        self.stored_as, self.module, self.tensors = stored_as, module, tensors

    def __getitem__(self, index: Any) -> torch.Tensor:
        parts = {part: tensor[...] for part, tensor in self.tensors.items()}
        return self.stored_as.dequantized(self.module, parts)[index]


def _loaded(model_class: Any, source: Path | None, folder: Path, **options: Any) -> PreTrainedModel:
    if torch.cuda.is_available():
        free = [torch.cuda.mem_get_info(device)[0] for device in range(torch.cuda.device_count())]
        weights = weight_bytes(folder, options.get("dtype"))
        options["device_map"] = placement(weights, free, len(_slurms_gpus()))
    try:
        model, info = model_class.from_pretrained(source, output_loading_info=True, **options)
    except LOADING_ERRORS as error:
        raise unloadable(error, folder) from error
    # transformers fills missing weights at random and only warns; such a model answers, and answers nonsense.
    if missing := sorted(info["missing_keys"]):
        raise HoldfastError(
            f"{len(missing)} weights missing, first {missing[0]}", str(folder), "fetch the checkpoint again"
        )
    _refuse_damaged(model, folder)
    return model.eval().requires_grad_(False)


def _slurms_gpus() -> list[str]:
    """The numbers of the GPUs that Slurm gave this job; none outside Slurm."""
    given = os.environ.get("SLURM_STEP_GPUS") or os.environ.get("SLURM_JOB_GPUS")
    return given.split(",") if given else []


def _warn_of_unseen_gpus() -> None:
    if (given := _slurms_gpus()) and not torch.cuda.is_available():
        unseen = f"Slurm gave this job GPUs ({','.join(given)}), and torch sees none: it runs on the CPU"
        print(f"warning: {unseen} (holdfast doctor --try-job)", file=sys.stderr)


def weight_bytes(folder: Path, dtype: torch.dtype | str | None = None) -> int:
    """What a checkpoint's weights take in memory, by its config: quantized ones are counted dense, which they are with
    most formats. Of a config that does not say, what its files hold."""
    name = None if dtype in (None, "auto") else str(dtype).removeprefix("torch.")
    try:
        return size_of(read_config(folder), str(folder)).loaded_bytes(name)
    except HoldfastError:
        return sum(stored.bytes for stored in headers(folder).values())


def placement(weights: int, free: Sequence[int], given: int = 0) -> str | dict[str, int]:
    """transformers' ``device_map``: all visible GPUs (in equal shares, and then main memory) where the job was given
    several, or where the weights leave no room on one; else that one. A job asks for several because weights, cache and
    activations together need them (``cluster.needs``). Spread over GPUs that merely happen to be there, a small model
    would only lose time.

    Args:
        weights: bytes.
        free: bytes of free memory of every visible GPU.
        given: how many GPUs a scheduler gave the job; 0 on a machine used by hand.
    """
    fits = weights <= FILLED * free[0]
    return {"": 0} if fits and min(given, len(free)) <= 1 else "auto"


def _refuse_damaged(model: PreTrainedModel, folder: Path) -> None:
    for name, parameter in model.named_parameters():
        if not all(is_finite(tensor) for tensor in (parameter, *quantization_state(parameter))):
            module = name.rpartition(".")[0]
            stored = headers(folder)
            entry = name if name in stored else next((e for e in stored if e.startswith(f"{module}.")), None)
            where = folder / stored[entry].file if entry else folder
            remedy = "fetch or write the checkpoint again"
            raise HoldfastError(f"{name} holds NaN or infinite values", str(where), remedy)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer, padding on the left (answers follow the prompt), the end token where no pad token is.

    That of a vision-language model knows its processor, where the folder has one (:mod:`holdfast.prompts.processors`).

    Raises:
        HoldfastError: no such folder, no tokenizer in it, or neither a pad nor an end token; as :func:`load_processor`.
    """
    read_config(folder)
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=bool(settings(folder)["trust_remote_code"]), local_files_only=True
            )
        except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError) as error:
            what = f"no tokenizer can be loaded ({first_line(error)})"
            raise HoldfastError(what, str(folder), "put the model's tokenizer files there") from error
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            remedy = "name an eos_token in tokenizer_config.json"
            raise HoldfastError("the tokenizer has no end token", str(folder), remedy)
        tokenizer.pad_token = tokenizer.eos_token
    if _has_processor(folder):
        processor = load_processor(folder)
        # One template for both: older checkpoints keep it with the processor alone.
        tokenizer.chat_template = tokenizer.chat_template or processor.chat_template
        return with_processor(tokenizer, processor)
    return tokenizer


def require_processor(folder: Path) -> None:
    """Raises HoldfastError when a checkpoint cannot be shown images: a text-only model, or no processor's files."""
    if not _has_processor(folder):
        raise no_processor(str(folder))


def _has_processor(folder: Path) -> bool:
    return any((folder / name).is_file() for name in PROCESSOR_FILES) and takes_images(folder)


def load_processor(folder: Path) -> Any:
    """transformers' processor of a vision-language model: for images, by Pillow, padding on the left.

    Whatever is installed: torchvision resizes to slightly other pixels, and is not needed. Videos are left out, for
    their processors need it.

    Raises:
        HoldfastError: no such folder, or no processor in it.
    """
    from transformers.models.auto.image_processing_auto import AutoImageProcessor
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    config = model_config(folder)
    options = {"trust_remote_code": bool(settings(folder)["trust_remote_code"]), "local_files_only": True}
    with quiet():
        try:
            kind: Any = PROCESSOR_MAPPING.get(type(config), None)
            processor: Any = (for_images(kind) if kind else AutoProcessor).from_pretrained(folder, **options)
            processor.image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil", **options)
        except LOADING_ERRORS as error:
            what = f"no processor can be loaded ({first_line(error)})"
            remedy = "put the model's processor files there (processor_config.json)"
            raise HoldfastError(what, str(folder), remedy) from error
    processor.tokenizer.padding_side = "left"  # not kept in its files
    return processor


def for_images(kind: Any) -> Any:
    """A processor's class without what it does with videos."""
    kept = [name for name in kind.get_attributes() if name != "video_processor"]
    return type(kind.__name__, (kind,), {"get_attributes": classmethod(lambda _cls: kept)})


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    out_folder: Path,
    *,
    settings: dict[str, Any] | None = None,
) -> None:
    """Write weights in shards of 500 MB, configs, tokenizer with chat template, holdfast.json.

    Not atomic: give it the folder of ``files.atomic_folder``.

    Args:
        tokenizer: None where the caller carries the source's own tokenizer files over (:func:`carry`).
        settings: what to write as holdfast.json; None writes none.

    Raises:
        HoldfastError: a weight holds NaN or infinity; nothing is written then.
    """
    refuse_not_finite(dict(model.named_parameters()), out_folder)
    with quiet():
        model.save_pretrained(out_folder, max_shard_size=SHARD_SIZE)
        if tokenizer is not None:
            tokenizer.save_pretrained(out_folder)
    if settings is not None:
        write_json(out_folder / "holdfast.json", SETTINGS | settings)


def refuse_not_finite(weights: dict[str, torch.Tensor], where: Path) -> None:
    """Raises HoldfastError naming the first weight that holds NaN or infinity."""
    for name, weight in weights.items():
        if not is_finite(weight):
            what = f"{name} holds NaN or infinite values"
            raise HoldfastError(
                what, str(where), "use a gentler recipe, or a wider dtype (float32, bfloat16)"
            )


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite; tensors of integers, and those without data (meta), are."""
    if not tensor.is_floating_point() or tensor.is_meta or not tensor.numel():
        return True
    # The extremes are NaN where any value is, and need no mask as large as the tensor; 8-bit floats have none.
    wide = tensor.bfloat16() if tensor.element_size() == 1 else tensor
    lowest, highest = wide.detach().aminmax()
    return bool(torch.isfinite(lowest) & torch.isfinite(highest))
