"""Which few words hold a document at its rank, found with the scorer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rerank_core.attribution.deletion import CoalitionScores, Deletion, word_spans
from rerank_core.attribution.masking import TokenMasker
from rerank_core.attribution.rank_flip import find_rank_flip
from rerank_core.attribution.words import Part
from rerank_core.models.near_copies import NearCopies

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rerank_core.attribution.rank_flip import RankFlip
    from rerank_core.models.scorer import LanguageModelScorer
    from rerank_core.records import Attribution, Document, Query, Run


def rank_flip(
    attribution: Attribution, query: Query, document: Document, *, scorer: LanguageModelScorer, run: Run
) -> RankFlip | None:
    """Return the few units that hold a document at its rank of a run; None where there are no few.

    A document that is read in chunks never scores below its best chunk but the attributed one.
    """
    part = Part.at(scorer.visible_span(query, document), document)
    masked = TokenMasker(scorer.tokenizer).masked(part.text, word_spans(attribution, part))
    deletion = Deletion(query, masked, attribution.score, rival_scores(run, attribution))
    worths = CoalitionScores(deletion, NearCopies(scorer))
    _, *others = sorted((r.score for r in scorer.readings([(query, document)])[0]), reverse=True)

    def document_scores(coalitions: Sequence[int]) -> list[float]:
        return [max(score, *others[:1]) for score in worths(coalitions)] if others else worths(coalitions)

    return find_rank_flip(deletion, attribution.values, document_scores)


def rival_scores(run: Run, attribution: Attribution) -> tuple[float, ...]:
    """Return the scores of the other documents in a document's list."""
    ranking = run.rankings[attribution.query_id]
    return tuple(
        score
        for doc_id, score in zip(ranking.doc_ids, ranking.scores, strict=True)
        if doc_id != attribution.doc_id
    )
