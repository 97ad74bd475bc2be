"""Which few words hold a document at its rank, found with the scorer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rerank_core.attribution.deletion import CoalitionScores, Deletion, word_spans
from rerank_core.attribution.masking import TokenMasker
from rerank_core.attribution.rank_flip import find_rank_flip
from rerank_core.models.near_copies import NearCopies

if TYPE_CHECKING:
    from rerank_core.attribution.rank_flip import RankFlip
    from rerank_core.models.scorer import LanguageModelScorer
    from rerank_core.records import Attribution, Document, Query, Run


def rank_flip(
    attribution: Attribution, query: Query, document: Document, *, scorer: LanguageModelScorer, run: Run
) -> RankFlip | None:
    """Return the few units that hold a document at its rank of a run; None where there are no few."""
    visible = scorer.visible_content(query, document)
    masked = TokenMasker(scorer.tokenizer).masked(visible, word_spans(attribution, document))
    deletion = Deletion(query, masked, attribution.score, rival_scores(run, attribution))
    return find_rank_flip(deletion, attribution.values, CoalitionScores(deletion, NearCopies(scorer)))


def rival_scores(run: Run, attribution: Attribution) -> tuple[float, ...]:
    """Return the scores of the other documents in a document's list."""
    ranking = run.rankings[attribution.query_id]
    return tuple(
        score
        for doc_id, score in zip(ranking.doc_ids, ranking.scores, strict=True)
        if doc_id != attribution.doc_id
    )
