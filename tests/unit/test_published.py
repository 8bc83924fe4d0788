"""The choice rule on the selection scores published with the reference implementation."""

import json
from pathlib import Path

import pandas as pd
import pytest
from holdfast.refusal.direction import choose

RUNS = Path(__file__).parents[3] / "shared/data/refusal_direction/runs"


@pytest.mark.parametrize(
    ("model", "layers"), [("gemma-2b-it", 18), ("qwen-1_8b-chat", 24), ("meta-llama-3-8b-instruct", 32)]
)
def test_published_choice(model: str, layers: int) -> None:
    folder = RUNS / model
    if not folder.is_dir():
        pytest.skip("the published scores lie in ../shared, which is not here")
    rows = json.loads((folder / "select_direction/direction_evaluations.json").read_text())
    scores = pd.DataFrame(rows).rename(
        columns={"refusal_score": "bypass", "steering_score": "induce", "kl_div_score": "kl"}
    )
    published = json.loads((folder / "direction_metadata.json").read_text())
    chosen = choose(scores, layers)
    assert (chosen["position"], chosen["layer"]) == (published["pos"], published["layer"])
