"""Figures of methods, looked at through what matplotlib says that it draws."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from rerank_core.evaluation.calibration import ReliabilityBin
from rerank_core.evaluation.method_pictures import (
    LearningCurve,
    MethodCost,
    draw_accuracy_against_cost,
    draw_learning_curves,
    draw_reliability,
)
from rerank_core.evaluation.pictures import PictureStyle, png_of
from rerank_core.evaluation.significance import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

STYLE = PictureStyle()

CURVES = [
    LearningCurve(method, seed, (0, 10, 20), (0.5, 0.6 + seed / 10, 0.8))
    for method in ("sft", "dpo")
    for seed in (0, 1)
]
COSTS = [MethodCost("sft", 10.0, Interval(0.7, 0.6, 0.8)), MethodCost("ppo", 400.0, Interval(0.8, 0.7, 0.9))]
BINS = {
    "sft": [ReliabilityBin(0.2, 0.3, 5), ReliabilityBin(0.7, 0.5, 5)],
    "raw": [ReliabilityBin(0.9, 0.4, 9)],
}


def points(line: Line2D) -> tuple[list[float], list[float]]:
    return np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist()


def legend(figure: Figure) -> list[str]:
    (found,) = figure.legends
    return [text.get_text() for text in found.get_texts()]


def labels(figure: Figure) -> tuple[str, str]:
    return figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()


def test_every_curve_has_its_line_and_every_method_its_colour() -> None:
    figure = draw_learning_curves(CURVES, STYLE, step_label="step", metric_label="ndcg@5 (dev)")
    lines = figure.axes[0].get_lines()
    assert [points(line) for line in lines] == [([0, 10, 20], list(curve.values)) for curve in CURVES]
    first, second, third, fourth = (line.get_color() for line in lines)
    assert first == second != third == fourth
    assert legend(figure) == ["sft", "dpo"]
    assert labels(figure) == ("step", "ndcg@5 (dev)")


def test_each_methods_accuracy_stands_over_its_cost_with_its_interval() -> None:
    figure = draw_accuracy_against_cost(
        COSTS, STYLE, cost_label="CPU seconds", accuracy_label="pairwise accuracy"
    )
    axes = figure.axes[0]
    drawn = [points(line) for line in axes.get_lines()]
    assert drawn == [
        ([10.0, 10.0], [0.6, 0.8]),
        ([10.0], [0.7]),
        ([400.0, 400.0], [0.7, 0.9]),
        ([400.0], [0.8]),
    ]
    assert axes.get_xscale() == "log"
    assert legend(figure) == ["sft", "ppo"]
    assert labels(figure) == ("CPU seconds", "pairwise accuracy")


def test_promises_are_drawn_against_what_came_beside_the_diagonal() -> None:
    figure = draw_reliability(BINS, STYLE)
    drawn = [points(line) for line in figure.axes[0].get_lines()]
    assert drawn == [([0, 1], [0, 1]), ([0.2, 0.7], [0.3, 0.5]), ([0.9], [0.4])]
    assert legend(figure) == ["sft", "raw"]
    assert labels(figure) == ("promised (mean probability)", "came (mean target)")


@pytest.mark.parametrize("width", [330, 1000])
@pytest.mark.parametrize("model", ["minilm", "ms-marco-MiniLM-L-6-v2", "Qwen3-Embedding-0.6B"])
def test_the_names_of_methods_are_whole_and_hide_nothing_that_is_drawn(model: str, width: int) -> None:
    methods = [f"{model} {method}" for method in ("sft", "rm", "dpo", "ppo", "untrained")]
    costs = [MethodCost(method, 10.0, Interval(0.7, 0.6, 0.8)) for method in methods]
    figure = draw_accuracy_against_cost(
        costs, PictureStyle(width=width), cost_label="CPU seconds", accuracy_label="pairwise accuracy"
    )
    png_of(figure)
    (names,), (axes,) = figure.legends, figure.axes
    box = names.get_window_extent()
    assert not box.overlaps(axes.get_window_extent())
    assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
    assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1


def test_many_methods_differ_in_colour_or_marker() -> None:
    figure = draw_reliability({f"m{n}": BINS["sft"] for n in range(20)}, STYLE)
    looks = {(line.get_color(), line.get_marker()) for line in figure.axes[0].get_lines()[1:]}
    assert len(looks) == 20


@pytest.mark.parametrize("style", [STYLE, PictureStyle(theme="dark", width=330)])
def test_names_that_look_like_formulas_are_drawn_as_they_are(style: PictureStyle) -> None:
    figures = [draw_reliability({"$a_$ 冰": BINS["sft"]}, style) for _ in range(2)]
    assert legend(figures[0]) == ["$a_$ □"]
    first, second = map(png_of, figures)
    assert first.startswith(b"\x89PNG\r\n\x1a\n")
    assert first == second


def test_curves_and_costs_become_files_too() -> None:
    for figure in (
        draw_learning_curves(CURVES, STYLE, step_label="$x", metric_label="$y"),
        draw_accuracy_against_cost(COSTS, STYLE, cost_label="$x", accuracy_label="$y"),
    ):
        assert png_of(figure).startswith(b"\x89PNG\r\n\x1a\n")
