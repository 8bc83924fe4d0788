"""The vision parts and a language model put together: a plain LLaVA that transformers loads without Holdfast.

Liu et al. 2023 (arXiv 2304.08485), section 4.1: a vision tower, a projector, and a language model that is shown what
they make of a picture in place of its own input embeddings. The tower is a small SigLIP (Zhai et al. 2023, arXiv
2303.15343) without pooling: every patch is a token.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SiglipVisionConfig,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from holdfast.errors import HoldfastError, first_line
from holdfast.files import read_json, write_json
from holdfast.silence import quiet

VISION = "vision.safetensors"
ADAPTER = "adapter_model.safetensors"
FILES = (VISION, ADAPTER, "adapter_config.json", "recipe.json")
PARTS = ("vision_tower", "multi_modal_projector")
IMAGE_TOKEN = "<image>"

# The language model's own template, whose messages may be lists of pictures and texts.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\\n' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def assembled(
    language_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, parts: Path
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The vision-language model, float32 and in eval mode, with its processor. ``language_model`` becomes part of it.

    Args:
        parts: a folder that ``holdfast train-vision`` wrote.

    Raises:
        HoldfastError: no such folder or not whole, or parts trained for another language model.
    """
    recipe = read_parts(parts)
    if hasattr(language_model.config, "vision_config"):
        raise HoldfastError("the model sees already", str(language_model.name_or_path), "leave vision out")
    processor = processor_of(tokenizer, recipe)
    model = llava(language_model, processor, recipe)
    try:
        load_vision(model, load_file(parts / VISION))
        with quiet():  # peft imports bitsandbytes, which talks
            from peft import PeftModel

            merged = PeftModel.from_pretrained(model, str(parts)).merge_and_unload(safe_merge=True)
    except (ValueError, KeyError, RuntimeError, TypeError, SafetensorError) as error:
        what = f"the vision parts do not fit the model ({first_line(error)})"
        raise HoldfastError(what, str(parts), "give parts trained on this language model") from error
    return merged.eval().requires_grad_(False), processor


def read_parts(parts: Path) -> dict[str, Any]:
    """The recipe of a folder of vision parts; HoldfastError where the folder is not whole."""
    for file in FILES:
        if not (parts / file).is_file():
            raise HoldfastError(f"no {file}", str(parts), "give a folder that holdfast train-vision wrote")
    recipe: dict[str, Any] = read_json(parts / "recipe.json")
    if not isinstance(recipe, dict) or not {"tower", "image_token"} <= set(recipe):
        what = "its recipe names no tower and image token"
        raise HoldfastError(
            what, str(parts / "recipe.json"), "give a folder that holdfast train-vision wrote"
        )
    return recipe


def processor_of(tokenizer: PreTrainedTokenizerBase, recipe: Mapping[str, Any]) -> LlavaProcessor:
    """Pictures to pixels and chats to token ids, padded on the left; needs no torchvision."""
    side, patch = recipe["tower"]["image_size"], recipe["tower"]["patch_size"]
    return LlavaProcessor(
        SiglipImageProcessorPil(size={"height": side, "width": side}),
        with_image_token(tokenizer, recipe["image_token"]),
        patch_size=patch,
        vision_feature_select_strategy="full",
        image_token=IMAGE_TOKEN,
        chat_template=CHAT_TEMPLATE,
    )


def with_image_token(tokenizer: PreTrainedTokenizerBase, instead_of: str) -> PreTrainedTokenizerBase:
    """A copy of the tokenizer with a spare special token renamed to ``<image>``: no embedding needs to be added.

    Raises HoldfastError when it has no special token ``instead_of``.
    """
    stated = json.loads(tokenizer.backend_tokenizer.to_str())
    spare = [token for token in stated["added_tokens"] if token["content"] == instead_of and token["special"]]
    if not spare:
        what = f"the tokenizer has no special token {instead_of} to spare"
        raise HoldfastError(what, tokenizer.name_or_path, "give the language model the parts were trained on")
    spare[0]["content"] = IMAGE_TOKEN
    vocabulary = stated["model"]["vocab"]
    vocabulary[IMAGE_TOKEN] = vocabulary.pop(instead_of, spare[0]["id"])
    from tokenizers import Tokenizer

    named = {name: getattr(tokenizer, name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    copy = type(tokenizer)(tokenizer_object=Tokenizer.from_str(json.dumps(stated)), **named)
    copy.clean_up_tokenization_spaces = False
    copy.padding_side = "left"
    copy.chat_template = CHAT_TEMPLATE
    return copy


def llava(
    language_model: PreTrainedModel, processor: LlavaProcessor, recipe: Mapping[str, Any]
) -> LlavaForConditionalGeneration:
    """The language model with tower and projector as the recipe's seed draws them, float32, eager attention."""
    stated = recipe["tower"]
    tower = SiglipVisionConfig(**{**stated, "vision_use_head": False})
    config = LlavaConfig(
        vision_config=tower,
        text_config=language_model.config,
        image_token_index=processor.image_token_id,
        image_seq_length=(stated["image_size"] // stated["patch_size"]) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=language_model.config.tie_word_embeddings,
        dtype="float32",
    )
    config._attn_implementation = "eager"  # the fastest on a CPU for so short a chat
    language: Any = language_model
    with torch.random.fork_rng():
        torch.manual_seed(recipe["seed"])
        # Its language model is drawn at random, too, only to be replaced.
        model: Any = LlavaForConditionalGeneration(config).float()
    model.model.language_model, model.lm_head = language.base_model, language.get_output_embeddings()
    model.generation_config = language_model.generation_config
    return model.eval()


def load_vision(model: LlavaForConditionalGeneration, weights: Mapping[str, torch.Tensor]) -> None:
    """Set tower and projector. Raises RuntimeError for a tensor that is missing, unknown or of another shape."""
    for part in PARTS:
        prefix = f"{part}."
        own = {name.removeprefix(prefix): w.float() for name, w in weights.items() if name.startswith(prefix)}
        getattr(model.model, part).load_state_dict(own)


def vision_weights(model: LlavaForConditionalGeneration) -> dict[str, torch.Tensor]:
    """Tower and projector by name, as :func:`load_vision` takes them."""
    return {
        f"{part}.{name}": weight.detach().contiguous()
        for part in PARTS
        for name, weight in getattr(model.model, part).state_dict().items()
    }


def save(model: LlavaForConditionalGeneration, processor: LlavaProcessor, out: Path) -> None:
    """Write a plain Hugging Face folder: weights in shards, configs, tokenizer, processor, chat template.

    Raises HoldfastError when a weight holds NaN or infinity.
    """
    from holdfast.checkpoints import save_model

    save_model(model, None, out)
    with quiet():
        processor.save_pretrained(out)
    # Lost when a tokenizer is saved; with padding on the right answers would follow the padding.
    settings = read_json(out / "tokenizer_config.json")
    kept = {"padding_side": "left", "clean_up_tokenization_spaces": False}
    write_json(out / "tokenizer_config.json", settings | kept)
