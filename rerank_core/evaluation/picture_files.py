"""Findings in, picture files out: each as PNG and as SVG."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rerank_core.evaluation.contrast import telling_contrast
from rerank_core.evaluation.findings import chosen_queries, most_telling
from rerank_core.evaluation.pictures import (
    PictureStyle,
    draw_metrics,
    draw_rank_changes,
    draw_words,
    png_of,
    svg_of,
)
from rerank_core.evaluation.waterfall import score_waterfall
from rerank_core.evaluation.waterfall_picture import draw_waterfall

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from rerank_core.evaluation.contrast import SideBySide
    from rerank_core.evaluation.findings import ExplainedDocument, Findings


def draw_pictures(findings: Findings) -> dict[str, bytes]:
    """Return the report's pictures as files by name, `metrics.png`, `metrics.svg` and so on.

    They are `metrics`, `rank_changes`, `words` and `waterfall` of the most telling document, and `margin` of
    two documents, where two of one query were explained.
    """
    style = PictureStyle()
    telling = most_telling(findings.explained)
    figures = {
        "metrics": draw_metrics(findings.metrics, style),
        "rank_changes": draw_rank_changes(chosen_queries(findings.queries), style),
        "words": draw_words(telling, style),
        "waterfall": _waterfall_of(telling, style),
    }
    compared = telling_contrast(findings.explained)
    if compared is not None:
        figures["margin"] = _margin_of(compared, style)
    return {
        f"{name}.{ending}": file_of(figure)
        for name, figure in figures.items()
        for ending, file_of in (("png", png_of), ("svg", svg_of))
    }


def _waterfall_of(explained: ExplainedDocument, style: PictureStyle) -> Figure:
    ranked = explained.ranked
    title = f"Score of {ranked.document.doc_id} (rank {ranked.rank}), word by word"
    return draw_waterfall(score_waterfall(explained.attribution), style, title=title)


def _margin_of(compared: SideBySide, style: PictureStyle) -> Figure:
    a, b = compared.a.explained.ranked, compared.b.explained.ranked
    title = (
        f"Why A = {a.document.doc_id} (rank {a.rank}) scores above B = {b.document.doc_id} (rank {b.rank})"
    )
    return draw_waterfall(compared.margin, style, title=title)
