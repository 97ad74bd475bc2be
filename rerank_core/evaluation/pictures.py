"""Findings in, figures out: metrics with intervals, rank changes, words."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from PIL import Image

from rerank_core.evaluation.colours import PALETTES, Palette, Theme, mix, readable_on
from rerank_core.evaluation.findings import (
    DEPTH,
    ExplainedDocument,
    MetricRow,
    MetricTable,
    RankedQuery,
    row_label,
    signed,
)
from rerank_core.evaluation.heat_map import HeatMap, Segment, heat_map

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from matplotlib.axes import Axes

    from rerank_core.evaluation.significance import Interval

DPI: Final = 200
PIXELS_PER_INCH: Final = 100  # of layout; the file has DPI / 100 times as many


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureStyle:
    """What a picture is drawn for: a theme, and a width in CSS pixels (under 500 its parts are stacked)."""

    theme: Theme = "light"
    width: int = 1000

    @property
    def palette(self) -> Palette:
        """The colours of the theme."""
        return PALETTES[self.theme]

    @property
    def is_narrow(self) -> bool:
        """Whether parts go below each other."""
        return self.width < 500


def new_figure(style: PictureStyle, *, height: float) -> Figure:
    """Return an empty figure of the style's width and paper, `height` CSS pixels high."""
    size = (style.width / PIXELS_PER_INCH, height / PIXELS_PER_INCH)
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1, wspace=0.04)
    return Figure(figsize=size, dpi=DPI, facecolor=style.palette.paper, layout=layout)


def png_of(figure: Figure) -> bytes:
    """Return a figure as a PNG file of 256 colours; figures made alike give the same bytes."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    stream = io.BytesIO()
    # 256 colours are enough for flat shapes, and make the page a third of its size.
    drawn.quantize(256, dither=Image.Dither.NONE).save(stream, format="png", optimize=True)
    return stream.getvalue()


def svg_of(figure: Figure) -> bytes:
    """Return a figure as an SVG file, its letters drawn as shapes; figures made alike give the same bytes."""
    stream = io.BytesIO()
    # Without a salt of our own and with a date, every file would differ.
    with rc_context({"svg.hashsalt": "whyrank"}):
        figure.savefig(stream, format="svg", facecolor=figure.get_facecolor(), metadata={"Date": None})
    return stream.getvalue()


def drawable(text: str) -> str:
    """Return a text in which every character that the font lacks is a white square."""
    return "".join(" " if c.isspace() else c if ord(c) in _glyphs() else "□" for c in text)


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def _label(axes: Axes, place: tuple[float, float], text: str, **settings: Any) -> None:
    """Draw text as it is: matplotlib would read a formula between two dollar signs."""
    axes.text(*place, drawable(text), parse_math=False, **settings)


def clear_axes(axes: Axes, palette: Palette) -> None:
    """Give axes the theme's paper and small faint ticks, without a frame."""
    axes.set_facecolor(palette.paper)
    axes.tick_params(colors=palette.faint, length=0, labelsize=8)
    for spine in axes.spines.values():
        spine.set_visible(False)


# ---------------------------------------------------------------------------------------------------- metrics


def draw_metrics(table: MetricTable, style: PictureStyle) -> Figure:
    """Draw every row's headline metric and its paired change against the first stage, with intervals."""
    rows = table.rows
    compared = [row for row in rows if row.kind in ("run", "fusion")]
    if style.is_narrow:
        figure = new_figure(style, height=27 * (len(rows) + len(compared)) + 150)
        values, changes = figure.subplots(2, 1, height_ratios=(len(rows), len(compared) + 0.6))
        places = dict(enumerate(compared))
    else:
        figure = new_figure(style, height=29 * len(rows) + 80)
        values, changes = figure.subplots(1, 2, width_ratios=(3, 2))
        places = {y: row for y, row in enumerate(rows) if row in compared}
    _draw_values(values, table, style)
    _draw_changes(changes, places, table=table, style=style)
    if not style.is_narrow:  # the same lines as on the left
        changes.set_ylim(*values.get_ylim())
        changes.set_yticks([])
    return figure


