"""The grid: which cells a study has, and what must hold between its sections.

The checks read the plain YAML, not the validated models, so that they run, and all mistakes are
told at once, even where a section is wrong in itself.
"""

import difflib
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from holdfast.config.compressions import calibrated
from holdfast.errors import HoldfastError
from holdfast.files import read_json

DENSE = "dense"
AS_IS = "as-is"

Pattern = tuple[str, str, str]
# Where (keys from the top), what, remedy.
Found = tuple[tuple[str | int, ...], str, str]


class Cell(NamedTuple):
    model: str
    compression: str
    method: str


def cell_of(names: Mapping[str, str]) -> Cell | None:
    """The cell that a job belongs to, by its wildcards; None where it is of no model.

    A compression's own stages belong to its cell as-is, a model's to the dense one.
    """
    if "model" not in names:
        return None
    return Cell(names["model"], names.get("compression", DENSE), names.get("method", AS_IS))


def impossible(cell: Cell, compressions: Mapping[str, Any], methods: Mapping[str, Any]) -> bool:
    """The dense model needs no repair, and what was not calibrated cannot be calibrated otherwise.

    ``compressions`` and ``methods``: the study's sections as plain data, by name.
    """
    if cell.compression == DENSE:
        return cell.method != AS_IS
    return not recalibrable(compressions[cell.compression]) and recalibrates(methods[cell.method])


def recalibrates(method: Any) -> bool:
    return isinstance(method, dict) and "recalibrate" in method


def recalibrable(compression: Any) -> bool:
    return isinstance(compression, dict) and calibrated(compression)


def expand(
    models: list[str],
    compressions: Mapping[str, Any],
    methods: Mapping[str, Any],
    patterns: Iterable[Pattern],
) -> list[Cell]:
    """The possible cells of the product that any pattern selects, in the product's order.

    A published checkpoint belongs to one model, which its section may name (``of``). ``compressions`` and
    ``methods``: the sections as plain data, by name.
    """
    patterns = list(patterns)
    owners = {name: section["of"] for name, section in compressions.items() if section.get("of")}
    grid = (Cell(*names) for names in itertools.product(models, compressions, methods))
    return [
        cell
        for cell in grid
        if owners.get(cell.compression, cell.model) == cell.model
        and not impossible(cell, compressions, methods)
        and any(selects(p, cell) for p in patterns)
    ]


def selects(pattern: Pattern, cell: Cell) -> bool:
    return all(fnmatchcase(name, part) for name, part in zip(cell, pattern, strict=True))


def closest(name: str, names: Iterable[str]) -> str:
    """``did you mean NAME? `` for the name most like it, or nothing."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"did you mean {near[0]}? " if near else ""


def grid_mistakes(config: dict[str, Any]) -> Iterator[Found]:
    """What is wrong between the sections of a study's plain YAML."""
    for section in ("models", "compressions", "methods"):
        yield from same_but_case(section, config)
    yield from empty_sections("compressions", DENSE, "the uncompressed model", config)
    yield from empty_sections("methods", AS_IS, "the unedited model", config)
    yield from lost_targets(named_sections("methods", config))
    yield from lost_owners(named_sections("compressions", config), list(named_sections("models", config)))
    yield from nothing_to_recalibrate(
        named_sections("compressions", config), named_sections("methods", config)
    )
    yield from needless_draws(named_sections("compressions", config), config.get("calibration"))
    yield from empty_patterns(config)
    yield from untried_modalities(config)
    yield from blind_models(config)
    yield from idle_attacks(config, list(named_sections("models", config)))


def named_sections(section: str, config: dict[str, Any]) -> dict[str, Any]:
    value = config.get(section)
    return {k: v for k, v in value.items() if isinstance(k, str)} if isinstance(value, dict) else {}


