"""Which tables one model gets, in the order they are read."""

from collections.abc import Sequence

import pandas as pd

from holdfast.report.claims import Claim
from holdfast.report.numbers import Numbers
from holdfast.report.rendering import Table
from holdfast.report.tables.attacks import attacks_table
from holdfast.report.tables.claims import claims_table
from holdfast.report.tables.leaderboard import leaderboard_table
from holdfast.report.tables.main import main_table
from holdfast.report.tables.mechanism import mechanism_table
from holdfast.report.tables.mediation import mediation_table
from holdfast.report.tables.methods import methods_table
from holdfast.report.tables.modalities import modality_tables
from holdfast.report.tables.pairs import pairs_table
from holdfast.report.tables.repair import repair_table
from holdfast.report.tables.transfer import transfer_table
from holdfast.report.tables.visual import visual_table


def models(frame: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(frame["model"]))


def model_tables(numbers: Numbers, decided: Sequence[Claim]) -> list[Table]:
    """Main, attack, pairs, visual, mechanism, mediation, transfer, modality and repair tables of a model, its searches,
    methods and claims."""
    attacked, paired, transfer = attacks_table(numbers), pairs_table(numbers), transfer_table(numbers)
    visual, searched, methods = visual_table(numbers), leaderboard_table(numbers), methods_table(numbers)
    return [
        main_table(numbers),
        *([attacked] if attacked else []),
        *([paired] if paired else []),
        *([visual] if visual else []),
        mechanism_table(numbers),
        mediation_table(numbers),
        *([transfer] if transfer else []),
        *modality_tables(numbers),
        repair_table(numbers),
        *([searched] if searched else []),
        *([methods] if methods else []),
        claims_table(numbers.model, decided),
    ]
