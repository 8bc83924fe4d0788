"""Chat templates: the token ids a model is shown, the positions after the instruction, and where the answer begins."""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from holdfast.errors import HoldfastError, first_line
from holdfast.prompts.images import Instruction, Pictured, text_of
from holdfast.prompts.processors import check_placeholders, collated, has_processor, model_inputs

# Two instructions that differ in every token, so that the tokens their renderings end with alike
# belong to the template.
PROBES = ("Name a colour", "What is 2 + 2?", "hello", "List: [x]")

# A thought left out, as the templates of Qwen3 and DeepSeek-R1 write it; for templates that do not say themselves.
EMPTY_THOUGHT = "<think>\n\n</think>\n\n"
THOUGHT_LEFT_OUT = re.compile(r"(<([^<>/\s]+)>)\s*(</\2>)\s*$")


@dataclass(frozen=True)
class Thought:
    """How a chat template marks what the model thinks before it answers.

    ``opening`` and ``closing``: the marks, such as ``<think>`` and ``</think>``; ``begun``: the prompt ends inside a
    thought, so that generated text starts there; ``left_out``: what, written after the prompt, makes the thought an
    empty one, so that the answer begins. It is empty where no thought is to come (thinking off).
    """

    opening: str
    closing: str
    begun: bool
    left_out: str


def render(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[Instruction], settings: Mapping[str, Any]
) -> list[str]:
    """Each instruction as the chat template shows it, up to where the answer begins; one placeholder an image.

    ``settings``: ``thinking`` (None leaves the template's default) and ``system_prompt`` (None: none).
    Raises HoldfastError when the tokenizer has no chat template, rejects the messages, or is told to think, or not to,
    and writes the same either way; and as :func:`holdfast.prompts.processors.check_placeholders`.
    """
    value = settings.get("thinking")
    if value is not None:
        on, off = (_rendered(tokenizer, PROBES[:1], {**settings, "thinking": t}) for t in (True, False))
        # A template that knows no thought does what `thinking: false` asks for.
        if on == off and (value or thought_delimiters(tokenizer, {**settings, "thinking": None})):
            what = f"its chat template has no thinking switch: thinking: {str(value).lower()} changes nothing"
            raise HoldfastError(what, tokenizer.name_or_path, "remove thinking from the model")
    rendered = _rendered(tokenizer, texts, settings)
    check_placeholders(tokenizer, rendered, texts)
    return rendered


def thought_delimiters(tokenizer: PreTrainedTokenizerBase, settings: Mapping[str, Any]) -> Thought | None:
    """The thoughts of a chat template under these ``settings``; None when it knows none.

    Found in what it writes after an instruction with thinking on and off, so no list of families is needed. A template
    without that switch knows thoughts when it writes or strips ``</think>``: its model thinks of its own accord.
    """
    now, on, off = (
        _rendered(tokenizer, PROBES[:1], {**settings, "thinking": t})[0]
        for t in (settings.get("thinking"), True, False)
    )
    if on != off and (written := THOUGHT_LEFT_OUT.search(off)):
        whole, opening, closing = written[0], written[1], written[3]
    elif "</think>" in str(tokenizer.chat_template):
        whole, opening, closing = EMPTY_THOUGHT, "<think>", "</think>"
    else:
        return None
    begun = re.search(rf"{re.escape(opening)}\s*$", now)
    rest = whole.removeprefix(begun[0]).removeprefix(opening) if begun else whole
    if (on != off and now == off) or re.search(rf"{re.escape(closing)}\s*$", now):
        rest = ""
    return Thought(opening, closing, bool(begun), rest)


def answer_opening(tokenizer: PreTrainedTokenizerBase, settings: Mapping[str, Any]) -> str:
    """What stands between the prompt and the answer's first token: an empty thought where one would come, else nothing.

    A refusal is decided where the answer begins; after the prompt of a thinking model a thought begins.
    """
    thought = thought_delimiters(tokenizer, settings)
    return thought.left_out if thought else ""


def require_system_prompt(
    tokenizer: PreTrainedTokenizerBase, settings: Mapping[str, Any], folder: Path, remedy: str
) -> None:
    """Raises HoldfastError when the template rejects the ``system_prompt`` of these settings, or leaves it out (as some
    silently do)."""
    render(tokenizer, PROBES[:1], {**settings, "system_prompt": None})  # its own faults are told as such
    try:
        shown = render(tokenizer, PROBES[:1], settings)[0]
    except HoldfastError:
        shown = ""
    if settings["system_prompt"].strip() not in shown:
        raise HoldfastError("its chat template takes no system prompt", str(folder), remedy)


