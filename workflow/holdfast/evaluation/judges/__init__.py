"""Judges of answers: substring lists, published models, one kind of verdict; and whether an answer is coherent."""

from holdfast.evaluation.judges.coherence import degenerate
from holdfast.evaluation.judges.substring import judge_files, substring_judge, substring_lists
from holdfast.evaluation.judges.verdicts import attack_success, verdict

__all__ = [
    "attack_success",
    "degenerate",
    "judge_files",
    "substring_judge",
    "substring_lists",
    "verdict",
]
