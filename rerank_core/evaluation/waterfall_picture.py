"""A waterfall as a figure: a bar per step, on a scale of logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from rerank_core.evaluation.colours import mix
from rerank_core.evaluation.findings import signed
from rerank_core.evaluation.pictures import clear_axes, drawable, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from rerank_core.evaluation.pictures import PictureStyle
    from rerank_core.evaluation.waterfall import Step, Waterfall

ROW: Final = 27.0  # pixels from one bar to the next
MAX_LETTERS: Final = 34  # of a label


def draw_waterfall(waterfall: Waterfall, style: PictureStyle, *, title: str) -> Figure:
    """Draw the start, a bar per step from where the one before ended, and the total, each with its number.

    Bars that lower the total are hatched as well as coloured, so that the sign shows without colours.
    """
    num_rows = len(waterfall.steps) + 2
    figure = new_figure(style, height=num_rows * ROW + 90)
    axes = figure.subplots()
    _prepare(axes, waterfall, style, title=title)
    _mark(axes, 0, waterfall.start, style=style)
    for y, step in enumerate(waterfall.steps, start=1):
        _draw_step(axes, y, step, style=style)
    _mark(axes, num_rows - 1, waterfall.total, style=style)
    return figure


def _prepare(axes: Axes, waterfall: Waterfall, style: PictureStyle, *, title: str) -> None:
    palette = style.palette
    clear_axes(axes, palette)
    axes.grid(axis="x", color=palette.rule, linewidth=0.7)
    axes.set_axisbelow(True)
    labels = [waterfall.start_label, *(step.label for step in waterfall.steps), waterfall.total_label]
    axes.set_yticks(range(len(labels)), [_cut(label) for label in labels], color=palette.ink)
    for text in axes.get_yticklabels():
        text.set_parse_math(False)
    for text in (axes.get_yticklabels()[0], axes.get_yticklabels()[-1]):
        text.set_fontweight("bold")
    low, high = waterfall.span
    axes.set_xlim(low - 0.04 * (high - low), high + 0.14 * (high - low))  # room for the numbers on the right
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlabel("logits", fontsize=8, color=palette.faint)
    heading: dict[str, Any] = {"fontsize": 9.5, "fontweight": "bold", "color": palette.ink, "pad": 10}
    axes.set_title(drawable(title), loc="left", parse_math=False, **heading)


def _cut(label: str) -> str:
    return drawable(label if len(label) <= MAX_LETTERS else f"{label[: MAX_LETTERS - 1]}…")


def _mark(axes: Axes, y: int, place: float, *, style: PictureStyle) -> None:
    palette = style.palette
    axes.plot([place], [y], "D", color=palette.ink, markersize=7, markeredgecolor=palette.paper, zorder=3)
    _number(axes, y, place, text=signed(place), style=style)


def _draw_step(axes: Axes, y: int, step: Step, *, style: PictureStyle) -> None:
    palette = style.palette
    colour = palette.raises if step.value > 0 else palette.lowers
    axes.barh(
        y,
        step.value,
        left=step.start,
        height=0.66,
        color=colour if step.kind == "word" else mix(palette.paper, colour, 0.7),
        hatch=None if step.value > 0 else "/////",
        edgecolor=palette.paper,  # of the hatching
        linewidth=0,
    )
    for place, ends in ((step.start, (y - 1, y)), (step.end, (y, y + 1))):
        axes.plot([place] * 2, ends, color=palette.faint, linewidth=0.8, zorder=0.8)
    _number(axes, y, max(step.start, step.end), text=signed(step.value), style=style)


def _number(axes: Axes, y: int, place: float, *, text: str, style: PictureStyle) -> None:
    box = {"facecolor": style.palette.paper, "edgecolor": "none", "pad": 0.8}  # lines stop before the number
    axes.annotate(
        text,
        (place, y),
        xytext=(7, 0),
        textcoords="offset points",
        va="center_baseline",
        fontsize=8,
        color=style.palette.ink,
        bbox=box,
    )