def _rendered(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[Instruction], settings: Mapping[str, Any]
) -> list[str]:
    if not tokenizer.chat_template:
        raise HoldfastError(
            "has no chat template",
            tokenizer.name_or_path,
            "use a chat model, or add chat_template.jinja to it",
        )
    options = {} if settings.get("thinking") is None else {"enable_thinking": settings["thinking"]}
    system = settings.get("system_prompt")
    in_parts = has_processor(tokenizer) and _takes_parts(tokenizer)
    prefix = [{"role": "system", "content": _content(system, in_parts)}] if system else []
    try:
        return [
            str(
                tokenizer.apply_chat_template(
                    [*prefix, {"role": "user", "content": _content(text, in_parts)}],
                    tokenize=False,
                    add_generation_prompt=True,
                    **options,
                )
            )
            for text in texts
        ]
    except Exception as error:  # jinja2's own errors, raised by the template
        raise HoldfastError(
            f"its chat template fails ({first_line(error)})", tokenizer.name_or_path, "check system_prompt"
        ) from None


def _content(instruction: Instruction, in_parts: bool) -> Any:
    """A message's content as templates of vision-language models take it, images first; else the text alone."""
    if not in_parts:
        return text_of(instruction)
    images = [{"type": "image"} for _ in instruction.pictures] if isinstance(instruction, Pictured) else []
    return [*images, {"type": "text", "text": text_of(instruction)}]


def _takes_parts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a template writes out the text of a content in parts; many of vision-language models drop any other."""
    content = _content(PROBES[0], in_parts=True)
    try:
        shown = tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    except Exception:  # jinja2's own errors: it takes strings only
        return False
    return PROBES[0] in str(shown) and "'type'" not in str(shown)


def encode(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Instruction],
    settings: Mapping[str, Any],
    suffix: str = "",
) -> BatchEncoding:
    """Left-padded ``input_ids`` and ``attention_mask`` [prompt, token]; ``suffix`` opens the answer.

    The template already writes the beginning-of-sequence token, so none is added. Where there are images, also what
    the model's processor makes of them, and tokens in the images' places (:mod:`holdfast.prompts.processors`, whose
    errors are raised).
    """
    rendered = [text + suffix for text in render(tokenizer, texts, settings)]
    if any(isinstance(text, Pictured) for text in texts):
        return collated(model_inputs(tokenizer, rendered, texts), int(tokenizer.pad_token_id))
    return tokenizer(
        rendered, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt"
    )


def token_counts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[Instruction], settings: Mapping[str, Any]
) -> list[int]:
    """About how many tokens each instruction takes in its template, its images' included: for batches of one size."""
    rendered = render(tokenizer, texts, settings)
    if any(isinstance(text, Pictured) for text in texts):
        return [len(one.ids) for one in model_inputs(tokenizer, rendered, texts)]
    return [len(ids) for ids in tokenizer(rendered)["input_ids"]]


def post_instruction_tokens(tokenizer: PreTrainedTokenizerBase, settings: Mapping[str, Any]) -> list[int]:
    """Token ids that stand between the end of every instruction and the answer (Arditi et al. 2024, §2.3).

    Found as the longest common ending of differently worded probes, so no list of families is needed.
    Raises HoldfastError when the template writes nothing after the instruction.
    """
    ids = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in render(tokenizer, PROBES, settings)]
    length = 0
    while length < min(map(len, ids)) and len({tuple(i[-length - 1 :]) for i in ids}) == 1:
        length += 1
    if length == 0:
        raise HoldfastError(
            "writes no token after the instruction",
            tokenizer.name_or_path,
            "use a chat template with an answer header",
        )
    return list(ids[0][-length:])


def forward_inputs(model: PreTrainedModel, batch: BatchEncoding) -> dict[str, torch.Tensor]:
    """The batch on the model's device, with position ids that count from the first real token.

    Left padding shifts absolute positions; models that know none (ALiBi) take no such argument, and those whose images
    have positions in rows and columns (M-RoPE) count those themselves.
    """
    inputs = on_device(model, batch)
    counted = "pixel_values" in inputs and hasattr(model.base_model, "get_rope_index")
    if "position_ids" in inspect.signature(type(model).forward).parameters and not counted:
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    return inputs


def on_device(model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The batch where the model is, images in its dtype."""
    return {
        name: value.to(model.device, model.dtype) if value.is_floating_point() else value.to(model.device)
        for name, value in batch.items()
    }


def by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first: the first batch is the one that needs most memory."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
