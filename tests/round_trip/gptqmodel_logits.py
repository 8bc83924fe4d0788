"""Logits of an auto-gptq checkpoint in transformers with gptqmodel's kernels: run by gptqmodel's interpreter.

Usage: ``python gptqmodel_logits.py FOLDER BATCH.safetensors LOGITS.safetensors``; BATCH holds ``input_ids`` and
``attention_mask`` [prompt, token], LOGITS gets ``logits`` [prompt, token, vocabulary].
"""

import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPTQConfig

folder, batch, out = sys.argv[1:]
# The plain kernel dequantizes; the CPU's fast one rounds to bfloat16 on its way.
plain = GPTQConfig(bits=4, backend="torch")
model = AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, device_map="cpu", quantization_config=plain
)
with torch.inference_mode():
    save_file({"logits": model(**load_file(batch)).logits.contiguous()}, out)
