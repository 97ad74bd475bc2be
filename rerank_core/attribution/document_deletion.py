"""A document of a list without some of its attributed words, and how a language model then scores it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rerank_core.attribution.deletion import CoalitionScores, Deletion, attributed_part, word_spans
from rerank_core.attribution.masking import TokenMasker
from rerank_core.models.near_copies import NearCopies
from rerank_core.records import Document

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rerank_core.attribution.deletion import Worths
    from rerank_core.models.scorer import LanguageModelScorer
    from rerank_core.records import Attribution, Query

NUM_CHUNKS = 16
"""Chunks that are scored between two calls of `before_call`."""


def document_deletion(  # noqa: PLR0913 - a document in its list, and who may end the work
    scorer: LanguageModelScorer,
    attribution: Attribution,
    *,
    query: Query,
    document: Document,
    rivals: Sequence[float],
    before_call: Callable[[], None] = lambda: None,
) -> tuple[Deletion, Worths]:
    """Return a document whose attributed words can be deleted, and its scores without some of them.

    `rivals` are the scores of the other documents in its list. A document that is read in chunks scores no
    lower than its best chunk but the attributed one: these others are scored here, `NUM_CHUNKS` at a time.
    `before_call` is called before each such call of the model, not before those of the scores that are
    returned; what it raises ends the work.

    Raises:
        DataError: the attribution is of no part that the scorer reads.
    """
    spans = scorer.visible_spans(query, document)
    part = attributed_part(attribution, document, spans)
    masked = TokenMasker(scorer.tokenizer).masked(part.text, word_spans(attribution, part))
    deletion = Deletion(query, masked, attribution.score, tuple(rivals))
    worths = CoalitionScores(deletion, NearCopies(scorer))
    others = [Document("", document.content[start:end]) for start, end in spans if start != part.start]
    if not others:
        return deletion, worths
    floor = -math.inf
    for first in range(0, len(others), NUM_CHUNKS):
        before_call()
        floor = max(floor, *scorer.score(query, others[first : first + NUM_CHUNKS]))

    def document_scores(coalitions: Sequence[int]) -> list[float]:
        return [max(score, floor) for score in worths(coalitions)]

    return deletion, document_scores