def same_but_case(section: str, config: dict[str, Any]) -> Iterator[Found]:
    """Names become folders, and some file systems do not tell case apart."""
    spellings = defaultdict(list)
    for name in named_sections(section, config):
        spellings[name.lower()].append(name)
    for names in spellings.values():
        if len(names) > 1:
            yield (section, names[-1]), f"differs only in case from '{names[0]}'", "choose another name"


def empty_sections(section: str, name: str, meaning: str, config: dict[str, Any]) -> Iterator[Found]:
    sections = named_sections(section, config)
    if not sections:
        return
    if name not in sections:
        yield (section,), f"no '{name}', {meaning} that all is compared with", f"add '{name}: {{}}'"
    elif sections[name] != {}:
        yield (
            (section, name),
            f"'{name}' is {meaning} and has no keys",
            f"write '{name}: {{}}', name this otherwise",
        )
    for other, value in sections.items():
        if other != name and value == {}:
            yield (section, other), "empty", f"only '{name}' is {{}}: remove it or give its keys"


def lost_targets(methods: dict[str, Any]) -> Iterator[Found]:
    for name, method in methods.items():
        target = method.get("matched_to") if isinstance(method, dict) else None
        if not isinstance(target, str):
            continue
        where = ("methods", name, "matched_to")
        other = methods.get(target)
        kind = "steer" if "steer" in method else "edit"  # the kinds that have random controls
        edits = [
            n for n, m in methods.items() if isinstance(m, dict) and kind in m and not m.get("matched_to")
        ]
        if not edits:
            remedy = "add the method that it is the control of"
        else:
            remedy = f"{closest(target, edits)}name one of {', '.join(edits)}"
        if target not in methods:
            yield where, f"no method '{target}'", remedy
        elif target == name or (isinstance(other, dict) and other.get("matched_to")):
            yield where, f"'{target}' is itself matched to another method", remedy
        elif target not in edits:
            yield where, f"'{target}' {kind}s nothing", remedy


def lost_owners(compressions: dict[str, Any], models: list[str]) -> Iterator[Found]:
    """Published checkpoints that belong to no model of the study, or to one that is not named."""
    for name, section in compressions.items():
        if not isinstance(section, dict) or "source" not in section:
            continue
        owner = section.get("of")
        if owner is None and len(models) > 1:
            remedy = f"add of: with one of {', '.join(models)}"
            yield (
                ("compressions", name, "of"),
                "it was made from one model, and the study has several",
                remedy,
            )
        elif isinstance(owner, str) and owner not in models:
            remedy = f"{closest(owner, models)}name one of {', '.join(models)}"
            yield ("compressions", name, "of"), f"no model '{owner}'", remedy


def needless_draws(compressions: dict[str, Any], calibration: Any) -> Iterator[Found]:
    """Calibration settings of a method that has none, more than the study draws, or of parts without any."""
    drawn = calibration.get("samples") if isinstance(calibration, dict) else None
    for name, section in compressions.items():
        if not isinstance(section, dict):
            continue
        for key in ("samples", "tokens"):
            if key in section and not calibrated(section):
                yield ("compressions", name, key), "the method is not calibrated", "remove this key"
        parts = section.get("parts")
        for_language = section.get("quantize") in ("gptq", "awq", "smoothquant")
        if isinstance(parts, list) and parts != ["language"] and for_language:
            what = "the method knows the language model alone"
            remedy = "remove this key, or use rtn, fp8, bitsandbytes or pruning"
            yield ("compressions", name, "parts"), what, remedy
        asked = section.get("samples")
        if isinstance(asked, int) and isinstance(drawn, int) and asked > drawn:
            what = f"{asked} sequences, and the study's calibration draws {drawn}"
            yield ("compressions", name, "samples"), what, "raise calibration.samples, or lower this"


def nothing_to_recalibrate(compressions: dict[str, Any], methods: dict[str, Any]) -> Iterator[Found]:
    if any(map(recalibrable, compressions.values())):
        return
    for name in filter(lambda name: recalibrates(methods[name]), methods):
        what = "no compression of the study is calibrated"
        yield ("methods", name), what, "add one (wanda, sparsegpt, gptq, awq, smoothquant), or remove this"


