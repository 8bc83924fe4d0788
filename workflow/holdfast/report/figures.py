"""The figures of a study as SVG, one panel (row of panels) per model.

Colours are Okabe and Ito's, which colour-blind readers can tell apart, and never the only sign: markers
differ too. The same table gives the same bytes: no date, fixed ids.
"""

import io
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from holdfast.config.cells import AS_IS, DENSE
from holdfast.files import write_text
from holdfast.report.measures.mediation import of_the_dense
from holdfast.report.numbers import Numbers
from holdfast.report.repairs import SIGNIFICANT
from holdfast.statistics import Rate

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
MARKERS = ["o", "s", "D", "^", "v", "P", "X"]
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "holdfast",
    "svg.fonttype": "none",  # text stays text: searchable, readable aloud, in the reader's own font
    "text.parse_math": False,  # a name with two dollar signs is not a formula
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.facecolor": "white",
}
WIDTH = 9.0  # inches
ROW = 0.25  # inches a mark
DIAMOND: dict[str, Any] = {"color": "#D55E00", "markeredgecolor": "white", "markersize": 9}

ALT = {
    "asr": "Attack success rate with 95 % intervals for every compression and method.",
    "frontier": "Attack success rate against over-refusal and zero-shot accuracy; arrows lead from as-is to the edits.",
    "mediation": "Refusal of harmful prompts with the direction ablated, and of harmless ones with it added.",
    "cosine": "Cosine of each compressed model's refusal direction with the dense model's, beside chance.",
    "layers": "Cosine of the compressed and the dense model's differences of means at every layer, with three nulls.",
}


def write_figures(frame: pd.DataFrame, out_dir: Path) -> None:
    """Write ``asr.svg``, ``frontier.svg``, ``mediation.svg``, ``cosine.svg`` and ``layers.svg`` into ``out_dir``."""
    for name, svg in render_figures(frame).items():
        write_text(out_dir / f"{name}.svg", svg)


def render_figures(frame: pd.DataFrame) -> dict[str, str]:
    """The SVG text of every figure by name; the names are those of ``ALT``."""
    numbers = [Numbers(frame, m) for m in dict.fromkeys(frame["model"])]
    drawn: dict[str, Callable[[list[Numbers]], Figure]] = {
        "asr": asr,
        "frontier": frontier,
        "mediation": mediation,
        "cosine": cosine,
        "layers": layers,
    }
    with mpl.rc_context(STYLE):
        return {name: _svg(draw(numbers), ALT[name]) for name, draw in drawn.items()}


def asr(models: list[Numbers]) -> Figure:
    figure, panels = _panels([len(m.cells) + len(m.compressions) for m in models])
    for axes, numbers in zip(panels, models, strict=True):
        methods = list(dict.fromkeys(k for _, k in numbers.cells))
        groups = {
            c: [(k, numbers.get(c, k, "attack_success_rate")) for k in methods if (c, k) in numbers.cells]
            for c in numbers.compressions
        }
        _intervals(axes, groups, methods)
        axes.set_title(f"{numbers.model}: attack success rate by compression and method")
        axes.set_xlabel(_percent_label("attack prompts not refused", groups))
    return figure


def frontier(models: list[Numbers]) -> Figure:
    panels = [(numbers, price) for numbers in models for price in PRICES if _known(numbers, price)]
    figure, drawn = _panels([14] * len(panels))
    for axes, (numbers, price) in zip(drawn, panels, strict=True):
        what, better, rate = PRICES[price]
        prices = [rate(numbers, c, k) for c, k in numbers.cells]
        answered = [numbers.get(c, k, "attack_success_rate") for c, k in numbers.cells]
        for index, compression in enumerate(numbers.compressions):
            points = {
                k: (100 * rate(numbers, c, k).value, 100 * numbers.get(c, k, "attack_success_rate").value)
                for c, k in numbers.cells
                if c == compression
            }
            _arrows(axes, numbers, compression, points, index)
        axes.plot([], [], "-", color="#444444", linewidth=2.0, label="as-is → AIRD")
        axes.plot([], [], "--", color="#444444", alpha=0.45, label="as-is → control")
        if {k for _, k in numbers.methods()} - numbers.edit_methods - numbers.control_methods:
            axes.plot([], [], "-", color="#444444", alpha=0.45, label="as-is → another method")
        axes.set_title(f"{numbers.model}: refusal against {price} ({better} is better)")
        axes.set_xlabel(f"{what} (%){_n(prices)}")
        axes.set_ylabel(f"attack prompts not refused (%){_n(answered)}")
        if price == "over-refusal":
            axes.set_xlim(left=-2)
        axes.set_ylim(-4, 104)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


