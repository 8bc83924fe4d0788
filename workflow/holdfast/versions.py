"""The version of each stage's method.

Raise a stage's number when what it computes changes (another formula, another choice rule, a
repaired fault that alters results): the number stands in the stage's recipe, so its results and
all that follow from them become stale, deliberately. Refactoring, speed and messages keep it.
"""

STAGE_VERSIONS: dict[str, int] = {
    "prompts": 1,
    "text": 1,
    "disjoint": 1,
    "pairs": 2,
    "download": 1,
    "fetch": 1,
    "compress": 3,
    "activations": 1,
    "direction": 5,
    "compare": 5,
    "transfer": 2,
    "mediate": 3,
    "image-use": 3,
    "draw": 1,
    "modalities": 1,
    "edit": 5,
    "instruct": 1,
    "steer": 3,
    "recalibrate": 1,
    "tune": 1,
    "generate": 1,
    "judge": 1,
    "judge-by-model": 2,
    "visual": 1,
    "score": 1,
    "agreement": 1,
    "ability": 1,
    "tables": 16,
    "figures": 4,
    "report": 16,
}
