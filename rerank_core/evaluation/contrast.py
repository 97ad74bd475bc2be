"""Two documents of one query side by side: why one scores above the other."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rerank_core.evaluation.findings import most_telling
from rerank_core.evaluation.heat_map import HeatMap, heat_map, largest_value
from rerank_core.evaluation.waterfall import Waterfall, margin_waterfall

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rerank_core.evaluation.findings import ExplainedDocument


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two documents, its colours on the scale of both."""

    explained: ExplainedDocument
    heat: HeatMap


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Document A beside document B, which ranks below it, and the margin of their scores in steps."""

    a: Side
    b: Side
    margin: Waterfall


def contrast(a: ExplainedDocument, b: ExplainedDocument) -> SideBySide:
    """Lay two documents side by side: equal values have equal colours in both.

    Raises:
        DataError: the documents were scored for different queries, or a unit does not fit.
    """
    margin = margin_waterfall(a.attribution, b.attribution)
    scale = max(largest_value(a.attribution), largest_value(b.attribution))
    return SideBySide(a=_side(a, scale=scale), b=_side(b, scale=scale), margin=margin)


def _side(explained: ExplainedDocument, *, scale: float) -> Side:
    heat = heat_map(explained.attribution, explained.ranked.document, cited=(), scale=scale)
    return Side(explained=explained, heat=heat)


def telling_contrast(explained: Sequence[ExplainedDocument]) -> SideBySide | None:
    """Return the most telling document beside the explained one that ranks next below it for its query.

    Documents that are alone in their query do not count; None where all are. Where none ranks below the most
    telling one, the one next above stands beside it, as document A.

    Raises:
        DataError: a unit does not fit.
    """
    num_by_query = Counter(item.query.query_id for item in explained)
    accompanied = [item for item in explained if num_by_query[item.query.query_id] > 1]
    if not accompanied:
        return None
    telling = most_telling(accompanied)
    same = sorted((e for e in accompanied if e.query == telling.query), key=lambda e: e.ranked.rank)
    first = min(same.index(telling), len(same) - 2)
    return contrast(same[first], same[first + 1])
