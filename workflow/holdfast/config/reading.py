"""Reading a study's config: YAML in, a checked ``Study`` out, every mistake told in one line."""

import re
import reprlib
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from holdfast.config.cells import DENSE, Found, closest, grid_mistakes
from holdfast.config.compressions import Published, calibrated
from holdfast.config.grid import TAGGED
from holdfast.config.judges import judge_mistakes
from holdfast.config.rivals import Recalibrate
from holdfast.config.sources import BadValueError
from holdfast.config.study import Study
from holdfast.config.values import Section
from holdfast.errors import HoldfastError, first_line

NUMBERS = {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}
Location = tuple[str | int, ...]

REMEDY = "mend these lines"
EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a section of 'key: value' lines",
    "model_type": "a section of 'key: value' lines",
}
BOUNDS = {
    "greater_than": "above {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "below {lt}",
    "less_than_equal": "{le} or less",
}


class ConfigError(HoldfastError):
    """All mistakes of a config; ``mistakes`` holds one line each, ``FILE: key.path: what; remedy``."""

    def __init__(self, file: Path, found: list[Found]) -> None:
        self.mistakes = [
            f"{file}: {dotted(where)}: {what}; {remedy}" if where else f"{file}: {what}; {remedy}"
            for where, what, remedy in found
        ]
        number = "1 mistake" if len(found) == 1 else f"{len(found)} mistakes"
        super().__init__(number, str(file), REMEDY)
        self.args = ("\n".join(self.mistakes),)


def load_study(path: Path) -> Study:
    """Read and check a study's config, before any job starts.

    Paths in it are relative to the working directory. Raises ConfigError with every mistake found.
    """
    config, found = read_yaml(path)
    study = None
    try:
        study = Study.model_validate(config)
    except ValidationError as error:
        found += [explained(e) for e in error.errors(include_url=False)]
    found += [*grid_mistakes(config), *judge_mistakes(config)]
    if study is None or found:
        raise ConfigError(path, found)
    return study


def schema() -> dict[str, Any]:
    """The JSON schema of a config, for editors (config/schema/study.schema.json)."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Study.model_json_schema()}


def summary(study: Study) -> str:
    """The size of the grid, its cells by model, and what is not pinned, for people."""
    cells = study.cells()
    counts = ", ".join(f"{len(getattr(study, s))} {s}" for s in ("models", "compressions", "methods"))
    lines = [f"study {study.study}: {counts}; {len(cells)} cells"]
    for model in study.models:
        lines.append(f"{model}:")
        for compression in study.compressions:
            methods = [c.method for c in cells if (c.model, c.compression) == (model, compression)]
            if methods:
                lines.append(f"  {compression}: {', '.join(methods)}")
    for name, method in study.methods.items():
        lost = [c for c, section in study.compressions.items() if not calibrated(section.model_dump())]
        lost = [compression for compression in lost if compression != DENSE]
        if isinstance(method, Recalibrate) and lost:
            lines.append(f"no cell of {name}: {', '.join(lost)} (not calibrated)")
    lines += [f"not pinned: {where} follows a branch; give a commit after @" for where in unpinned(study)]
    return "\n".join(lines)


def unpinned(study: Study) -> Iterator[str]:
    """Keys whose ``hub:`` source names a branch, whose content may change, instead of a commit."""
    sections = {f"models.{name}": model.source for name, model in study.models.items()}
    sections |= {f"prompts.{role}": getattr(study.prompts, role).source for role in study.prompts.roles()}
    sections |= {
        f"compressions.{name}": c.source for name, c in study.compressions.items() if isinstance(c, Published)
    }
    sections |= {f"evaluate.judge_models.{n}": j.source for n, j in study.evaluate.judge_models.items()}
    sections["calibration"] = study.calibration.source
    sections["evaluate.perplexity"] = study.evaluate.perplexity.source
    if study.evaluate.visual:
        sections["evaluate.visual"] = study.evaluate.visual.source or ""
    for where, source in sections.items():
        if source.startswith("hub:") and not re.fullmatch("[0-9a-f]{40}", source.rpartition("@")[2]):
            yield f"{where}.source ({source})"


def read_yaml(path: Path, example: str = "config/demo.yaml") -> tuple[dict[str, Any], list[Found]]:
    """The YAML as plain data, and what YAML itself would take otherwise than it is written.

    Raises ConfigError when there is no such file, or it is not YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            path, [((), f"cannot be read ({error.strerror})", "give an existing config")]
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(path, [((), "not UTF-8 text", "save it as UTF-8")]) from None
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        found = list(misread(node, ())) if node else []
        config = loader.construct_document(node) if node else None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or first_line(error)
        raise ConfigError(
            path, [((), f"{place}not YAML ({problem})", "mend the indentation or quotes there")]
        ) from None
    except RecursionError:
        raise ConfigError(
            path, [((), "nested too deeply, or part of itself", "write it without anchors (&, *)")]
        ) from None
    finally:
        loader.dispose()
    if not isinstance(config, dict):
        raise ConfigError(path, [((), "empty, or not a mapping", f"start from {example}")])
    return config, found