def _draw_values(axes: Axes, table: MetricTable, style: PictureStyle) -> None:
    metric = table.headline
    _prepare_dots(axes, table.label(metric), style)
    entries = {y: (row, row.values[metric]) for y, row in enumerate(table.rows)}
    _draw_dots(axes, {y: (row, value, f"{value.mean:.3f}") for y, (row, value) in entries.items()}, style)
    _mark(axes, table.first_stage.values[metric].mean, style)
    axes.set_xlim(0, 1.08)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0])


def _draw_changes(
    axes: Axes, places: Mapping[int, MetricRow], *, table: MetricTable, style: PictureStyle
) -> None:
    _prepare_dots(axes, f"change against BM25, {table.confidence:.0%}", style)
    entries = {y: (row, row.differences[table.headline]) for y, row in places.items()}
    _draw_dots(axes, {y: (row, value, signed(value.mean)) for y, (row, value) in entries.items()}, style)
    _mark(axes, 0.0, style)
    reach = max(0.01, *(abs(end) for _, value in entries.values() for end in (value.low, value.high)))
    axes.set_xlim(-1.15 * reach, 1.15 * reach)
    axes.locator_params(axis="x", nbins=5)


def _prepare_dots(axes: Axes, title: str, style: PictureStyle) -> None:
    clear_axes(axes, style.palette)
    axes.grid(axis="x", color=style.palette.rule, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_title(
        title,
        loc="left",
        fontsize=9,
        fontweight="bold",
        color=style.palette.ink,
        pad=10,
        parse_math=False,
    )


def _mark(axes: Axes, x: float, style: PictureStyle) -> None:
    axes.axvline(x, color=style.palette.faint, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0.5)


def _draw_dots(
    axes: Axes, entries: Mapping[int, tuple[MetricRow, Interval, str]], style: PictureStyle
) -> None:
    """Draw a dot with its interval and number on each line `y`, and the row's name beside it."""
    palette = style.palette
    axes.set_ylim(max(entries) + 0.5, -0.75)
    axes.set_yticks(
        list(entries), [drawable(row_label(row)) for row, _, _ in entries.values()], color=palette.ink
    )
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    for y, (row, value, text) in entries.items():
        colour = palette.accent if row.kind in ("run", "fusion") else palette.faint
        axes.plot([value.low, value.high], [y, y], color=colour, linewidth=2.4, solid_capstyle="round")
        axes.plot(value.mean, y, "o", color=colour, markersize=6.5, markeredgecolor=palette.paper)
        box = {"facecolor": palette.paper, "edgecolor": "none", "pad": 0.6}
        style_of_number = {"va": "bottom", "ha": "center", "fontsize": 7.5, "color": palette.ink, "bbox": box}
        _label(axes, (value.mean, y - 0.26), text, **style_of_number)


# ----------------------------------------------------------------------------------------------- rank changes


def draw_rank_changes(queries: Sequence[RankedQuery], style: PictureStyle) -> Figure:
    """Draw a panel per query: a line per document from its BM25 rank to its rank, the grade at both ends."""
    columns = 1 if style.is_narrow else max(len(queries), 2)
    rows = -(-len(queries) // columns)
    figure = new_figure(style, height=rows * 300 + 40)
    grid = figure.subplots(rows, columns, squeeze=False)
    highest = max((d.grade or 0 for q in queries for d in q.documents), default=1) or 1
    for axes in grid.flat[len(queries) :]:
        axes.set_visible(False)
    for axes, query in zip(grid.flat, queries, strict=False):
        _slopes(axes, query, style, highest=highest)
    return figure


def _slopes(axes: Axes, query: RankedQuery, style: PictureStyle, *, highest: int) -> None:
    palette = style.palette
    clear_axes(axes, palette)
    below = DEPTH + 1  # one place for all ranks under the fold
    shown = [d for d in query.documents if min(d.first_stage_rank, d.rank) <= DEPTH]
    lowest = min(below, max((max(d.first_stage_rank, d.rank) for d in shown), default=1))
    for ranked in sorted(shown, key=lambda d: d.grade or 0):
        share = (ranked.grade or 0) / highest
        colour = mix(palette.rule, palette.accent, share)
        ends = [min(ranked.first_stage_rank, below), min(ranked.rank, below)]
        axes.plot([0, 1], ends, color=colour, linewidth=1.2 + 2.2 * share, zorder=1 + share)
        axes.plot(
            [0, 1], ends, "o", color=colour, markersize=13, markeredgecolor=palette.paper, zorder=3 + share
        )
        ink = readable_on(colour)
        for x, y in zip((0, 1), ends, strict=True):
            grade = "?" if ranked.grade is None else str(ranked.grade)
            _label(axes, (x, y), grade, ha="center", va="center_baseline", fontsize=7.5, color=ink, zorder=5)
    axes.set_xlim(-0.3, 1.3)
    axes.set_ylim(lowest + 0.6, 0.4)
    axes.set_xticks([0, 1], ["BM25", "re-ranked"], color=palette.faint)
    axes.set_yticks(range(1, lowest + 1), [str(r) if r <= DEPTH else "lower" for r in range(1, lowest + 1)])
    lines = _wrapped(query.query.text, characters=42 if style.is_narrow else 31, lines=2)
    change = f"NDCG {query.first_stage_value:.2f} → {query.value:.2f}"
    title = "\n".join([*map(drawable, lines), change])
    axes.set_title(
        title, loc="left", fontsize=8, color=palette.ink, pad=8, linespacing=1.35, parse_math=False
    )


def _wrapped(text: str, *, characters: int, lines: int) -> list[str]:
    """Cut a text into at most so many lines, the last one ending in … where something is left out."""
    found = [""]
    for word in text.split():
        longer = f"{found[-1]} {word}".strip()
        if len(longer) <= characters or not found[-1]:
            found[-1] = longer
        else:
            found.append(word)
    if len(found) > lines:
        found[lines - 1] = f"{found[lines - 1][: characters - 1]}…"
    return [line[:characters] for line in found[:lines]]


# ------------------------------------------------------------------------------------------------------ words

MARGIN: Final = 36.0
TOP: Final = 112.0  # pixels above the first line
LINE: Final = 33.0  # pixels from one line to the next
MAX_LINES: Final = 12
TITLE_SIZE: Final = 13.0  # points
TEXT_SIZE: Final = 11.0


@dataclass(frozen=True, slots=True)
class _Placed:
    segment: Segment
    x: float
    y: float
    width: float
    is_title: bool


def draw_words(explained: ExplainedDocument, style: PictureStyle) -> Figure:
    """Draw a document's words over a background of their values, with the query above and the sum below.

    A document of more than twelve lines ends in …. The line under a word is solid where its value raises the
    score and dashed where it lowers it; a sign stands before each of the ten strongest words.
    """
    shown = heat_map(explained.attribution, explained.ranked.document, cited=())
    placed, end = _placed_words(shown, width=style.width)
    height = end + 96
    figure = new_figure(style, height=height)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, style.width), ylim=(height, 0))
    axes.set_axis_off()
    _draw_heading(axes, explained, style)
    for item in placed:
        _draw_word(axes, item, style.palette)
    _draw_sum(axes, explained, style, y=end + 18)
    return figure


