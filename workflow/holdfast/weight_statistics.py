"""What a checkpoint's files hold: checksums, density and bits per weight of every decoder linear."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from safetensors import safe_open

from holdfast.architectures import decoder_linears
from holdfast.files import read_json, sha256
from holdfast.formats import bits_per_weight, format_of
from holdfast.model_folders import headers, read_config, weight_files
from holdfast.skeletons import skeleton, stored_modules


def weight_statistics(folder: Path, source: Path | None = None) -> dict[str, Any]:
    """``{weights, bytes, density, bits_per_weight, modules: {name: {density, bits_per_weight}}}``.

    ``weights`` is the sha256 of every weight file. Density is the share of weights of the decoder linears that
    are not zero; None for a checkpoint with a quantization config, whose zeros are small weights rounded down,
    not pruned ones. Bits count what lies on disk, scales and quantization state included, biases not.

    Args:
        source: the checkpoint that ``folder`` is an edited copy of: shards that are still the same file
            are not read again, their figures come from its ``provenance.json``.
    """
    linears = decoder_linears(skeleton(folder))
    sizes = {name: linear.weight.numel() for name, linear in linears.items()}
    bits, total = bits_per_weight(folder), sum(sizes.values())
    entries = format_of(folder).modules(headers(folder))
    stored = {name: file for name, file in stored_modules(folder, entries).items() if name in sizes}
    files = weight_files(folder)
    known = _known(source) if source else {}
    shared = [f for f in files if known and source and _same_file(f, source / f.name)]
    fresh = [f for f in files if f not in shared]
    with ThreadPoolExecutor() as pool:  # hashing leaves the interpreter's lock
        sums = dict(zip((f.name for f in fresh), pool.map(sha256, fresh), strict=True))
    about: dict[str, Any] = {
        "weights": {f.name: sums[f.name] if f.name in sums else known["weights"][f.name] for f in files},
        "bytes": sum(f.stat().st_size for f in files),
        "density": None,
        "bits_per_weight": sum(bits[name] * size for name, size in sizes.items()) / total,
        "modules": {name: {"bits_per_weight": bits[name]} for name in sizes},
    }
    if not read_config(folder).get("quantization_config"):
        before = {n: m["density"] for n, m in known["modules"].items()} if shared else {}
        density = before | _densities(fresh, {f"{file}.weight": n for n, file in stored.items()})
        for name, share in density.items():
            about["modules"][name]["density"] = share
        about["density"] = sum(share * sizes[name] for name, share in density.items()) / total
    return about


def _known(source: Path) -> dict[str, Any]:
    """The source's own record, where it has one in this form."""
    record = read_json(source / "provenance.json") if (source / "provenance.json").is_file() else {}
    return record if {"weights", "modules"} <= set(record) else {}


def _same_file(file: Path, other: Path) -> bool:
    return other.exists() and file.samefile(other)


def _densities(files: list[Path], modules: dict[str, str]) -> dict[str, float]:
    """Share of non-zero weights by module, a tensor read at a time; ``modules`` by the weight's stored name."""
    found = {}
    for file in files:
        with safe_open(file, "pt") as shard:
            for name in modules.keys() & set(shard.keys()):
                weight = shard.get_tensor(name)
                found[modules[name]] = int(weight.count_nonzero()) / weight.numel()
    return found
