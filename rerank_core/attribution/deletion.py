"""A document without some of its words: what is left of it, and how that scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rerank_core.attribution.words import Part
from rerank_core.errors import DataError

if TYPE_CHECKING:
    from rerank_core.attribution.contract import TextScorer
    from rerank_core.attribution.masking import MaskedText
    from rerank_core.attribution.words import Span
    from rerank_core.records import Attribution, Document, Query

Worths = Callable[[Sequence[int]], Sequence[float]]
"""The scores of what is left of a document for coalitions of its words."""


@dataclass(frozen=True, slots=True)
class Deletion:
    """A scored document whose words can be deleted, and the scores of the others in its list."""

    query: Query
    masked: MaskedText  # its players are the words
    score: float
    rivals: tuple[float, ...]


def word_spans(attribution: Attribution, part: Part) -> list[Span]:
    """Return where an attribution's units lie in the part of the document that the scorer reads."""
    return [
        (unit.start + shift, unit.end + shift)
        for unit in attribution.units
        for shift in [part.text_start if unit.field == "text" else -part.start]
    ]


def attributed_part(attribution: Attribution, document: Document, spans: Sequence[Span]) -> Part:
    """Return the part of a document, of those that its scorer reads, in which an attribution's units lie.

    Raises:
        DataError: they lie in none.
    """
    for part in (Part.at(span, document) for span in spans):
        lie_there = (
            start >= 0 and part.text[start:end] == unit.text
            for (start, end), unit in zip(word_spans(attribution, part), attribution.units, strict=True)
        )
        if all(lie_there):
            return part
    raise DataError(
        f"query {attribution.query_id!r}, document {attribution.doc_id!r}: the attributed words lie in no"
        " part that the scorer reads; attribute again with this artefact"
    )


def members_of(places: Sequence[int]) -> int:
    """Return the coalition of some words: an integer, bit i is word i."""
    return sum(1 << place for place in places)


class CoalitionScores:
    """The scores of what is left of one document, each coalition of its words scored once."""

    def __init__(self, deletion: Deletion, texts: TextScorer) -> None:
        self._query = deletion.query
        self._masked = deletion.masked
        self._texts = texts
        self._score_of: dict[int, float] = {}

    def __call__(self, coalitions: Sequence[int]) -> list[float]:
        """Return one score per coalition, in their order.

        Raises:
            DataError: a score is not finite.
        """
        new = sorted(set(coalitions) - self._score_of.keys())
        scores = self._texts.score_texts([(self._query, self._masked.left(one)) for one in new])
        if not all(math.isfinite(score) for score in scores):
            raise DataError(f"query {self._query.query_id!r}: the score of a masked text is not a number")
        self._score_of.update(zip(new, scores, strict=True))
        return [self._score_of[one] for one in coalitions]


def rank_among(score: float, rivals: Sequence[float]) -> int:
    """Return the rank of a score beside those of the other documents; it stands above equal ones."""
    return 1 + sum(rival > score for rival in rivals)