def _draw_heading(axes: Axes, explained: ExplainedDocument, style: PictureStyle) -> None:
    ranked, palette = explained.ranked, style.palette
    query = _wrapped(explained.query.text, characters=int(style.width / 11), lines=1)[0]
    _label(axes, (MARGIN, 34), f"“{query}”", fontsize=11.5, fontweight="bold", color=palette.ink, va="center")
    grade = "not judged" if ranked.grade is None else f"grade {ranked.grade}"
    place = (
        f"BM25 rank {ranked.first_stage_rank} → rank {ranked.rank}  ·  {grade}  ·  {ranked.document.doc_id}"
    )
    _label(axes, (MARGIN, 62), place, fontsize=9, color=palette.faint, va="center")
    axes.plot([MARGIN, style.width - MARGIN], [84, 84], color=palette.rule, linewidth=1)


def _placed_words(shown: HeatMap, *, width: float) -> tuple[list[_Placed], float]:
    """Break title and text into lines; return the placed words, and where the last line ends."""
    placed: list[_Placed] = []
    x, y, end = MARGIN, TOP, TOP + MAX_LINES * LINE
    for segment, is_title in _pieces(shown):
        size = _text_width(_with_sign(segment), is_title=is_title)
        is_break = segment.text == "\n"
        if is_break or (x + size > width - MARGIN and x > MARGIN):
            x, y = MARGIN, y + LINE
        if y >= end:
            placed.append(_Placed(Segment("…"), x, end, LINE, is_title=False))
            return placed, end + LINE
        if not is_break and (x > MARGIN or segment.text.strip()):  # a line does not start with a blank
            placed.append(_Placed(segment, x, y, size, is_title))
            x += size
    return placed, y + LINE


