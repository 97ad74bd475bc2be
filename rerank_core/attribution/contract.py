"""What attributors ask of a scorer, and what an attribution has to keep."""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING, Protocol

from rerank_core.errors import ConfigError, DataError
from rerank_core.protocols import Scorer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rerank_core.attribution.words import Span
    from rerank_core.records import Attribution, Document, Query

RESIDUAL_LIMIT = 1e-4
"""The largest |score - base value - sum of values|, in logits, that may be stored as an attribution."""


class AttributableScorer(Scorer, Protocol):
    """A scorer that says what it reads of a text: a word that it never sees has no value."""

    def visible_span(self, query: Query, document: Document) -> Span:
        """Return the characters of `document.content` that the scorer reads next to this query.

        Scored alone, what stands there has the document's score.
        """
        ...

    def visible_query(self, query: Query) -> str:
        """Return the part of the query's text, from its start, that the scorer reads."""
        ...


class TextScorer(Protocol):
    """Scores texts of documents, many of them nearly alike."""

    def score_texts(self, texts: Sequence[tuple[Query, str]]) -> list[float]:
        """Return one score per query and text, in their order, as the scorer would give it."""
        ...


def residual(score: float, base_value: float, values: Sequence[float]) -> float:
    """Return what base value and values leave unexplained of the score; 0 for an exact attribution."""
    return score - math.fsum([base_value, *values])


def document_seed(seed: int, query_id: str, *, doc_id: str) -> int:
    """Return a document's own seed, in [0, 2**32): the same on any machine, whatever the list."""
    digest = hashlib.sha256(json.dumps([seed, query_id, doc_id]).encode()).digest()
    return int.from_bytes(digest[:4], "big")


def check_residual(attribution: Attribution) -> None:
    """Refuse an attribution that does not add up to its score.

    Raises:
        DataError: the residual lies outside ±`RESIDUAL_LIMIT`, or is not a number.
    """
    if not abs(attribution.residual) <= RESIDUAL_LIMIT:  # so that NaN fails too
        raise DataError(
            f"query {attribution.query_id!r}, document {attribution.doc_id!r}: base value and values miss the"
            f" score by {attribution.residual:.3g}, more than {RESIDUAL_LIMIT:g}; check that the scorer gives"
            " a pair the same score in any batch"
        )


def check_evals(max_evals: int) -> None:
    """Refuse a budget that does not even reach both ends of the score.

    Raises:
        ConfigError: `max_evals` is below 2.
    """
    if max_evals < 2:
        raise ConfigError(
            f"max_evals must be at least 2, the text with nothing on and with everything on, got {max_evals}"
        )
