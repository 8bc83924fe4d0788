"""Auto-gptq and AutoAWQ checkpoints made by the packing oracle alone: no gptqmodel, no code of Holdfast's."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from oracles import gptq_packing
from safetensors.torch import load_file, save_file

GROUP = 32


def auto_gptq_checkpoint(
    dense: Path,
    out: Path,
    *,
    bits: int = 4,
    sym: bool = True,
    version: str = "gptq",
    shuffled: bool = False,
    group_size: int = GROUP,
) -> Path:
    """Round the decoder's linears of a tiny dense checkpoint, shards, their names and all else as they are.

    Args:
        version: gptq (zeros stored less one; asymmetric ones are kept at 1 and above) or gptq_v2.
        shuffled: a random input order decides the groups, as desc_act does.
        group_size: inputs that share a scale; -1 for all of a row's.
    """
    draw = torch.Generator().manual_seed(7)

    def parts(weight: torch.Tensor) -> dict[str, torch.Tensor]:
        width = weight.shape[1]
        order = torch.randperm(width, generator=draw) if shuffled else torch.arange(width)
        groups = (order // (width if group_size == -1 else group_size)).to(torch.int32)
        return _parts(weight, groups, bits, sym, version)

    about = {"bits": bits, "group_size": group_size, "sym": sym, "desc_act": shuffled}
    return _written(dense, out, parts, {"quant_method": "gptq", **about, "checkpoint_format": version})


def awq_checkpoint(dense: Path, out: Path) -> Path:
    """The same in AutoAWQ's layout: 4 bits, version gemm, groups of 32."""
    about = {"bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
    return _written(dense, out, _awq_parts, {"quant_method": "awq", **about})


def _awq_parts(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Rows of inputs; of every eight outputs a word holds 0, 2, 4, 6, 1, 3, 5, 7."""
    columns = weight.T.unflatten(0, (-1, GROUP))
    low, high = columns.amin(1).clamp(max=0), columns.amax(1).clamp(min=0)
    scales = ((high - low) / 15).half()
    zeros = (-low / scales.float()).round().clamp(0, 15)
    codes = ((columns / scales.float()[:, None]).round() + zeros[:, None]).clamp(0, 15).flatten(0, 1)
    order = [start + place for start in range(0, weight.shape[0], 8) for place in (0, 2, 4, 6, 1, 3, 5, 7)]
    words = {
        name: torch.tensor(
            [gptq_packing.packed(r, 4) for r in rows[:, order].int().tolist()], dtype=torch.int32
        )
        for name, rows in (("qweight", codes), ("qzeros", zeros))
    }
    return {**words, "scales": scales}


def _written(
    dense: Path, out: Path, parts: Callable[[torch.Tensor], dict[str, torch.Tensor]], about: dict[str, object]
) -> Path:
    shutil.copytree(dense, out)
    places: dict[str, str] = {}
    for file in out.glob("*.safetensors"):
        tensors = load_file(file)
        for name in [n for n in tensors if n.endswith("_proj.weight")]:
            made = parts(tensors.pop(name))
            tensors |= {f"{name.removesuffix('.weight')}.{part}": tensor for part, tensor in made.items()}
        save_file(tensors, file, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, file.name)
    (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    config = json.loads((out / "config.json").read_text())
    config["quantization_config"] = about
    (out / "config.json").write_text(json.dumps(config))
    return out


def _parts(
    weight: torch.Tensor, groups: torch.Tensor, bits: int, sym: bool, version: str
) -> dict[str, torch.Tensor]:
    top = 2**bits - 1
    scales, zeros = [], []
    for number in range(int(groups.max()) + 1):
        columns = weight[:, groups == number]
        low, high = columns.amin(1).clamp(max=0), columns.amax(1).clamp(min=0)
        if sym:
            high = torch.maximum(high, -low)
            low = -high
        scale = ((high - low) / top).half().float()
        scales.append(scale)
        zeros.append(torch.full_like(scale, (top + 1) // 2) if sym else (-low / scale).round().clamp(1, top))
    scale, zero = torch.stack(scales), torch.stack(zeros)
    codes = (weight.T / scale[groups.long()]).round() + zero[groups.long()]
    columns = codes.clamp(0, top).int().T.tolist()
    less = int(version == "gptq")
    return {
        "qweight": torch.tensor(
            [gptq_packing.packed(c, bits) for c in columns], dtype=torch.int32
        ).T.contiguous(),
        "qzeros": torch.tensor(
            [gptq_packing.packed([z - less for z in row], bits) for row in zero.int().tolist()],
            dtype=torch.int32,
        ),
        "scales": scale.half(),
        "g_idx": groups,
    }