def _pieces(shown: HeatMap) -> Iterator[tuple[Segment, bool]]:
    """Yield the words of title and text, and what is between them cut at blanks and line breaks."""
    for segments, is_title in ((shown.title, True), (shown.text, False)):
        for segment in segments:
            if segment.value is not None:
                yield segment, is_title
            else:
                yield from (
                    (Segment(piece), is_title) for piece in re.findall(r"\n|[^\S\n]+|\S+", segment.text)
                )
        if is_title and segments:
            yield Segment("\n"), True


def _with_sign(segment: Segment) -> str:
    sign = "" if not segment.is_strong else "⁺" if segment.strength > 0 else "⁻"
    return drawable(sign + segment.text)


@cache
def _text_width(text: str, *, is_title: bool) -> float:
    """Return the width of a line of text in pixels of layout."""
    renderer = _renderer()
    font = FontProperties(family="DejaVu Sans", **_font(is_title))
    width, _, _ = renderer.get_text_width_height_descent(text, font, False)
    return float(width * PIXELS_PER_INCH / DPI)


@cache
def _renderer() -> RendererAgg:
    renderer: RendererAgg = FigureCanvasAgg(Figure(dpi=DPI)).get_renderer()
    return renderer


def _font(is_title: bool) -> dict[str, Any]:
    return {"size": TITLE_SIZE, "weight": "bold"} if is_title else {"size": TEXT_SIZE, "weight": "normal"}


def _draw_word(axes: Axes, item: _Placed, palette: Palette) -> None:
    segment = item.segment
    colour = palette.raises if segment.strength > 0 else palette.lowers
    background = mix(palette.paper, colour, 0.85 * abs(segment.strength))
    if segment.value is not None:
        corner = (item.x - 1, item.y - LINE * 0.4)
        axes.add_patch(Rectangle(corner, item.width + 2, LINE * 0.8, color=background, linewidth=0))
        line = mix(palette.paper, colour, min(1.0, 1.6 * abs(segment.strength)))
        dashes = "solid" if segment.strength > 0 else (0, (3, 2))
        ends, below = [item.x - 1, item.x + item.width + 1], [item.y + LINE * 0.4] * 2
        axes.plot(ends, below, color=line, linewidth=1.3, linestyle=dashes, solid_capstyle="butt")
    ink = readable_on(background) if abs(segment.strength) > 0.5 else palette.ink
    _label(
        axes, (item.x, item.y), _with_sign(segment), va="center_baseline", color=ink, **_font(item.is_title)
    )


def _draw_sum(axes: Axes, explained: ExplainedDocument, style: PictureStyle, *, y: float) -> None:
    attribution, palette = explained.attribution, style.palette
    total = f"base value {signed(attribution.base_value, digits=2)}"
    total += f"   + words {signed(sum(attribution.values), digits=2)}"
    total += f"   + residual {signed(attribution.residual, digits=4)}"
    total += f"   = score {signed(attribution.score, digits=2)}"
    axes.plot([MARGIN, style.width - MARGIN], [y - 22, y - 22], color=palette.rule, linewidth=1)
    _label(axes, (MARGIN, y + 4), total, fontsize=9.5, color=palette.ink, va="center")
    _draw_scale(axes, style, y=y + 40)


def _draw_scale(axes: Axes, style: PictureStyle, *, y: float) -> None:
    palette = style.palette
    _label(axes, (MARGIN, y), "− lowers the score, dashed", fontsize=8.5, color=palette.faint, va="center")
    start, step = MARGIN + 185, 12.0
    for n in range(-8, 9):
        colour = mix(palette.paper, palette.raises if n > 0 else palette.lowers, 0.85 * abs(n) / 8)
        axes.add_patch(Rectangle((start + (n + 8) * step, y - 7), step, 14, color=colour, linewidth=0))
    _label(
        axes,
        (start + 17 * step + 10, y),
        "+ raises it, solid",
        fontsize=8.5,
        color=palette.faint,
        va="center",
    )
