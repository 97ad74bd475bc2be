"""Colours of page and pictures: told apart with every kind of colour vision, readable in both themes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from matplotlib.colors import to_rgb

Theme = Literal["light", "dark"]
Colour = tuple[float, float, float]
"""Red, green and blue in sRGB, each from 0 to 1."""


@dataclass(frozen=True, slots=True)
class Palette:
    """The colours of one theme; `raises` and `lowers` differ for every kind of colour vision."""

    paper: str
    sunk: str  # under the text of a document
    ink: str
    faint: str
    rule: str
    accent: str
    raises: str
    lowers: str
    depth: float  # share of a word's colour in its background at full strength: `ink` stays readable on it


PALETTES: Final[dict[Theme, Palette]] = {
    "light": Palette(
        paper="#ffffff",
        sunk="#f6f7fa",
        ink="#1b2230",
        faint="#5a6475",
        rule="#dfe3ea",
        accent="#0b7a70",
        raises="#d9730d",
        lowers="#2b6cc4",
        depth=0.62,
    ),
    "dark": Palette(
        paper="#171b23",
        sunk="#1d222c",
        ink="#e8ebf1",
        faint="#a0a9b8",
        rule="#3a4352",
        accent="#3fc1b0",
        raises="#f2994a",
        lowers="#6ea8f7",
        depth=0.46,
    ),
}


def mix(start: str, end: str, share: float) -> Colour:
    """Return the colour that is `share` of `end` over `start`."""
    first, second = to_rgb(start), to_rgb(end)
    red, green, blue = (a + (b - a) * share for a, b in zip(first, second, strict=True))
    return red, green, blue


def contrast_ratio(one: Colour | str, other: Colour | str) -> float:
    """Return WCAG 2's contrast ratio of two opaque colours, from 1 (equal) to 21 (black on white)."""
    darker, lighter = sorted((_luminance(to_rgb(one)), _luminance(to_rgb(other))))
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: Colour) -> float:
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def readable_on(colour: Colour) -> str:
    """Return black or white, whichever has more contrast: at least 4.58 on any colour."""
    return max("#000000", "#ffffff", key=lambda ink: contrast_ratio(ink, colour))


def channels(colour: str) -> str:
    """Return a colour as CSS takes it in `rgb(... / alpha)`: `217 115 13`."""
    return " ".join(str(round(255 * part)) for part in to_rgb(colour))
