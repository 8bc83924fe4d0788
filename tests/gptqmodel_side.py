"""What only the gptqmodel environment can do, run there as a script:

gptqmodel_side.py quantize JOBS.json     [{model, out, recipe, sequences: [[ids]]}]: compression.auto_gptq
gptqmodel_side.py logits JOB.json        {folders, ids, out}: each as transformers and gptqmodel load it
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch


def quantize(jobs: list[dict[str, Any]]) -> None:
    from holdfast.compression.auto_gptq import quantize_and_save

    for job in jobs:
        Path(job["out"]).mkdir()
        sequences = [torch.tensor(ids) for ids in job["sequences"]]
        quantize_and_save(Path(job["model"]), Path(job["out"]), job["recipe"], sequences)


def logits(job: dict[str, Any]) -> None:
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AwqConfig, GPTQConfig

    found = {}
    for folder in job["folders"]:
        # The plain kernels dequantize; the CPU's fast ones round to bfloat16 on their way.
        awq = json.loads((Path(folder) / "config.json").read_text())["quantization_config"].get("zero_point")
        config = (AwqConfig if awq else GPTQConfig)(bits=4, backend="torch_awq" if awq else "torch")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", quantization_config=config)
        with torch.inference_mode():
            found[folder] = model(torch.tensor(job["ids"])).logits.contiguous()
    save_file(found, job["out"])


def awq(job: dict[str, Any]) -> None:
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm, pack_awq
    from safetensors.torch import load_file, save_file

    fields = load_file(job["fields"])
    qweight, qzeros = pack_awq(fields["values"], fields["zeros"], 4)
    weight = dequantize_gemm(qweight, qzeros, fields["scales"], 4, job["group_size"])
    save_file({"qweight": qweight, "qzeros": qzeros, "weight": weight.contiguous()}, job["out"])


if __name__ == "__main__":
    {"quantize": quantize, "logits": logits, "awq": awq}[sys.argv[1]](
        json.loads(Path(sys.argv[2]).read_text())
    )
