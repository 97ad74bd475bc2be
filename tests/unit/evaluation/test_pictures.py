"""Findings drawn as figures, looked at through their pixels."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from rerank_core.evaluation.colours import PALETTES, Theme
from rerank_core.evaluation.pictures import (
    PictureStyle,
    draw_metrics,
    draw_rank_changes,
    draw_words,
    drawable,
    png_of,
)
from rerank_core.records import Document

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from rerank_core.evaluation.findings import ExplainedDocument, Findings, MetricTable, RankedQuery

WIDE, NARROW = PictureStyle(), PictureStyle(width=330)


def pixels(figure: Figure) -> np.ndarray:
    png = png_of(figure)
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def num_like(figure: Figure, colour: str) -> int:
    """Return how many pixels are (almost) of a colour."""
    wanted = [int(colour[n : n + 2], 16) for n in (1, 3, 5)]
    return int((np.abs(pixels(figure) - wanted).max(axis=2) <= 12).sum())


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_pictures_take_paper_and_size_from_their_style(metric_table: MetricTable, theme: Theme) -> None:
    wide = draw_metrics(metric_table, PictureStyle(theme=theme))
    narrow = draw_metrics(metric_table, PictureStyle(theme=theme, width=330))
    assert num_like(wide, PALETTES[theme].paper) > pixels(wide).shape[0] * pixels(wide).shape[1] / 2
    assert (pixels(wide).shape[1], pixels(narrow).shape[1]) == (2000, 660)
    assert pixels(narrow).shape[0] > pixels(wide).shape[0]  # stacked


def test_wider_intervals_take_more_ink(metric_table: MetricTable) -> None:
    wider = {
        row.name: {m: replace(v, low=v.mean - 0.2, high=v.mean + 0.2) for m, v in row.values.items()}
        for row in metric_table.rows
    }
    rows = tuple(replace(row, values=wider[row.name]) for row in metric_table.rows)
    accent = PALETTES["light"].accent
    before, after = draw_metrics(metric_table, WIDE), draw_metrics(replace(metric_table, rows=rows), WIDE)
    assert num_like(after, accent) > num_like(before, accent) > 0


@pytest.mark.parametrize("style", [WIDE, NARROW])
@pytest.mark.parametrize("count", [1, 3])
def test_every_query_gets_a_panel(ranked_query: RankedQuery, style: PictureStyle, count: int) -> None:
    drawn = draw_rank_changes([ranked_query] * count, style)
    alone = draw_rank_changes([ranked_query], style)
    circles = num_like(drawn, PALETTES["light"].accent)  # of the highest grade: two in each panel
    assert circles == pytest.approx(count * num_like(alone, PALETTES["light"].accent), rel=0.5)


def test_ranks_below_the_tenth_share_one_place(ranked_query: RankedQuery) -> None:
    good, bad, plain = ranked_query.documents
    deep = replace(good, first_stage_rank=40)
    deeper = replace(good, first_stage_rank=50)
    unseen = replace(plain, first_stage_rank=30, rank=31)
    drawn, same = (
        png_of(draw_rank_changes([replace(ranked_query, documents=(ranked, bad, unseen))], WIDE))
        for ranked in (deep, deeper)
    )
    assert drawn == same


def test_signs_of_words_have_their_own_colours(explained: tuple[ExplainedDocument, ...]) -> None:
    item = explained[1]
    half = tuple(0.9 if n % 2 else -0.9 for n in range(len(item.attribution.values)))
    drawn = draw_words(replace(item, attribution=replace(item.attribution, values=half)), WIDE)
    only_positive = tuple(abs(value) for value in half)
    positive = draw_words(replace(item, attribution=replace(item.attribution, values=only_positive)), WIDE)
    lowers, raises = "#4b82cd", "#df8832"  # 85 % of the palette's colours on white
    assert num_like(drawn, lowers) > 2 * num_like(positive, lowers) > 0  # the scale remains
    assert num_like(positive, raises) > 1.5 * num_like(drawn, raises)


def test_long_documents_and_long_words_are_cut(
    explained: tuple[ExplainedDocument, ...],
) -> None:
    item = explained[1]
    silent = replace(item.attribution, units=(), values=())
    drawn = {
        name: pixels(draw_words(_with_document(item, text, attribution=silent), WIDE))
        for name, text in (
            ("short", "word"),
            ("long", "many words " * 400),
            ("lines", "\n" * 90),
            ("wide", "w" * 400),
        )
    }
    assert drawn["long"].shape[0] < 1300
    assert drawn["long"].shape[0] == drawn["lines"].shape[0] > drawn["wide"].shape[0]
    assert drawn["wide"].shape[0] == drawn["short"].shape[0]  # clipped at the margin


def _with_document(item: ExplainedDocument, text: str, **changes: object) -> ExplainedDocument:
    ranked = replace(item.ranked, document=Document("d", text), grade=None)
    return replace(item, ranked=ranked, **changes)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("error")
def test_formulas_and_missing_glyphs_are_drawn_as_they_are(findings: Findings) -> None:
    hostile = findings.explained[0]  # its text holds `$x_$` and a Chinese character
    assert png_of(draw_words(hostile, WIDE))
    assert png_of(draw_rank_changes([findings.queries[1]], NARROW))
    odd = tuple(replace(row, name="$a_$ 冰") for row in findings.metrics.rows)
    assert png_of(draw_metrics(replace(findings.metrics, rows=odd), WIDE))


def test_characters_without_a_glyph_become_squares() -> None:
    assert drawable("a 冰\tb\x00") == "a □ b□"
