"""Which candidate becomes the refusal direction: filters on its scores, and the choice.

Arditi et al. 2024 (arXiv 2406.11717), section 2.3 and appendix C.
"""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from holdfast.errors import HoldfastError

DEEPEST = 0.8  # candidates in the last 20 % of the layers are discarded


def too_deep(layer: int, n_layers: int) -> bool:
    return layer >= int(n_layers * DEEPEST)


def why_dropped(row: Mapping[str, Any], n_layers: int, max_kl: float, min_induce: float) -> str:
    """The first filter a candidate fails, cheapest first; empty when it passes. NaN scores fail."""
    if too_deep(row["layer"], n_layers):
        return "last 20 % of the layers"
    if not row["kl"] <= max_kl:
        return f"kl > {max_kl}"
    if not row["induce"] >= min_induce:
        return f"induce < {min_induce}"
    return "bypass is NaN" if math.isnan(row["bypass"]) else ""


def choose(scores: pd.DataFrame, n_layers: int, max_kl: float = 0.1, min_induce: float = 0.0) -> pd.Series:
    """The candidate with the lowest bypass score among those that pass the filters; of equals, the first.

    Args:
        scores: columns position, layer, bypass, induce, kl, one row a candidate.

    Raises HoldfastError when a column is missing, and when every candidate is filtered out.
    """
    if missing := {"position", "layer", "bypass", "induce", "kl"} - set(scores):
        what = f"lack the columns {', '.join(sorted(missing))}"
        raise HoldfastError(what, "selection scores", "give a table with one row a candidate")
    scores = scores.reset_index(drop=True)
    dropped = scores.apply(lambda row: why_dropped(row, n_layers, max_kl, min_induce), axis=1)
    passing = scores[dropped == ""]
    if passing.empty:
        raise HoldfastError(
            "no candidate passes the filters", "direction", "no single direction mediates refusal here"
        )
    return passing.loc[passing["bypass"].idxmin()]


def best_failing(scores: pd.DataFrame, n_layers: int, min_induce: float = 0.0) -> pd.Series:
    """Of candidates that all failed, the one with the lowest KL that induces refusal enough, else the lowest KL.

    That is the candidate that would be let in first if the bound on KL were raised. Only layers that a direction may
    come from; of equals, the first. Columns as in :func:`choose`.

    Raises HoldfastError when there is none whose KL is known.
    """
    shallow = scores[[not too_deep(layer, n_layers) for layer in scores["layer"]]].dropna(subset=["kl"])
    if shallow.empty:
        raise nothing_measured()
    inducing = shallow[shallow["induce"] >= min_induce]
    pool = inducing if len(inducing) else shallow
    return pool.loc[pool["kl"].idxmin()]


def nothing_measured() -> HoldfastError:
    remedy = "name layers of the first 80 %, or use another dtype"
    return HoldfastError("no candidate has a KL divergence", "direction", remedy)
