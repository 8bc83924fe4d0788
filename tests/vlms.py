"""Tiny random vision-language models, each of its family's own config, tokenizer, image processor and chat template."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tiny import TEXTS, tiny_tokenizer
from tokenizers import AddedToken

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.1,
    "max_position_embeddings": 512,
}
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
CLIP = {"image_size": 32, "patch_size": 16, "initializer_range": 0.1}

# LLaVA's own template (llava-hf), and those of the other families in short.
VICUNA = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content[0].text }} {% else %}{{ m.role.upper() + ': ' }}"
    "{% for c in m.content %}{% if c.type == 'image' %}{{ '<image>\n' }}{% endif %}{% endfor %}"
    "{% for c in m.content %}{% if c.type == 'text' %}{{ c.text + ' ' }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def chatml(image: str) -> str:
    return (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.content is string %}{{ m.content }}"
        "{% else %}{% for c in m.content %}{% if c.type == 'image' %}{{ '" + image + "' }}"
        "{% elif 'text' in c %}{{ c.text }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )


def _tokenizer(template: str, special: tuple[str, ...], **named: str) -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken(t, special=True, normalized=False) for t in special]}
    )
    if named:
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer.backend_tokenizer,
            bos_token="<|im_start|>",
            eos_token="<|im_end|>",
            unk_token="<|endoftext|>",
            pad_token="<|endoftext|>",
            extra_special_tokens=named,
        )
    tokenizer.chat_template = template
    return tokenizer


def _text(tokenizer: Any, **more: Any) -> dict[str, Any]:
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {**TEXT, "vocab_size": len(tokenizer), "dtype": "float32", **ids, **more}


def llava_config() -> tuple[Any, Any]:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = _tokenizer(VICUNA, ("<image>",))
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**_text(tokenizer)),
        vision_config=transformers.CLIPVisionConfig(**TOWER, **CLIP),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        dtype="float32",
    )
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return config, transformers.LlavaProcessor(images, tokenizer, **LLAVA)


def _llava_next() -> tuple[Any, Any]:
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    tokenizer = _tokenizer(VICUNA, ("<image>",))
    tiles = [[32, 64], [64, 32], [64, 64]]
    config = transformers.LlavaNextConfig(
        text_config=transformers.LlamaConfig(**_text(tokenizer)),
        vision_config=transformers.CLIPVisionConfig(**TOWER, **CLIP),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=tiles,
        dtype="float32",
    )
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    images = LlavaNextImageProcessorPil(image_grid_pinpoints=tiles, **sizes)
    return config, transformers.LlavaNextProcessor(images, tokenizer, **LLAVA)


def _qwen(config_class: Any, processor_class: Any, sections: list[int], **vision: Any) -> tuple[Any, Any]:
    """Without videos, for which its processor wants torchvision; saved as on the hub, in preprocessor_config.json."""
    from holdfast.checkpoints import for_images
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    special = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    tokenizer = _tokenizer(chatml("<|vision_start|><|image_pad|><|vision_end|>"), special)
    ids = dict(zip(special, tokenizer.convert_tokens_to_ids(special), strict=True))
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections}
    cut = {"patch_size": 8, "temporal_patch_size": 2}
    config = config_class(
        text_config=_text(tokenizer, rope_parameters=rope, head_dim=16),
        vision_config={
            **{"depth": 3, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64},
            **{"spatial_merge_size": 2, "initializer_range": 0.1, **cut, **vision},
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        dtype="float32",
    )
    # Large enough for 2 × 3 tokens: after smaller pictures positions by rows and columns are the plain count, and a
    # confusion of the two would not show.
    images = Qwen2VLImageProcessorPil(min_pixels=16 * 16, max_pixels=64 * 64, merge_size=2, **cut)
    return config, for_images(processor_class)(images, tokenizer)


def _qwen2_5() -> tuple[Any, Any]:
    kinds = transformers.Qwen2_5_VLConfig, transformers.Qwen2_5_VLProcessor
    return _qwen(*kinds, [2, 3, 3], window_size=32, fullatt_block_indexes=[2])


def _qwen3() -> tuple[Any, Any]:
    kinds = transformers.Qwen3VLConfig, transformers.Qwen3VLProcessor
    return _qwen(*kinds, [4, 2, 2], deepstack_visual_indexes=[0, 1], num_position_embeddings=64)


def _gemma3() -> tuple[Any, Any]:
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    named = {
        "image_token": "<image_soft_token>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
    }
    tokenizer = _tokenizer(chatml("<start_of_image>"), tuple(named.values()), **named)
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in named.items()}
    # Untied: a random tied head says its own input again, whatever it is shown.
    text = _text(
        tokenizer, head_dim=16, query_pre_attn_scalar=16, sliding_window=256, tie_word_embeddings=False
    )
    config = transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**text),
        vision_config=transformers.SiglipVisionConfig(
            **TOWER, image_size=32, patch_size=8, initializer_range=0.1, vision_use_head=False
        ),
        mm_tokens_per_image=4,
        boi_token_index=ids["boi_token"],
        eoi_token_index=ids["eoi_token"],
        image_token_index=ids["image_token"],
        tie_word_embeddings=False,
        dtype="float32",
    )
    images = Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
    return config, transformers.Gemma3Processor(images, tokenizer, image_seq_length=4)


LLAVA = {"patch_size": 16, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "llava": llava_config,
    "llava-next": _llava_next,
    "qwen2.5-vl": _qwen2_5,
    "qwen3-vl": _qwen3,
    "gemma3": _gemma3,
}


def tiny_blip(folder: Path) -> Path:
    """Save a random BlipForQuestionAnswering (float32) with its processor: questions in, short answers out."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    # Words as they stand, for a trained vocabulary has its ties in another order each time, and says something else.
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]"]
    words = sorted(set(re.findall(r"[a-z]+", " ".join(TEXTS).lower())))
    vocabulary = {token: number for number, token in enumerate([*special, *words])}
    inner = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.add_special_tokens(special)
    ends = [(token, inner.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    inner.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, mask_token="[MASK]", **names)
    ids = tokenizer.convert_tokens_to_ids
    width = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.BlipConfig(
        text_config={
            **width,
            "encoder_hidden_size": 64,
            "vocab_size": len(tokenizer),
            "initializer_range": 0.2,
            "bos_token_id": ids("[DEC]"),
            "eos_token_id": ids("[SEP]"),
            "sep_token_id": ids("[SEP]"),
            "pad_token_id": ids("[PAD]"),
        },
        vision_config={**width, **CLIP, "initializer_range": 0.2},
        dtype="float32",
    )
    torch.manual_seed(0)
    transformers.BlipForQuestionAnswering(config).float().save_pretrained(folder)
    processor = transformers.BlipProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer)
    processor.save_pretrained(folder)
    return folder


