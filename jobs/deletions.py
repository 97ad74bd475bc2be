"""A ranked document without some of its attributed words, and how it then scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rerank_core.attribution.deletion import CoalitionScores, Deletion, attributed_part, word_spans
from rerank_core.attribution.masking import TokenMasker
from rerank_core.models.near_copies import NearCopies
from rerank_core.records import Document

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rerank_core.attribution.deletion import Worths
    from rerank_core.models.scorer import LanguageModelScorer
    from rerank_core.records import Attribution, Query, Run


def document_deletion(
    attribution: Attribution, query: Query, document: Document, *, scorer: LanguageModelScorer, run: Run
) -> tuple[Deletion, Worths]:
    """Return a ranked document whose attributed words can be deleted, and its scores without some of them.

    A document that is read in chunks scores no lower than its best chunk but the attributed one.

    Raises:
        DataError: the attribution is of no part that the scorer reads.
    """
    spans = scorer.visible_spans(query, document)
    part = attributed_part(attribution, document, spans)
    masked = TokenMasker(scorer.tokenizer).masked(part.text, word_spans(attribution, part))
    deletion = Deletion(query, masked, attribution.score, _rival_scores(run, attribution))
    worths = CoalitionScores(deletion, NearCopies(scorer))
    others = [Document("", document.content[start:end]) for start, end in spans if start != part.start]
    if not others:
        return deletion, worths
    floor = max(scorer.score(query, others))

    def document_scores(coalitions: Sequence[int]) -> list[float]:
        return [max(score, floor) for score in worths(coalitions)]

    return deletion, document_scores


def _rival_scores(run: Run, attribution: Attribution) -> tuple[float, ...]:
    """Return the scores of the other documents in a document's list."""
    ranking = run.rankings[attribution.query_id]
    return tuple(
        score
        for doc_id, score in zip(ranking.doc_ids, ranking.scores, strict=True)
        if doc_id != attribution.doc_id
    )