# What refusal may be bought with: the axis, which corner is better, how it is read.
PRICES: dict[str, tuple[str, str, Callable[[Numbers, str, str], Rate]]] = {
    "over-refusal": (
        "harmless prompts refused",
        "lower left",
        lambda numbers, c, k: numbers.get(c, k, "over_refusal"),
    ),
    "zero-shot ability": (
        "mean zero-shot accuracy",
        "lower right",
        lambda numbers, c, k: numbers.zero_shot(c, k)._replace(n=0),  # its n counts tasks
    ),
}


def _known(numbers: Numbers, price: str) -> bool:
    values = [PRICES[price][2](numbers, c, k).value for c, k in numbers.cells]
    return price == "over-refusal" or not all(map(math.isnan, values))


def _arrows(
    axes: Axes, numbers: Numbers, compression: str, points: dict[str, tuple[float, float]], index: int
) -> None:
    """From a compression's as-is cell to each of its methods."""
    colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
    start = points.get(AS_IS, (math.nan, math.nan))
    axes.plot(*start, marker, color=colour, markersize=9, label=compression, linestyle="none")
    for method, end in points.items():
        if method == AS_IS or any(map(math.isnan, (*start, *end))):
            continue
        control = method in numbers.control_methods
        style: dict[str, Any] = {"linewidth": 2.0}
        if control or method not in numbers.edit_methods:
            style = {"alpha": 0.45, "linestyle": "--" if control else "-"}
        axes.annotate(
            "",
            end,
            start,
            arrowprops={"arrowstyle": "-|>", "color": colour, "shrinkA": 5, "shrinkB": 0, **style},
        )
        # An arrow's end does not stretch the axes: the point beneath it does.
        axes.plot(*end, marker, color=colour, markersize=4, alpha=0.45 if control else 1.0)


def mediation(models: list[Numbers]) -> Figure:
    sides = [
        (
            "harmful",
            {
                "baseline": "baseline",
                "ablate": "own direction ablated",
                "ablate-dense": "the dense model's",
                "ablate-random": "random ablated",
            },
        ),
        (
            "harmless",
            {
                "baseline": "baseline",
                "add": "own direction added",
                "add-dense": "the dense model's",
                "add-random": "random added",
                "add-dense-random": "random as the dense",
            },
        ),
    ]
    figure, panels = _panels([len(names) * len(m.compressions) for m in models for _, names in sides])
    for index, axes in enumerate(panels):
        numbers, (prompts, names) = models[index // 2], sides[index % 2]
        groups = {
            c: [
                (name, numbers.get(c, AS_IS, f"refusal_{prompts}[{i}]"))
                for i, name in names.items()
                if not (c == DENSE and of_the_dense(i))
            ]
            for c in numbers.compressions
        }
        _intervals(axes, groups, list(names.values()))
        axes.set_title(f"{numbers.model}: refusal of {prompts} prompts under interventions")
        axes.set_xlabel(_percent_label(f"{prompts} prompts refused", groups))
    return figure


def cosine(models: list[Numbers]) -> Figure:
    figure, panels = _panels([max(4, 1.4 * len(m.compressed())) for m in models])
    for axes, numbers in zip(panels, models, strict=True):
        names = numbers.compressed()
        bands = [
            ("cosine_null_split_half", "split halves of the prompts, same model", "#56B4E9", 0.32),
            ("cosine_null_random", "random directions (chance)", "#BBBBBB", 0.2),
        ]
        for measure, label, colour, height in bands:
            known = [(i, numbers.get(c, AS_IS, measure)) for i, c in enumerate(names)]
            known = [(i, r) for i, r in known if not math.isnan(r.low)]
            axes.barh(
                [i for i, _ in known],
                [r.high - r.low for _, r in known],
                left=[r.low for _, r in known],
                height=2 * height,
                color=colour,
                label=f"{label}, 95 % band",
            )
        # Values stand in a column beside the panel, where no mark or band can hide them.
        beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center"}
        values = [numbers.get(c, AS_IS, "cosine_to_dense").value for c in names]
        for place, value in enumerate(values):
            axes.text(1.01, place, "missing" if math.isnan(value) else f"{value:.3f}", **beside)
        spans = [numbers.get(c, AS_IS, "cosine_to_dense") for c in names]
        axes.hlines(
            range(len(names)), [r.low for r in spans], [r.high for r in spans], color="black", linewidth=1
        )
        axes.plot(values, range(len(names)), "D", label="compressed against dense, 95 % interval", **DIAMOND)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.7)
        axes.set_xlim(min([-0.1, *axes.get_xlim()]) - 0.05, 1.04)
        axes.set_title(f"{numbers.model}: has the refusal direction turned?")
        axes.set_xlabel("cosine with the dense model's refusal direction (1 = the same)")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=1)
    return figure


