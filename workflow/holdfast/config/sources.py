"""Where models, prompts and texts come from, as written in a config: ``SCHEME:PLACE``.

Nothing is imported or downloaded here: a package is looked up, a file is looked for.
"""

import importlib.metadata
import re
from collections.abc import Callable
from pathlib import Path

from holdfast.errors import HoldfastError
from holdfast.prompts.sources import package_file, suffix_text

HUB = re.compile(r"[\w.-]+/[\w.-]+@[\w./-]+")


class BadValueError(ValueError):
    """What is wrong with one value of a config, and the remedy; the key is known to the caller."""

    def __init__(self, what: str, remedy: str) -> None:
        self.what, self.remedy = what, remedy
        super().__init__(f"{what}; {remedy}")


def in_package(place: str) -> Path:
    """The path of ``NAME/inner/path`` in an installed package; raises BadValueError when there is none."""
    name, _, inner = place.partition("/")
    if not name.isidentifier() or not inner:
        raise BadValueError(f"'package:{place}' names no file of a package", "write package:NAME/inner/path")
    try:
        return package_file(place)
    except HoldfastError as error:
        raise BadValueError(f"'package:{place}': {error.what}", error.remedy) from None


def packaged_file(place: str) -> None:
    if not in_package(place).is_file():
        raise BadValueError(f"'package:{place}' is a folder", "name a file in it")


def packaged_folder(place: str) -> None:
    if not in_package(place).is_dir():
        raise BadValueError(f"'package:{place}' is a file", "name the folder it lies in")


def distribution(place: str) -> None:
    try:
        importlib.metadata.distribution(place)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        raise BadValueError(
            f"package '{place}' is not installed", f"install it (pip install {place}) or name another source"
        ) from None


def hub(place: str) -> None:
    if "@" not in place:
        raise BadValueError(
            f"'hub:{place}' has no revision", f"write hub:{place}@REVISION (a commit, so that it stays)"
        )
    if not HUB.fullmatch(place):
        raise BadValueError(f"'hub:{place}' is not a repository", "write hub:ORG/NAME@REVISION")


def file(place: str) -> None:
    if not Path(place).is_file():
        raise BadValueError(f"no file '{place}'", "give an existing file, relative to the working directory")


def suffix_file(place: str) -> None:
    file(place)
    try:
        suffix_text(Path(place))
    except HoldfastError as error:
        raise BadValueError(f"'{place}': {error.what}", error.remedy) from None


def folder(place: str) -> None:
    if not Path(place).is_dir():
        raise BadValueError(
            f"no folder '{place}'", "give an existing folder, relative to the working directory"
        )


def model_folder(place: str) -> None:
    folder(place)
    if not Path(place, "config.json").is_file():
        raise BadValueError(
            f"'{place}' has no config.json", "give a model folder as save_pretrained writes it"
        )


Schemes = dict[str, tuple[str, Callable[[str], None]]]

MODEL: Schemes = {
    "package": ("package:NAME", distribution),
    "hub": ("hub:ORG/NAME@REVISION", hub),
    "path": ("path:FOLDER", model_folder),
}
CHECKPOINT: Schemes = {scheme: form for scheme, form in MODEL.items() if scheme != "package"}
ADAPTER: Schemes = {
    "package": ("package:NAME/inner/path", packaged_folder),
    "path": ("path:FOLDER", folder),
}
TEXT: Schemes = {
    "package": ("package:NAME/inner/path", packaged_file),
    "file": ("file:PATH", file),
}
SUFFIX: Schemes = {"file": ("file:PATH", suffix_file)}
PAIRS: Schemes = {"path": ("path:FOLDER", folder), "hub": ("hub:ORG/NAME@REVISION", hub)}
DATA: Schemes = TEXT | {"hub": ("hub:ORG/NAME@REVISION", hub)}


def checked(schemes: Schemes) -> Callable[[str], str]:
    """A validator of one kind of source: known scheme, and what it names is there."""
    forms = ", ".join(form for form, _ in schemes.values())

    def check(source: str) -> str:
        scheme, colon, place = source.partition(":")
        if not colon or not place or scheme not in schemes:
            raise BadValueError(f"'{source}' is not a source", f"write one of {forms}")
        schemes[scheme][1](place)
        return source

    return check
