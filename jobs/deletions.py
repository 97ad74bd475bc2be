"""A document of a run without some of its attributed words, and how it then scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rerank_core.attribution import document_deletion as core

if TYPE_CHECKING:
    from rerank_core.attribution.deletion import Deletion, Worths
    from rerank_core.models.scorer import LanguageModelScorer
    from rerank_core.records import Attribution, Document, Query, Run


def document_deletion(
    attribution: Attribution, query: Query, document: Document, *, scorer: LanguageModelScorer, run: Run
) -> tuple[Deletion, Worths]:
    """Return a ranked document whose attributed words can be deleted, and its scores without some of them.

    Raises:
        DataError: the attribution is of no part that the scorer reads.
    """
    ranking = run.rankings[attribution.query_id]
    rivals = [
        score
        for doc_id, score in zip(ranking.doc_ids, ranking.scores, strict=True)
        if doc_id != attribution.doc_id
    ]
    return core.document_deletion(scorer, attribution, query=query, document=document, rivals=rivals)
