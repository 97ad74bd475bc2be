"""Rerank by one score per document."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rerank_core.ranking.contract import rank

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rerank_core.protocols import Scorer
    from rerank_core.records import Candidate, Query, Ranking


def rerank(scorer: Scorer, query: Query, candidates: Sequence[Candidate]) -> Ranking:
    """Return the candidates ranked by the scorer; equal scores keep the first stage's order.

    Raises:
        DataError: a score is NaN or infinite.
        ValueError: the scorer returned another number of scores than documents.
    """
    documents = [candidate.document for candidate in candidates]
    return rank(
        query.query_id,
        [document.doc_id for document in documents],
        scores=scorer.score(query, documents),
        first_stage_ranks=[candidate.first_stage_rank for candidate in candidates],
    )