def untried_modalities(config: dict[str, Any]) -> Iterator[Found]:
    """Directions by modality without pairs to try them on, or with those that they are learnt on."""
    section, pairs = config.get("modalities"), config.get("pairs")
    if section is not None and pairs is None:
        yield ("modalities",), "the study has no pairs to try directions on", "add pairs: {}, or remove this"
    words = "embedded-words"
    if not isinstance(section, dict) or not isinstance(pairs, dict) or section.get("learnt_on") != words:
        return
    if pairs.get("benchmark") == words and pairs.get("split") != "test":
        what = "they hold the words that directions are learnt on"
        yield ("pairs", "split"), what, "write split: test"


def blind_models(config: dict[str, Any]) -> Iterator[Found]:
    """Models that take no images in a study that shows them some: the embedded one without its vision parts, and
    folders whose config has no tower. What the hub holds is not known yet: their jobs say it."""
    pairs, evaluate = config.get("pairs"), config.get("evaluate")
    shown = (
        isinstance(pairs, dict) and pairs.get("modality") != ["text"] and pairs.get("benchmark") != "xstest"
    )
    if not shown and not (isinstance(evaluate, dict) and evaluate.get("visual")):
        return
    for name, section in named_sections("models", config).items():
        kind, _, where = str(section.get("source") if isinstance(section, dict) else "").partition(":")
        if (kind == "package" and not section.get("vision")) or (kind == "path" and towerless(where)):
            remedy = "use a vision-language model, or leave out evaluate.visual and pairs with images"
            yield ("models", name), "takes no images, and the study shows it some", remedy


def towerless(folder: str) -> bool:
    """Whether a model folder's config is there and has no vision tower."""
    try:
        config = read_json(Path(folder).expanduser() / "config.json")
    except (OSError, HoldfastError):
        return False
    return isinstance(config, dict) and "vision_config" not in config


def idle_attacks(config: dict[str, Any], models: list[str]) -> Iterator[Found]:
    """Attack settings whose pattern names no model."""
    evaluate = config.get("evaluate")
    for name, section in named_sections("attacks", evaluate if isinstance(evaluate, dict) else {}).items():
        pattern = section.get("model", "*") if isinstance(section, dict) else "*"
        if isinstance(pattern, str) and models and not any(fnmatchcase(m, pattern) for m in models):
            yield (
                ("evaluate", "attacks", name, "model"),
                f"'{pattern}' selects no model",
                f"mend the pattern, or name one of {', '.join(models)}",
            )


def empty_patterns(config: dict[str, Any]) -> Iterator[Found]:
    """``cells`` patterns that select no cell, or only impossible ones."""
    patterns = config.get("cells")
    sections = [named_sections(s, config) for s in ("compressions", "methods")]
    names = [list(named_sections("models", config)), *map(list, sections)]
    if not isinstance(patterns, list) or not all(names):
        return
    for number, given in enumerate(patterns):
        if not isinstance(given, dict):
            continue
        model, compression, method = (str(given.get(k, "*")) for k in ("model", "compression", "method"))
        pattern = (model, compression, method)
        selected = [c for c in map(Cell._make, itertools.product(*names)) if selects(pattern, c)]
        shown = " / ".join(pattern)
        if not selected:
            yield (
                ("cells", number),
                f"'{shown}' selects no cell",
                "mend the pattern, or add what it should name",
            )
        elif all(impossible(cell, *sections) for cell in selected):
            what, remedy = (
                "edits of the dense model, which needs no repair",
                "name a compression, or the method as-is",
            )
            if any(cell.compression != DENSE for cell in selected):
                what, remedy = (
                    "new calibrations of what is not calibrated",
                    "name a calibrated compression, or another method",
                )
            yield ("cells", number), f"'{shown}' selects only {what}", remedy
