"""Tiny random vision-language models, each of its family's own config, tokenizer, image processor and chat template."""

import hashlib
import json
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


def _llava(**more: Any) -> tuple[Any, Any]:
    tokenizer = _tokenizer(VICUNA, ("<image>",))
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**_text(tokenizer)),
        vision_config=transformers.CLIPVisionConfig(**TOWER, **CLIP),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        dtype="float32",
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    options = {
        "patch_size": 16,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }
    processor = transformers.LlavaProcessor(images, tokenizer, **options)
    return config, processor


FAMILIES: dict[str, Callable[..., tuple[Any, Any]]] = {"llava": _llava}


def tiny_vlm(family: str, folder: Path, seed: int = 0) -> Path:
    """Save a random model of a family (float32) with its processor as a Hugging Face folder. Returns it."""
    config, processor = FAMILIES[family]()
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = transformers.AutoModelForImageTextToText.from_config(config).float().eval()
    torch.random.set_rng_state(state)
    model.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    write_processor(processor, folder)
    return folder


def write_processor(processor: Any, folder: Path) -> None:
    processor.chat_template = processor.tokenizer.chat_template
    processor.save_pretrained(folder)


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
