"""Waterfalls, looked at through what matplotlib says that it draws."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from rerank_core.evaluation.pictures import PictureStyle, png_of
from rerank_core.evaluation.waterfall import Step, Waterfall
from rerank_core.evaluation.waterfall_picture import draw_waterfall

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLE = PictureStyle()
STEPS = (
    Step("ice", 2.0, -1.0, "word"),
    Step("mud", -0.5, 1.0, "word"),
    Step("3 other words", 0.25, 0.5, "rest"),
)
FOUND = Waterfall("base value", -1.0, STEPS, 0.75, "score")


@pytest.fixture(scope="module")
def axes() -> Axes:
    return draw_waterfall(FOUND, STYLE, title="Score").axes[0]


def bars(axes: Axes) -> list[Rectangle]:
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


def test_every_step_has_its_bar_from_its_start_to_its_end(axes: Axes) -> None:
    places = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in bars(axes)]
    assert [sorted(ends) for ends in places] == [sorted((step.start, step.end)) for step in STEPS]


def test_signs_differ_in_colour_and_in_hatching(axes: Axes) -> None:
    raises, lowers, _ = bars(axes)
    assert to_hex(raises.get_facecolor()) == STYLE.palette.raises
    assert to_hex(lowers.get_facecolor()) == STYLE.palette.lowers
    assert [bool(bar.get_hatch()) for bar in (raises, lowers)] == [False, True]


def test_rows_are_named_and_numbered_from_start_to_total(axes: Axes) -> None:
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["base value", "ice", "mud", "3 other words", "score"]
    numbers = sorted((text.xy[1], text.get_text()) for text in axes.texts)  # type: ignore[attr-defined]
    assert [number for _, number in numbers] == ["−1.000", "+2.000", "−0.500", "+0.250", "+0.750"]


@pytest.mark.filterwarnings("error")
def test_odd_words_are_drawn_as_they_are_and_long_ones_cut() -> None:
    odd = Waterfall("base value", 0.0, (Step("$x_$ 冰" + "w" * 90, 0.0, 0.0, "word"),), 0.0, "score")
    figure = draw_waterfall(odd, PictureStyle(theme="dark"), title="$a_$ 冰")
    label = figure.axes[0].get_yticklabels()[1].get_text()
    assert label.startswith("$x_$ □")
    assert len(label) == 34
    assert png_of(figure)