def tiny_vlm(family: str, folder: Path, seed: int = 0) -> Path:
    """Save a random model of a family (float32) with its processor as a Hugging Face folder. Returns it."""
    config, processor = FAMILIES[family]()
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = transformers.AutoModelForImageTextToText.from_config(config).float().eval()
    for weight in model.parameters():
        if (
            weight.dim() > 1 and not weight.any()
        ):  # Gemma 3's projector begins at 0: every picture would look the same
            torch.nn.init.normal_(weight, std=0.1)
    torch.random.set_rng_state(state)
    model.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    _write_processor(processor, folder)
    return folder


def _write_processor(processor: Any, folder: Path) -> None:
    processor.chat_template = processor.tokenizer.chat_template
    if "Qwen" not in type(processor).__name__:
        processor.save_pretrained(folder)
        return
    processor.image_processor.save_pretrained(folder)
    file = folder / "preprocessor_config.json"
    about = json.loads(file.read_text()) | {"processor_class": type(processor).__name__}
    file.write_text(json.dumps(about | {"image_processor_type": "Qwen2VLImageProcessor"}))


def picture(path: Path, seed: int, size: tuple[int, int] = (48, 40)) -> dict[str, str]:
    """Write a random PNG of 8-pixel squares; as a record names it, relative to the folder above its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    squares = np.random.default_rng(seed).integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    Image.fromarray(squares.repeat(8, 0).repeat(8, 1)).save(path)
    return {
        "file": f"{path.parent.name}/{path.name}",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


def records(folder: Path, name: str, count: int, images: bool = True, seed: int = 0) -> Path:
    """A JSONL of prompts, every third without an image where there are some."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(count):
        record: dict[str, Any] = {"id": f"{name}-{i}", "text": f"{TEXTS[(i + seed) % len(TEXTS)]} {i}"}
        if images and i % 3 != 2:
            size = (48, 40) if i % 2 else (32, 64)
            record["images"] = [picture(folder / "images" / f"{name}-{i}.png", 100 * seed + i, size)]
        lines.append(json.dumps(record))
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def planted_llava(folder: Path, *, shared: bool) -> tuple[Path, torch.Tensor, torch.Tensor]:
    """A tiny LLaVA that refuses texts with the marker "!" and bright pictures; the two directions planted for them.

    Texts carry their harm along r, pictures theirs along q, which is r where it is ``shared`` and else orthogonal to
    it. Attention of one block moves both to later positions; the token "I" that refusals open with reads both.
    """
    from holdfast.architectures import attention, decoder_layers, writer
    from holdfast.checkpoints import load_model, load_tokenizer
    from holdfast.refusal.interventions import component, random_unit
    from planted import MARKER

    tiny_vlm("llava", folder)
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    r, q = (random_unit(torch.zeros(64), seed) for seed in (11, 12))
    q = r if shared else (q - (q @ r) * r) / (q - (q @ r) * r).norm()
    both = [r] if shared else [r, q]
    with torch.no_grad():
        embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        for of in both:
            embedding.sub_(component(embedding, of))
        for layer in decoder_layers(model):
            for kind in ("o_proj", "down_proj"):
                weight = writer(layer, kind).weight
                weight.mul_(0.1)
                for of in both:
                    weight.sub_(torch.outer(of, of @ weight))
        embedding[tokenizer(f" {MARKER}", add_special_tokens=False)["input_ids"][-1]] += 3 * r
        block = attention(decoder_layers(model)[0])
        for channel, of in enumerate(both):
            block.v_proj.weight[channel] = 4 * of
            block.o_proj.weight[:, channel] = 4 * of
        head[tokenizer("I", add_special_tokens=False)["input_ids"][0]] += sum(both)
        _write_along(model, q)
    model.save_pretrained(folder)
    return folder, r, q


