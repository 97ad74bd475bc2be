"""Findings in, one self-contained HTML page out."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from rerank_core.evaluation.colours import PALETTES, channels
from rerank_core.evaluation.contrast import SideBySide, telling_contrast
from rerank_core.evaluation.findings import (
    DEPTH,
    ExplainedDocument,
    Findings,
    chosen_queries,
    compared_rows,
    fallback_line,
    finding,
    largest_moves,
    most_telling,
    ndcg_share,
    row_label,
    signed,
)
from rerank_core.evaluation.heat_map import HeatMap, Segment, heat_map, query_segments
from rerank_core.evaluation.pictures import PictureStyle, draw_metrics, draw_rank_changes, png_of
from rerank_core.evaluation.waterfall import Waterfall, score_waterfall
from rerank_core.text import normalise

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from matplotlib.figure import Figure

    from rerank_core.records import Attribution, Explanation

MAX_CARDS: Final = 24
MAX_MOVES: Final = 12


@dataclass(frozen=True, slots=True)
class PictureSet:
    """One picture as data URIs, for both themes and two widths."""

    light: str
    dark: str
    light_narrow: str
    dark_narrow: str


@dataclass(frozen=True, slots=True)
class CitedWord:
    """A word that an explanation cites, with the sum of its values; None where it is not in the document."""

    text: str
    value: float | None


@dataclass(frozen=True, slots=True)
class WrittenText:
    """An explanation as shown: `verdict` is verified, replaced or unverified."""

    heading: str
    verdict: str
    explanation: Explanation
    cited: tuple[CitedWord, ...]


@dataclass(frozen=True, slots=True)
class Card:
    """An explained document as shown."""

    explained: ExplainedDocument
    heat: HeatMap
    query: tuple[Segment, ...]  # the words of the query with their values, where they were attributed
    waterfall: Waterfall
    texts: tuple[WrittenText, ...]


def render_report(findings: Findings) -> str:
    """Return the page: no script, nothing loaded from elsewhere, every text from the data escaped.

    Raises:
        DataError: the shown run was not evaluated, no document was attributed, or a unit does not fit.
    """
    environment = Environment(
        loader=PackageLoader("rerank_core.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "signed": signed,
        "row_label": row_label,
        "wall_time": wall_time,
        "channels": channels,
    }
    chosen = chosen_queries(findings.queries)
    compared = telling_contrast(findings.explained)
    evaluations = [explained.attribution.num_evals for explained in findings.explained]
    return environment.get_template("report.html.j2").render(
        findings=findings,
        finding=finding(findings),
        compared=compared_rows(findings),
        metrics_picture=_picture_set(lambda style: draw_metrics(findings.metrics, style)),
        ranks_picture=_picture_set(lambda style: draw_rank_changes(chosen, style)),
        moves=largest_moves(findings.queries, limit=MAX_MOVES),
        ndcg_share=ndcg_share,
        depth=DEPTH,
        cards=_cards(findings.explained),
        contrast=compared,
        above=_above(compared),
        palettes=PALETTES,
        fallback_line=fallback_line(findings.explained),
        evaluations=(min(evaluations), sum(evaluations) / len(evaluations), max(evaluations)),
    )


def wall_time(seconds: float) -> str:
    """Return a duration for people: `8 s`, `3 min 20 s`, `2 h 5 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _picture_set(draw: Callable[[PictureStyle], Figure]) -> PictureSet:
    wide, narrow = PictureStyle().width, 330
    return PictureSet(
        light=_data_uri(draw(PictureStyle(theme="light", width=wide))),
        dark=_data_uri(draw(PictureStyle(theme="dark", width=wide))),
        light_narrow=_data_uri(draw(PictureStyle(theme="light", width=narrow))),
        dark_narrow=_data_uri(draw(PictureStyle(theme="dark", width=narrow))),
    )


def _data_uri(figure: Figure) -> str:
    return f"data:image/png;base64,{base64.b64encode(png_of(figure)).decode('ascii')}"


def _cards(explained: Sequence[ExplainedDocument]) -> tuple[Card, ...]:
    """Return the most telling document, then the others in their order, up to the page's limit."""
    first = most_telling(explained)
    ordered = [first, *(other for other in explained if other is not first)]
    return tuple(_card(item) for item in ordered[:MAX_CARDS])


def _card(explained: ExplainedDocument) -> Card:
    cited = explained.with_attribution.cited if explained.with_attribution else ()
    written = (
        ("With attributions", explained.with_attribution),
        ("Without attributions", explained.without_attribution),
    )
    return Card(
        explained=explained,
        heat=heat_map(explained.attribution, explained.ranked.document, cited=cited),
        query=query_segments(explained.of_query, explained.query) if explained.of_query else (),
        waterfall=score_waterfall(explained.attribution),
        texts=tuple(
            _written(head, text, [explained.attribution]) for head, text in written if text is not None
        ),
    )


def _above(compared: SideBySide | None) -> WrittenText | None:
    """Return the text on why a document stands above the next one, where these are the two shown."""
    if compared is None:
        return None
    a, b = compared.a.explained, compared.b.explained
    if a.above_next is None or b.ranked.rank != a.ranked.rank + 1:
        return None
    return _written("Why it stands above", a.above_next, [a.attribution, b.attribution])


def _written(heading: str, explanation: Explanation, attributions: Sequence[Attribution]) -> WrittenText:
    """Return a text with the value of each word it cites, in the attribution that its effect speaks of.

    The first is that of the document itself, a second one that of the document it is compared with.
    """
    verdict = "replaced" if explanation.fallback else "verified" if explanation.grounded else "unverified"
    cited = [
        CitedWord(word, _word_value(word, attributions[-1 if effect.startswith("other_") else 0]))
        for word, effect in zip(explanation.cited, explanation.effects, strict=True)
    ]
    return WrittenText(heading=heading, verdict=verdict, explanation=explanation, cited=tuple(cited))


def _word_value(word: str, attribution: Attribution) -> float | None:
    pairs = zip(attribution.units, attribution.values, strict=True)
    values = [value for unit, value in pairs if normalise(unit.text) == normalise(word)]
    return sum(values) if values else None
