"""Reranking by one score per document."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rerank_core.ranking.pointwise import rerank
from rerank_core.records import Candidate, Document, Query

if TYPE_CHECKING:
    from collections.abc import Sequence


class LengthScorer:
    """Longer documents score higher."""

    def score(self, query: Query, documents: Sequence[Document]) -> list[float]:
        return [float(len(document.text)) for document in documents]


def candidates(*texts: str) -> list[Candidate]:
    return [Candidate(Document(f"d{n}", text), n, 0.0) for n, text in enumerate(texts, start=1)]


def test_the_scorer_decides_and_ties_keep_first_stage_order() -> None:
    ranking = rerank(LengthScorer(), Query("q", "x"), candidates("xx", "x", "xxx", "yy"))
    assert ranking.query_id == "q"
    assert ranking.doc_ids == ("d3", "d1", "d4", "d2")
    assert ranking.scores == (3.0, 2.0, 2.0, 1.0)


def test_one_candidate_and_none_are_lists_too() -> None:
    assert rerank(LengthScorer(), Query("q", "x"), candidates("x")).doc_ids == ("d1",)
    assert rerank(LengthScorer(), Query("q", "x"), []).doc_ids == ()
