"""Any scores in, exact permutation out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rerank_core.errors import DataError
from rerank_core.records import Ranking

if TYPE_CHECKING:
    from collections.abc import Sequence


def rank(
    query_id: str, doc_ids: Sequence[str], *, scores: Sequence[float], first_stage_ranks: Sequence[int]
) -> Ranking:
    """Return the ranking by score, highest first; equal scores keep the first stage's order.

    `scores[i]` and `first_stage_ranks[i]` belong to `doc_ids[i]`.

    Raises:
        DataError: a score is NaN or infinite, or a document or first-stage rank occurs twice.
        ValueError: the lengths differ.
    """
    rows = list(zip(doc_ids, scores, first_stage_ranks, strict=True))
    for doc_id, score, _ in rows:
        if not math.isfinite(score):
            raise DataError(f"score of document {doc_id!r} for query {query_id!r} is {score}; score it again")
    if len(set(doc_ids)) != len(rows) or len(set(first_stage_ranks)) != len(rows):
        raise DataError(
            f"query {query_id!r} has a document or first-stage rank twice; run `whyrank prepare` again"
        )
    ordered = sorted(rows, key=lambda row: (-row[1], row[2]))
    return Ranking(
        query_id, tuple(doc_id for doc_id, _, _ in ordered), tuple(score for _, score, _ in ordered)
    )


def is_permutation(ranking: Ranking, doc_ids: Sequence[str]) -> bool:
    """Whether the ranking holds exactly the given documents, each once."""
    return sorted(ranking.doc_ids) == sorted(doc_ids)
