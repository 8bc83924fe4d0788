"""Which backend answered: a table is of one."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from holdfast.errors import HoldfastError
from holdfast.report.measures.formats import Provenance
from holdfast.report.measures.reading import json_object


def refuse_two_backends(
    results: Path, cells: Iterable[tuple[str, str, str]], attacked: Callable[[str], Sequence[str]]
) -> None:
    """Raises HoldfastError where answers of the listed cells, or verdicts of one judge, come from two backends.

    The same model answers differently after a near-tie, and draws others (docs/backends.md): a difference between two
    cells would be one of backends.
    """
    found: dict[str, dict[str, Path]] = {}
    for cell in cells:
        folder = results.joinpath(*cell)
        beside = [*(f"attacks/{name}" for name in attacked(cell[0])), "borderline", "pairs", "visual"]
        asked = [folder, *(folder / name for name in beside)]
        for place in asked:
            for record in [place / "generations/provenance.json", *place.glob("verdicts/*/provenance.json")]:
                if not any(record.parent.glob("*.jsonl")):
                    continue  # of a stage that is yet to run again
                recipe = (json_object(record, Provenance) or {}).get("recipe")
                if isinstance(recipe, dict):
                    of = f"verdicts of {record.parent.name}" if "judge" in recipe else "answers"
                    backend = str(recipe.get("backend", "transformers"))
                    found.setdefault(of, {}).setdefault(backend, place.relative_to(results))
    for of, places in found.items():
        if len(places) > 1:
            where = ", ".join(f"{name} in {places[name]}" for name in sorted(places, reverse=True))
            remedy = "run the study again: the older ones are stale"
            raise HoldfastError(f"{of} of two backends: {where}", results.name, remedy)