def layers(models: list[Numbers]) -> Figure:
    """One panel a compression."""
    shown = [(numbers, c) for numbers in models for c in numbers.compressed()]
    figure, panels = _panels([6] * len(shown))
    bands = [
        ("split_half", "split halves of the prompts, same model", "#56B4E9"),
        ("shuffled", "shuffled labels", "#E69F00"),
        ("random", "random directions (chance)", "#BBBBBB"),
    ]
    for axes, (numbers, compression) in zip(panels, shown, strict=True):
        known = numbers.layers(compression)

        def at(measure: str, of: Numbers = numbers, name: str = compression) -> list[Rate]:
            return [of.get(name, AS_IS, f"{measure}[{layer}]") for layer in of.layers(name)]

        for null, label, colour in bands:
            rates = at(f"cosine_at_layer_null_{null}")
            low, high = [r.low for r in rates], [r.high for r in rates]
            axes.fill_between(
                known, low, high, color=colour, alpha=0.6, linewidth=0, label=f"{label}, 95 % band"
            )
        rates = at("cosine_at_layer")
        axes.vlines(known, [r.low for r in rates], [r.high for r in rates], color="black", linewidth=1)
        values = [r.value for r in rates]
        axes.plot(
            known, values, "o", color="black", markersize=4, label="compressed against dense, 95 % interval"
        )
        turned = [p.value < SIGNIFICANT for p in at("cosine_at_layer_p")]
        axes.plot(
            [layer for layer, is_so in zip(known, turned, strict=True) if is_so],
            [value for value, is_so in zip(values, turned, strict=True) if is_so],
            "D",
            label=f"below split halves, Holm-corrected p < {SIGNIFICANT}",
            **{**DIAMOND, "markersize": 6},
        )
        source = numbers.get(DENSE, AS_IS, "source_layer").value
        if known and not math.isnan(source):
            axes.axvline(source, color="#444444", linestyle=":", label="the dense direction's layer")
        if not known:
            axes.text(0.5, 0.5, "missing", transform=axes.transAxes, ha="center", style="italic")
        axes.set_ylim(min([-0.1, *(r.low for r in rates)]) - 0.05, 1.05)
        axes.set_title(f"{numbers.model}, {compression}: the direction at every layer")
        axes.set_xlabel(f"layer, at the dense direction's position{_n(rates)}")
        axes.set_ylabel("cosine with dense")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if panels:
        marks = next((axes for axes in panels if axes.lines), panels[0]).get_legend_handles_labels()
        panels[-1].legend(*marks, loc="upper center", bbox_to_anchor=(0.5, -0.3), ncols=2, fontsize=9)
    return figure


def _panels(rows: Sequence[float]) -> tuple[Figure, list[Axes]]:
    """One panel beneath another, each as high as its number of marks asks for."""
    heights = [1.6 + ROW * r for r in rows]
    figure = Figure(figsize=(WIDTH, sum(heights) or 1), layout="constrained")
    if not heights:
        return figure, []
    grid = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)
    return figure, list(grid[:, 0])


def _intervals(axes: Axes, groups: dict[str, list[tuple[str, Rate]]], series: list[str]) -> None:
    """Points with intervals, grouped by the names on the vertical axis, one mark a series."""
    place, middles, labelled = 0.0, [], set()
    for marks in groups.values():
        middles.append(place + (len(marks) - 1) / 2)
        for name, rate in marks:
            index = series.index(name)
            colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
            if math.isnan(rate.value):
                axes.text(
                    0, place, f"{name}: missing", va="center", color="#555555", style="italic", fontsize=9
                )
            else:
                # Wilson's bounds can miss the estimate by a rounding error, which errorbar refuses.
                reach = [[max(0, 100 * (rate.value - rate.low))], [max(0, 100 * (rate.high - rate.value))]]
                label = None if name in labelled else name
                axes.errorbar(
                    100 * rate.value,
                    place,
                    xerr=reach,
                    fmt=marker,
                    color=colour,
                    label=label,
                    capsize=3,
                    markersize=7,
                )
                labelled.add(name)
            place += 1
        place += 1
    axes.set_yticks(middles, list(groups))
    axes.set_xlim(-3, 103)
    axes.set_ylim(place - 1, -1)
    axes.grid(visible=False, axis="y")
    if labelled:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1))


def _percent_label(what: str, groups: dict[str, list[tuple[str, Rate]]]) -> str:
    return f"{what} (%), 95 % interval{_n(rate for marks in groups.values() for _, rate in marks)}"


def _n(rates: Iterable[Rate]) -> str:
    counts = {r.n for r in rates if r.n}
    if not counts:
        return ""
    return f", n = {min(counts)}" + (f" to {max(counts)}" if len(counts) > 1 else "")


def _svg(figure: Figure, title: str) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": "Holdfast", "Title": title})
    return text.getvalue()
