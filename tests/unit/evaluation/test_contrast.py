"""Two documents of one query, compared on one scale."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from rerank_core.errors import DataError
from rerank_core.evaluation.contrast import contrast, telling_contrast
from rerank_core.records import Query

if TYPE_CHECKING:
    from rerank_core.evaluation.findings import ExplainedDocument
    from rerank_core.evaluation.heat_map import HeatMap

Explained = tuple["ExplainedDocument", ...]


def at_rank(item: ExplainedDocument, rank: int) -> ExplainedDocument:
    return replace(item, ranked=replace(item.ranked, rank=rank))


def strengths(heat: HeatMap) -> dict[float, float]:
    return {s.value: s.strength for s in (*heat.title, *heat.text) if s.value is not None}


def test_equal_values_have_equal_colours_on_both_sides(explained: Explained) -> None:
    bad, good = explained
    values = tuple(value * 2 for value in bad.attribution.values)
    louder = replace(bad, attribution=replace(bad.attribution, values=values))
    found = contrast(good, louder)
    on_a, on_b = strengths(found.a.heat), strengths(found.b.heat)
    assert on_b[1.6] == 1.0
    assert on_a[0.8] == 0.5
    assert on_a[-0.1] == on_b[-0.2] / 2


def test_the_margin_is_the_difference_of_the_scores(explained: Explained) -> None:
    bad, good = explained
    found = contrast(good, bad)
    assert found.margin.total == good.attribution.score - bad.attribution.score
    assert {"ice (A)", "script (B)"} <= {step.label for step in found.margin.steps}


def test_documents_of_different_queries_are_not_compared(explained: Explained) -> None:
    bad, good = explained
    other = replace(good, attribution=replace(good.attribution, query_id="q9"))
    with pytest.raises(DataError, match="different queries"):
        contrast(other, bad)


def test_the_most_telling_document_stands_beside_the_one_that_ranks_next(explained: Explained) -> None:
    bad, good = explained
    found = telling_contrast((at_rank(bad, 9), at_rank(bad, 5), good))
    assert found is not None
    assert (found.a.explained, found.b.explained) == (good, at_rank(bad, 5))


def test_the_last_document_stands_below_the_one_before_it(explained: Explained) -> None:
    bad, good = explained  # `good` stays the most telling one: it is the only one of a high grade
    found = telling_contrast((bad, at_rank(good, 3), at_rank(bad, 1)))
    assert found is not None
    assert (found.a.explained, found.b.explained) == (bad, at_rank(good, 3))


def test_documents_alone_in_their_queries_are_not_compared(explained: Explained) -> None:
    bad, good = explained
    alone = replace(good, query=Query("q9", "other"))
    assert telling_contrast((bad, alone)) is None
    found = telling_contrast((bad, alone, at_rank(bad, 5)))
    assert found is not None
    assert (found.a.explained, found.b.explained) == (bad, at_rank(bad, 5))