def misread(node: yaml.Node, where: Location) -> Iterator[Found]:
    """What YAML takes otherwise than it is written: of a key that stands twice in one mapping it keeps the last, and a
    time without quotes (12:00:00) is a number to the base of sixty (43200)."""
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from misread(item, (*where, number))
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                yield (*where, name), f"given twice (lines {lines[name]} and {line})", "keep one"
            lines[name] = line
            yield from misread(value, (*where, name))
    elif node.tag in NUMBERS and ":" in node.value:
        yield where, f"YAML reads {node.value} as a number to the base of 60", f'write "{node.value}"'


def dotted(where: Location) -> str:
    return ".".join(map(str, where))


def section_at(where: Location, root: type[Section]) -> type[Section]:
    """The model of the section that a pydantic error location leads to, from ``root``."""
    kind: Any = root
    for part in where:
        if part in TAGGED:
            kind = TAGGED[str(part)]
        elif isinstance(kind, type) and issubclass(kind, Section):
            kind = next(f.annotation for n, f in kind.model_fields.items() if part in (n, f.alias))
        else:
            kind = get_args(kind)[-1]
        if isinstance(kind, UnionType):  # a section, or null
            kind = next((k for k in get_args(kind) if isinstance(k, type) and issubclass(k, Section)), kind)
    return kind


def explained(error: Any, root: type[Section] = Study) -> Found:
    """A pydantic error about ``root`` in the words of the config."""
    location: Location = error["loc"]
    where = tuple(p for p in location if p not in TAGGED and p != "[key]")
    kind, given = error["type"], error["input"]
    if kind == "value_error" and isinstance(error["ctx"]["error"], BadValueError):
        told = error["ctx"]["error"]
        return where, told.what, told.remedy
    if kind in ("extra_forbidden", "missing", "string_pattern_mismatch"):
        return where, *explained_key(kind, location, given, root)
    return where, *explained_value(kind, location, given, error.get("ctx", {}))


def explained_key(kind: str, location: Location, given: Any, root: type[Section]) -> tuple[str, str]:
    """What and remedy, where both follow from the section's keys."""
    fields = section_at(location[:-1], root).model_fields
    key = str(location[-1])
    if kind == "missing":
        return "missing", f"add it ({fields[key].description})"
    if kind == "string_pattern_mismatch":
        return f"{reprlib.repr(given)} does not fit", f"give the {fields[key].description}"
    names = [field.alias or name for name, field in fields.items()]
    if not names:
        return "unknown key", "remove it: this section has no keys"
    return "unknown key", f"{closest(key, names)}keys here: {', '.join(names)}"


def explained_value(kind: str, location: Location, given: Any, context: dict[str, Any]) -> tuple[str, str]:
    shown = reprlib.repr(given)
    expected = EXPECTED.get(kind, "another value")
    what, remedy = f"{shown} is not {expected}", f"give {expected}"
    if kind == "literal_error":
        choices = re.findall("'([^']*)'", context["expected"])
        what, remedy = (
            f"{shown} is not known",
            f"{closest(str(given), choices)}choose from: {', '.join(choices)}",
        )
    elif "[key]" in location:
        what, remedy = f"the name {shown} is not text", "put it in quotes"
    elif kind == "too_short":
        least = context["min_length"]
        what, remedy = ("too few", f"give {least}") if given else ("empty", "give it at least one entry")
    elif kind == "string_too_short":
        what, remedy = "empty", "give some text"
    elif given is None:
        what, remedy = "empty", f"give {expected}"
    elif kind in BOUNDS:
        what, remedy = f"{shown} is out of range", f"give a value {BOUNDS[kind].format(**context)}"
    return what, remedy
