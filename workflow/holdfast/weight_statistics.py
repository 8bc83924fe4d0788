"""What a checkpoint's files hold: checksums, and density and bits per weight of every compressed linear."""

import filecmp
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from safetensors import safe_open

from holdfast.architectures import Part, part_linears
from holdfast.checkpoints import is_finite
from holdfast.errors import HoldfastError
from holdfast.files import MARKER, read_json, sha256
from holdfast.formats import bits_per_weight, format_of
from holdfast.model_folders import headers, read_config, weight_files
from holdfast.skeletons import skeleton, stored_modules

RECORDS = {
    MARKER,
    "provenance.json",
    "edit.json",
    "steer.json",
    "tuning.json",
}  # what stages tell of a checkpoint, no part of it


def weight_statistics(
    folder: Path,
    source: Path | None = None,
    parts: Sequence[Part] = ("language",),
    named: str | None = None,
) -> dict[str, Any]:
    """``{weights, bytes, density, bits_per_weight, modules: {name: {density, bits_per_weight}}}``, and of an edited
    copy ``added_bytes``.

    ``weights`` is the sha256 of every weight file. Density is the share of weights of the linears that are not
    zero; None for a checkpoint with a quantization config, whose zeros are small weights rounded down, not pruned
    ones. Bits count what lies on disk, scales and quantization state included, biases not.

    Args:
        source: the checkpoint that ``folder`` is an edited copy of: shards that are still the same file
            are not read again, their figures come from its ``provenance.json``. ``added_bytes`` are those of
            files, records of stages apart, that are not the source's own.
        named: where the weights came from, to be told of in errors instead of ``folder``.
        parts: of the model, whose linears are counted; of an edited copy, those its source's record has.

    Raises:
        HoldfastError: a tensor holds NaN or infinity, or a linear of these parts has no stored weight.
    """
    known = _known(source) if source else {}
    model = skeleton(folder)
    # Stacked expert weights are no linears and not counted; nothing here compresses them.
    names = known["modules"] if known else part_linears(model, parts, whole=False)
    sizes = {name: model.get_parameter(f"{name}.weight").numel() for name in names}
    bits, total = bits_per_weight(folder, sizes), sum(sizes.values())
    files = weight_files(folder)
    shared = [f for f in files if known and source and _same_file(f, source / f.name)]
    fresh = [f for f in files if f not in shared]
    quantized = bool(read_config(folder).get("quantization_config"))
    entries: dict[str, str] = {}
    if not quantized:
        stored = stored_modules(folder, format_of(folder).modules(headers(folder)))
        entries = {f"{entry}.weight": name for name, entry in stored.items() if name in sizes}
    with ThreadPoolExecutor() as pool:  # hashing leaves the interpreter's lock
        hashed = pool.map(sha256, fresh)
        shares = _finite_shares(fresh, entries, named)
        sums = dict(zip((f.name for f in fresh), hashed, strict=True))
    about: dict[str, Any] = {
        "weights": {f.name: sums[f.name] if f.name in sums else known["weights"][f.name] for f in files},
        "bytes": sum(f.stat().st_size for f in files),
        "density": None,
        "bits_per_weight": sum(bits[name] * size for name, size in sizes.items()) / total,
        "modules": {name: {"bits_per_weight": bits[name]} for name in sizes},
    }
    if not quantized:
        before = {name: module["density"] for name, module in known["modules"].items()} if shared else {}
        for name, share in (before | shares).items():
            about["modules"][name]["density"] = share
        about["density"] = (
            sum(about["modules"][name]["density"] * size for name, size in sizes.items()) / total
        )
    return about | ({"added_bytes": _added_bytes(folder, source)} if source else {})


def _added_bytes(folder: Path, source: Path) -> int:
    files = [p for p in folder.rglob("*") if p.is_file() and p.name not in RECORDS]
    own = [p for p in files if not _same_content(p, source / p.relative_to(folder))]
    return sum(p.stat().st_size for p in own)


def _same_content(file: Path, other: Path) -> bool:
    return _same_file(file, other) or (other.is_file() and filecmp.cmp(file, other, shallow=False))


def _known(source: Path) -> dict[str, Any]:
    """The source's own record, where it has one in this form."""
    record = read_json(source / "provenance.json") if (source / "provenance.json").is_file() else {}
    return record if {"weights", "modules"} <= set(record) else {}


def _same_file(file: Path, other: Path) -> bool:
    return other.exists() and file.samefile(other)


def _finite_shares(files: list[Path], entries: dict[str, str], named: str | None) -> dict[str, float]:
    """Share of non-zero weights by module, a tensor read at a time; every tensor is looked at for NaN."""
    found = {}
    for file in files:
        with safe_open(file, "pt") as shard:
            for name in shard.keys():  # noqa: SIM118
                tensor = shard.get_tensor(name)
                if not is_finite(tensor):
                    remedy = "use a sound checkpoint, a gentler recipe, or a wider dtype (float32, bfloat16)"
                    where = f"{named}, {file.name}" if named else str(file)
                    raise HoldfastError(f"{name} holds NaN or infinite values", where, remedy)
                if name in entries:
                    found[entries[name]] = int(tensor.count_nonzero()) / tensor.numel()
    return found
