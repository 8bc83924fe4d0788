"""One self-contained HTML page of a study: findings, tables, figures and samples.

Completions are untrusted and may be harmful: they are escaped by the template, folded away, and the page
forbids itself scripts and every load from outside.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from holdfast.evaluation.judges.agreement import human_agreement
from holdfast.files import read_json, write_text
from holdfast.report.claims import claims
from holdfast.report.collect import Cell
from holdfast.report.figures import ALT, render_figures
from holdfast.report.findings import gaps
from holdfast.report.numbers import Numbers
from holdfast.report.pair_samples import pair_samples
from holdfast.report.samples import samples
from holdfast.report.tables import model_tables, models

SAMPLES = {"attack": 5, "over_refusal": 3}


def write_page(
    out_html: Path,
    results: Path,
    cells: Iterable[Cell],
    judges: Sequence[str],
    study_config_text: str,
    frame: pd.DataFrame,
) -> None:
    """Write the report; the same results give the same bytes (no time stands in it).

    Args:
        out_html: the page.
        results: ``results/STUDY``, read for samples and provenance.
        cells: (model, compression, method), in the page's order.
        judges: their names, the headline first.
        study_config_text: the config file as written, shown as it is.
        frame: what ``collect`` returned for these cells.

    Raises:
        HoldfastError: a generations, verdicts or provenance file is not as its format says.
    """
    listed = list(dict.fromkeys(cells))
    environment = Environment(
        loader=PackageLoader("holdfast.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    figures = render_figures(frame)
    of_models = [Numbers(frame, m) for m in models(frame)]
    missing = {(n.model, *cell) for n in of_models for cell in n.missing}
    paired = any(m.startswith("pair_") for n in of_models for m in n.measures)
    html = environment.get_template("page.html").render(
        study=results.name,
        judges=judges,
        judge_errors=list(map(human_agreement, judges)),
        config=study_config_text,
        models=[{"name": n.model, "tables": model_tables(n, claims(n))} for n in of_models],
        figures=[(name, ALT[name], inline_svg(svg, name, ALT[name])) for name, svg in figures.items()],
        gaps=[f"{n.model}: {gap}" for n in of_models for gap in gaps(n)],
        # The files of a cell that a run left undone may be out of date.
        samples=[(c, None if c in missing else _samples(results.joinpath(*c))) for c in listed],
        sample_counts=SAMPLES,
        pairs=pair_samples(results, listed, missing) if paired else [],
        made_by=_made_by(results, listed),
    )
    write_text(out_html, html)


def inline_svg(svg: str, name: str, alt: str) -> Markup:
    """An SVG file's element for use inside HTML: ids made unique, no metadata, named for screen readers."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<title>.*?</title>", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'href="#', f'href="#{name}-', body)
    body = body.replace("url(#", f"url(#{name}-")
    # The page sets the size: the view box keeps the proportions.
    head, rest = body.split(">", 1)
    head = re.sub(r' (?:width|height)="[^"]*"', "", head)
    # Drawn here by matplotlib, which escapes the names it is given: safe to embed as it is.
    return Markup(head + ' role="img" aria-label="{}">').format(alt) + Markup(rest)


def _samples(cell: Path) -> dict[str, list[dict[str, Any]]]:
    """The first completions of each prompt set, the same prompts in every cell."""
    return {name: list(samples(cell, name, count).values()) for name, count in SAMPLES.items()}


def _made_by(results: Path, cells: list[Cell]) -> dict[str, list[str]]:
    """Commits, package versions and what answered, by the provenance of every stage of the listed cells."""
    found: dict[str, set[str]] = {}
    for folder in dict.fromkeys(results / model / compression for model, compression, _ in cells):
        for file in folder.rglob("*provenance.json"):
            if any(part.startswith(".") for part in file.relative_to(results).parts):
                continue  # left by a stage that was killed
            record = read_json(file)
            if isinstance(record, dict):
                versions = {"commit": record.get("commit"), **(record.get("packages") or {})}
                if record.get("stage") == "generate" and isinstance(recipe := record.get("recipe"), dict):
                    versions["answers by"] = recipe.get("backend", "transformers")
                for name, version in versions.items():
                    found.setdefault(name, set()).add(str(version or "unknown"))
    return {name: sorted(found[name]) for name in sorted(found, key=lambda n: (n != "commit", n))}
