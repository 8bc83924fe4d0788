"""The measures of one model, looked up by compression, method and name."""

import math

import pandas as pd

from holdfast.config.cells import AS_IS, DENSE
from holdfast.report.measures.reading import NOTHING
from holdfast.statistics import Rate


class Numbers:
    """The measures of one model, looked up by compression, method and name."""

    def __init__(self, frame: pd.DataFrame, model: str) -> None:
        rows = frame[frame["model"] == model]
        self.model = model
        self.cells = list(dict.fromkeys(zip(rows["compression"], rows["method"], strict=True)))
        self.compressions = list(dict.fromkeys(rows["compression"]))
        self.measures = list(dict.fromkeys(rows["measure"]))
        self._rates = {
            (r.compression, r.method, r.measure): Rate(
                r.value, 0 if pd.isna(r.n) else int(r.n), r.low, r.high
            )
            for r in rows.itertuples()
        }
        # Of cells that a run left undone, the stages that failed.
        self.missing: dict[tuple[str, str], list[str]] = {}
        for c, k, measure in self._rates:
            if measure.startswith("missing["):
                self.missing.setdefault((c, k), []).append(measure[len("missing[") : -1])
        self.edit_methods = {k for _, k, measure in self._rates if measure == "edit_random"}
        # A method has one recipe: what one compression's record says of it holds for missing cells too.
        self.control_methods = {
            k
            for c, k in self.cells
            if 1 in [self.get(c, k, m).value for m in ("edit_random", "steering_random", "learning_control")]
        }

    def get(self, compression: str, method: str, measure: str) -> Rate:
        """The measured value; NaN when it is missing or was never asked for."""
        return self._rates.get((compression, method, measure), NOTHING)

    def measures_of(self, name: str) -> list[str]:
        """The measures ``NAME[…]``, in the table's order."""
        return [m for m in self.measures if m.startswith(f"{name}[")]

    def repairs(self) -> list[tuple[str, str]]:
        """(compression, method) of every AIRD edit that is not a random control."""
        return [(c, k) for c, k in self.cells if k in self.edit_methods - self.control_methods]

    def unedited(self, compression: str, method: str) -> bool:
        """Whether a search left the weights as they were."""
        return self.get(compression, method, "edit_alpha").value == 0

    def methods(self) -> list[tuple[str, str]]:
        """(compression, method) of everything that is done to a compressed model, controls included."""
        return [(c, k) for c, k in self.cells if k != AS_IS]

    def controls(self, compression: str, method: str) -> list[str]:
        """The methods that are the control of this one."""
        named = {m for c, k, m in self._rates if k == method}
        return [k for c, k in self.cells if c == compression and f"mcnemar_p[{k}]" in named]

    def missing_controls(self, compression: str, method: str, measure: str) -> list[str]:
        """Of the controls that the study has for an edit, those without a record or a value of ``measure`` here.

        An edit of which no compression has a record may be a control, and is counted as one.
        """
        known, unknown = self.controls(compression, method), self._unrecorded() - {method}
        return [
            k
            for c, k in self.cells
            if c == compression and (k in unknown or (k in known and not self._usable(c, k, measure)))
        ]

    def _usable(self, compression: str, control: str, measure: str) -> bool:
        recorded = not math.isnan(self.get(compression, control, "edit_random").value)
        return recorded and self.get(compression, control, measure).n > 0

    def _unrecorded(self) -> set[str]:
        told = {k for c, k in self.cells if self.get(c, k, "edit_random").value in (0, 1)}
        return self.edit_methods - told

    def compressed(self) -> list[str]:
        return [c for c in self.compressions if c != DENSE]

    def layers(self, compression: str) -> list[int]:
        """Those at which it was compared with the dense model."""
        prefix = "cosine_at_layer["
        return [
            int(m[len(prefix) : -1]) for c, _, m in self._rates if c == compression and m.startswith(prefix)
        ]

    def tasks(self) -> list[str]:
        return [m[len("zero_shot[") : -1] for m in self.measures_of("zero_shot")]

    def zero_shot(self, compression: str, method: str) -> Rate:
        """Unweighted mean over tasks, with the interval of a mean of independent estimates; n = tasks."""
        scores = [self.get(compression, method, f"zero_shot[{t}]") for t in self.tasks()]
        if not scores:
            return NOTHING
        value = sum(s.value for s in scores) / len(scores)
        half = math.sqrt(sum(((s.high - s.low) / 2) ** 2 for s in scores)) / len(scores)
        return Rate(value, len(scores), value - half, value + half)
