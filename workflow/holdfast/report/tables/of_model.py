"""Which tables one model gets, in the order they are read."""

import pandas as pd

from holdfast.report.numbers import Numbers
from holdfast.report.rendering import Table
from holdfast.report.tables.claims import claims_table
from holdfast.report.tables.main import main_table
from holdfast.report.tables.mechanism import mechanism_table
from holdfast.report.tables.methods import methods_table
from holdfast.report.tables.repair import repair_table


def models(frame: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(frame["model"]))


def model_tables(frame: pd.DataFrame, model: str) -> list[Table]:
    """Main, mechanism and repair table of one model, its methods side by side, and the claims its numbers decide."""
    numbers = Numbers(frame, model)
    methods = methods_table(numbers)
    return [
        main_table(numbers),
        mechanism_table(numbers),
        repair_table(numbers),
        *([methods] if methods else []),
        claims_table(numbers),
    ]
