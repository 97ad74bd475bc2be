"""Methods compared, as figures: learning curves, accuracy against cost, reliability of scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from matplotlib.ticker import MaxNLocator

from rerank_core.evaluation.pictures import clear_axes, drawable, new_figure

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from rerank_core.evaluation.calibration import ReliabilityBin
    from rerank_core.evaluation.pictures import PictureStyle
    from rerank_core.evaluation.significance import Interval

COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8f98")
"""Told apart with every kind of colour vision (Okabe and Ito 2008), on light and on dark paper."""

MARKERS: Final = ("o", "s", "^", "D", "v")
HEIGHT: Final = 380
LETTER_WIDTH: Final = 7
"""CSS pixels of a letter in the legend, on average and with some to spare."""

MARKER_WIDTH: Final = 45
"""CSS pixels of the legend around a name: its marker, and the space beside both."""


@dataclass(frozen=True, slots=True)
class LearningCurve:
    """A held-out metric while one model was trained: `values[i]` after `steps[i]`."""

    method: str
    seed: int
    steps: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class MethodCost:
    """What a method cost, above 0, and the accuracy that it bought."""

    method: str
    cost: float
    accuracy: Interval


def draw_learning_curves(
    curves: Sequence[LearningCurve], style: PictureStyle, *, step_label: str, metric_label: str
) -> Figure:
    """Draw a line per curve; the seeds of one method share its colour and its line in the legend."""
    axes, figure = _axes(style, x_label=step_label, y_label=metric_label)
    looks = _looks(curve.method for curve in curves)
    named = set()
    for curve in curves:
        label = drawable(curve.method) if curve.method not in named else "_nolegend_"
        named.add(curve.method)
        axes.plot(
            curve.steps, curve.values, label=label, linewidth=1.4, markersize=3.5, **looks[curve.method]
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(figure, style)
    return figure


def draw_accuracy_against_cost(
    costs: Sequence[MethodCost], style: PictureStyle, *, cost_label: str, accuracy_label: str
) -> Figure:
    """Draw a point per method with the interval of its accuracy, over a logarithmic scale of cost."""
    axes, figure = _axes(style, x_label=cost_label, y_label=accuracy_label)
    axes.set_xscale("log")
    axes.tick_params(which="minor", length=0)
    looks = _looks(found.method for found in costs)
    for found in costs:
        bounds = [found.accuracy.low, found.accuracy.high]
        look = looks[found.method]
        axes.plot([found.cost] * 2, bounds, color=look["color"], linewidth=1.6, solid_capstyle="round")
        axes.plot(
            [found.cost],
            [found.accuracy.mean],
            label=drawable(found.method),
            linestyle="none",
            markersize=8,
            **look,
        )
    axes.margins(x=0.15)
    _legend(figure, style)
    return figure


def draw_reliability(bins_by_method: Mapping[str, Sequence[ReliabilityBin]], style: PictureStyle) -> Figure:
    """Draw what was promised against what came, a point per bin; on the diagonal promises are kept."""
    axes, figure = _axes(style, x_label="promised (mean probability)", y_label="came (mean target)")
    axes.plot([0, 1], [0, 1], color=style.palette.faint, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0.5)
    for method, look in _looks(bins_by_method).items():
        promised = [found.mean_probability for found in bins_by_method[method]]
        came = [found.mean_target for found in bins_by_method[method]]
        axes.plot(promised, came, label=drawable(method), linewidth=1.4, markersize=5, **look)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_aspect("equal")
    _legend(figure, style)
    return figure


def _axes(style: PictureStyle, *, x_label: str, y_label: str) -> tuple[Axes, Figure]:
    figure = new_figure(style, height=HEIGHT)
    axes = figure.subplots()
    clear_axes(axes, style.palette)
    axes.grid(color=style.palette.rule, linewidth=0.7)
    axes.set_axisbelow(True)
    text: dict[str, Any] = {"fontsize": 9, "color": style.palette.ink, "parse_math": False}
    axes.set_xlabel(drawable(x_label), **text)
    axes.set_ylabel(drawable(y_label), **text)
    return axes, figure


def _legend(figure: Figure, style: PictureStyle) -> None:
    """Name what was drawn, above the axes, where nothing is drawn that it could hide."""
    names = [str(line.get_label()) for line in figure.axes[0].get_lines()]
    longest = MARKER_WIDTH + LETTER_WIDTH * max(
        (len(name) for name in names if not name.startswith("_")), default=0
    )
    legend = figure.legend(
        loc="outside upper center",
        ncols=max(style.width // longest, 1),
        frameon=False,
        fontsize=8,
        labelcolor=style.palette.ink,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _looks(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return each method's colour and marker, in the order in which methods first come."""
    return {
        method: {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
        for number, method in enumerate(dict.fromkeys(methods))
    }