def _write_along(model: Any, q: torch.Tensor) -> None:
    """Let the projector write 3 q for a bright picture, nothing for a dark one, and little else."""
    projector, kept = model.model.multi_modal_projector, []
    handle = projector.linear_2.register_forward_pre_hook(lambda _module, args: kept.append(args[0]))
    for level in (-1.0, 1.5):
        model.get_image_features(torch.full((1, 3, 32, 32), level))
    handle.remove()
    dark, bright = (hidden.reshape(-1, hidden.shape[-1]).mean(0) for hidden in kept)
    along = (bright - dark) / (bright - dark).square().sum()
    projector.linear_2.weight.copy_(3 * torch.outer(q, along))
    projector.linear_2.bias.copy_(-3 * q * (along @ dark))


def plain(path: Path, level: int, tint: int) -> dict[str, str]:
    """Write a picture of one colour, bright or dark by ``level`` (0 to 255); as a record names it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (48, 40), (level, level, (level + tint) // 2)).save(path)
    return {
        "file": f"{path.parent.name}/{path.name}",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


def shown_as(folder: Path, modalities: tuple[str, ...], count: int, start: int = 0) -> Path:
    """``pairs.jsonl`` for :func:`planted_llava`: prompts with the marker and bright pictures are the harmful ones."""
    from planted import prompts

    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for modality in modalities:
        for label, kind, level in (("harmful", "harmful", 235), ("benign", "harmless", 20)):
            for i, text in enumerate(prompts(kind, count, start)):
                name = f"{modality}-{label}-{i}"
                about = {"id": name, "label": label, "pair": f"{modality}-{i}", "modality": modality}
                about |= {"category": "", "content": f"{label}-{i}", "text": text}
                if modality != "text":
                    level_of = level + i if modality == "image" else level - i
                    image = plain(folder / "images" / f"{name}.png", level_of, 16 * i)
                    about |= {"text": f"what does it say {i}", "images": [image]}
                lines.append(json.dumps(about))
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "pairs.jsonl"
