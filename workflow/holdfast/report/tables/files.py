"""The tables on disk: refusal.csv and costs.csv (tidy), refusal.md, refusal.tex, claims.csv and leaderboard.csv."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from holdfast.errors import HoldfastError
from holdfast.evaluation.judges.agreement import human_agreement
from holdfast.files import atomic_file, write_text
from holdfast.report.claims import claims
from holdfast.report.collect import COLUMNS, typed
from holdfast.report.numbers import Numbers
from holdfast.report.rendering import latex, markdown
from holdfast.report.tables.leaderboard import leaderboard
from holdfast.report.tables.of_model import model_tables, models

# Wall times: apart from what was measured, so that the same study gives the same refusal.csv, byte for byte.
COSTS = ("direction_seconds", "method_seconds")


def write_tables(frame: pd.DataFrame, out_dir: Path, judges: Sequence[str]) -> None:
    """Write ``refusal.csv`` and ``costs.csv`` (tidy), ``refusal.md``, ``refusal.tex`` (booktabs), ``claims.csv`` and
    ``leaderboard.csv``.

    ``judges``: the study's, whose error against human labels closes the Markdown.
    """
    of_models = [Numbers(frame, m) for m in models(frame)]
    decided = [claims(numbers) for numbers in of_models]
    tables = [t for it in zip(of_models, decided, strict=True) for t in model_tables(*it)]
    # Numbers in full, so that they read back the same.
    costs = frame["measure"].isin(COSTS)
    for name, rows in (("refusal.csv", frame[~costs]), ("costs.csv", frame[costs])):
        with atomic_file(out_dir / name) as temporary:
            rows.to_csv(temporary, index=False)
    rows_of_claims = [
        {"model": numbers.model} | asdict(c)
        for numbers, of_model in zip(of_models, decided, strict=True)
        for c in of_model
    ]
    with atomic_file(out_dir / "claims.csv") as temporary:
        pd.DataFrame(rows_of_claims).rename(columns={"name": "claim"}).to_csv(temporary, index=False)
    boards = [leaderboard(numbers) for numbers in of_models]
    with atomic_file(out_dir / "leaderboard.csv") as temporary:
        pd.concat(boards, ignore_index=True).to_csv(temporary, index=False)
    errors = "; ".join(map(human_agreement, judges))
    write_text(out_dir / "refusal.md", "\n".join([*map(markdown, tables), f"Judges: {errors}.", ""]))
    head = "% Needs \\usepackage[T1]{fontenc}, booktabs and graphicx.\n"
    write_text(out_dir / "refusal.tex", head + "\n".join(latex(t) for t in tables))


def read_tables(folder: Path) -> pd.DataFrame:
    """Read ``refusal.csv`` and ``costs.csv`` back: the rows that ``collect`` returned, those of costs last.

    Raises:
        HoldfastError: no such file, or other columns.
    """
    return typed(pd.concat([_read(folder / "refusal.csv"), _read(folder / "costs.csv")], ignore_index=True))


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise HoldfastError("no such file", str(path), "run `holdfast tables` first")
    # Only empty fields are missing: a model may be called "NA" or "null".
    frame = pd.read_csv(path, keep_default_na=False, na_values={c: [""] for c in COLUMNS[4:]}, dtype=str)
    if list(frame.columns) != COLUMNS:
        raise HoldfastError(f"columns are {list(frame.columns)}", str(path), f"they must be {COLUMNS}")
    return frame
