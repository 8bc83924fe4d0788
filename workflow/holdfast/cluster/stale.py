"""Which finished results were made by other packages than are installed now.

Nothing is made again for that: an upgrade may change nothing, or rounding, or everything. It is told, and what to do is
the user's choice.
"""

import contextlib
import importlib.metadata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from holdfast.checkout import ENVIRONMENTS
from holdfast.files import read_json
from holdfast.provenance import PACKAGES, package_versions

OWN = "holdfast"  # what its changes make stale is told by the stages' versions
# The rules that run a stage, where they are others than the one of its name.
RULES = {
    "compress": ("compress", "compress_by_gptqmodel"),
    "fetch": ("fetch", "fetch_judge"),
    "generate": ("answer_pairs", "answer_visual", "attack", "borderline", "generate", "training_answers"),
    "draw": ("draw_prompts",),
    "image-use": ("image_use",),
    "judge": ("judge", "judge_attack", "judge_borderline", "judge_pairs"),
    "judge-by-model": ("judge_attack_by_model", "judge_by_model"),
    "recalibrate": ("recalibrate", "recalibrate_by_gptqmodel"),
    "score": ("score_visual",),
    "text": ("held_out",),
}


class Change(NamedTuple):
    """A package of another version than results were made by."""

    package: str
    before: str
    now: str


def stale(results: Path, installed: Sequence[Mapping[str, str]]) -> dict[Change, Counter[str]]:
    """How many results of each stage were made by another version of a package.

    Args:
        results: a study's folder.
        installed: versions by package, of every environment here; a record is compared with the one most like it.

    Raises:
        HoldfastError: a record is not JSON.
    """
    found: dict[Change, Counter[str]] = {}
    for record in _records(results):
        made_by = {k: v for k, v in record["packages"].items() if k != OWN and isinstance(v, str)}
        here = max(installed, key=lambda versions: sum(versions.get(k) == v for k, v in made_by.items()))
        for package, before in made_by.items():
            if package in here and here[package] != before:
                change = Change(package, before, here[package])
                found.setdefault(change, Counter())[str(record.get("stage"))] += 1
    return found


def told(found: Mapping[Change, Counter[str]], config: Path) -> list[str]:
    """One line a package, and how to make again what is stale."""
    if not found:
        return ["every result was made by the packages that are installed"]
    lines = [
        f"{c.package} {c.before} -> {c.now}: {stages.total()} results "
        f"({', '.join(f'{count} {stage}' for stage, count in sorted(stages.items()))})"
        for c, stages in sorted(found.items())
    ]
    stages = {stage for some in found.values() for stage in some}
    rules = sorted({rule for stage in stages for rule in RULES.get(stage, (stage,))})
    command = f"snakemake --cores all --configfile {config} --forcerun {' '.join(rules)}"
    return [
        *lines,
        "nothing is made again for that; where it matters, name those rules whose results, with all that follow from "
        f"them, shall be: {command}",
    ]


def environments(root: Path = ENVIRONMENTS) -> list[dict[str, str]]:
    """Versions by package: of this environment, then of those that rules make in ``root``."""
    found = [package_versions()]
    for packages in sorted(root.glob("*/lib/python*/site-packages")):
        there = importlib.metadata.distributions(path=[str(packages)])
        versions = {one.name.replace("_", "-").lower(): one.version for one in there}
        names = {name: name.replace("_", "-") for name in PACKAGES}
        known = {name: versions[plain] for name, plain in names.items() if plain in versions}
        settings: list[str] = []
        with contextlib.suppress(OSError):  # half made
            settings = (packages.parents[2] / "pyvenv.cfg").read_text(encoding="utf-8").splitlines()
        python = [line.partition("=")[2].strip() for line in settings if line.startswith("version")]
        found.append(known | {"python": python[0]} if python else known)
    return found


def _records(results: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(results.rglob("*provenance.json")):
        if any(part.startswith(".") for part in path.relative_to(results).parts):
            continue  # left by a stage that was killed
        record = read_json(path)
        if isinstance(record, dict) and isinstance(record.get("packages"), dict):
            yield record
