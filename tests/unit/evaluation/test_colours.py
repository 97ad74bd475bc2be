"""Colours that can be told apart, and text that can be read on them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb

from rerank_core.evaluation.colours import PALETTES, Theme, channels, contrast_ratio, mix, readable_on

READABLE = 4.5  # WCAG 2, level AA
THEMES: tuple[Theme, ...] = ("light", "dark")

# Machado, Oliveira and Fernandes 2009, severity 1: linear RGB as the viewer sees it.
VISION = {
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
XYZ_OF_RGB = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab_of(linear: np.ndarray) -> np.ndarray:
    """Return CIE L*a*b* of a colour in linear RGB."""
    xyz = XYZ_OF_RGB @ np.clip(linear, 0, 1) / (XYZ_OF_RGB @ np.ones(3))
    x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def linear_of(colour: str) -> np.ndarray:
    srgb = np.array(to_rgb(colour))
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("vision", VISION)
def test_raising_and_lowering_differ_for_every_kind_of_colour_vision(theme: Theme, vision: str) -> None:
    palette = PALETTES[theme]
    seen = [lab_of(np.array(VISION[vision]) @ linear_of(c)) for c in (palette.raises, palette.lowers)]
    assert np.linalg.norm(seen[0] - seen[1]) > 40  # a difference of 2 is just noticed


@pytest.mark.parametrize("theme", THEMES)
def test_the_strongest_words_of_the_page_can_be_read(theme: Theme) -> None:
    palette = PALETTES[theme]
    for paper in (palette.sunk, palette.paper):
        for colour in (palette.raises, palette.lowers):
            assert contrast_ratio(palette.ink, mix(paper, colour, palette.depth)) >= READABLE
        assert contrast_ratio(palette.faint, paper) >= READABLE


@given(st.tuples(*[st.floats(0, 1)] * 3))
def test_black_or_white_can_be_read_on_any_colour(colour: tuple[float, float, float]) -> None:
    assert contrast_ratio(readable_on(colour), colour) >= READABLE


def test_ratios_are_those_of_the_standard() -> None:
    assert contrast_ratio("#000000", "#ffffff") == pytest.approx(21)
    assert contrast_ratio("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)  # the classic near miss
    assert contrast_ratio("#123456", "#123456") == 1


def test_channels_are_what_css_takes() -> None:
    assert channels("#d9730d") == "217 115 13"
