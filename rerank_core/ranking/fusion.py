"""One score from two, for one query's list."""

from __future__ import annotations

import math
from statistics import fmean, pstdev
from typing import TYPE_CHECKING

from rerank_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping


def fuse(first: Mapping[str, float], second: Mapping[str, float], *, weight: float) -> dict[str, float]:
    """Return `(1 - weight) * z(first) + weight * z(second)` by document, in the order of `first`.

    `z` standardises one query's list to mean 0 and (population) standard deviation 1, so that scores of
    different scale can be added; a list of equal scores says nothing and becomes zeros. Weight 0 keeps the
    order of `first`, weight 1 gives that of `second`.

    Raises:
        DataError: the two lists score different documents, or a score is NaN or infinite.
        ValueError: the weight lies outside [0, 1].
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight must lie in [0, 1], got {weight}")
    if first.keys() != second.keys():
        different = sorted(first.keys() ^ second.keys())[0]
        raise DataError(f"document {different!r} has one of two scores; score the same candidates with both")
    left, right = _standardised(first), _standardised(second)
    return {doc_id: (1 - weight) * left[doc_id] + weight * right[doc_id] for doc_id in first}


def _standardised(score_by_doc: Mapping[str, float]) -> dict[str, float]:
    for doc_id, score in score_by_doc.items():
        if not math.isfinite(score):
            raise DataError(f"score of document {doc_id!r} is {score}; score it again")
    scores = list(score_by_doc.values())
    if len(set(scores)) < 2:
        return dict.fromkeys(score_by_doc, 0.0)
    mean, deviation = fmean(scores), pstdev(scores)
    return {doc_id: (score - mean) / deviation for doc_id, score in score_by_doc.items()}
