"""Whether a score follows the words that an attribution names: they are deleted, and it is taken again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rerank_core.attribution.deletion import members_of, rank_among
from rerank_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from rerank_core.attribution.deletion import Deletion, Worths

SHARES = (0.01, 0.05, 0.1, 0.2, 0.5)
"""Shares of the words that are deleted, or kept: the bins of ERASER."""

NUM_RANDOM = 20
"""Random orders whose mean every other order is compared with."""

Order = tuple[int, ...]
"""Places of a document's words, those first that are said to raise its score most."""


@dataclass(frozen=True, slots=True)
class Faithfulness:
    """What deleting words in one order does to one document's score, in logits.

    comprehensiveness: mean over `SHARES` of score − score without the first words; larger is more faithful.
    sufficiency: mean over `SHARES` of score − score of the first words alone; smaller is more faithful.
    top_drop: score − score without the first `num_top` words.
    flip: whether the document is placed lower among its rivals without those words; for the random orders
        the share of them.
    Source: DeYoung et al. (2020), ERASER, whose differences are of probabilities, not of logits.
    """

    comprehensiveness: float
    sufficiency: float
    top_drop: float
    flip: float


def order_of(values: Sequence[float]) -> Order:
    """Return the places of values, largest first; equal values keep their order."""
    return tuple(sorted(range(len(values)), key=lambda place: -values[place]))


def random_orders(num_words: int, rng: np.random.Generator) -> list[Order]:
    """Return `NUM_RANDOM` random orders."""
    return [tuple(int(place) for place in rng.permutation(num_words)) for _ in range(NUM_RANDOM)]


def measure_orders(
    deletion: Deletion, orders: Sequence[Order], worths: Worths, *, num_top: int
) -> list[Faithfulness]:
    """Return what each order does to the score.

    Raises:
        DataError: the document has no words.
    """
    if not deletion.masked.spans:
        raise DataError(f"query {deletion.query.query_id!r}: a document without words cannot lose any")
    asked = sorted({coalition for order in orders for coalition in _coalitions(order, num_top=num_top)})
    score_of = dict(zip(asked, worths(asked), strict=True))
    return [_measured(deletion, order, score_of, num_top=num_top) for order in orders]


def mean_of(found: Sequence[Faithfulness]) -> Faithfulness:
    """Return the mean of each measure.

    Raises:
        DataError: there is nothing to take the mean of.
    """
    if not found:
        raise DataError("a mean of no documents was asked for")
    return Faithfulness(
        comprehensiveness=_mean([one.comprehensiveness for one in found]),
        sufficiency=_mean([one.sufficiency for one in found]),
        top_drop=_mean([one.top_drop for one in found]),
        flip=_mean([one.flip for one in found]),
    )


def _measured(
    deletion: Deletion, order: Order, score_of: Mapping[int, float], *, num_top: int
) -> Faithfulness:
    everybody = members_of(order)
    first = [members_of(order[:size]) for size in _sizes(len(order))]
    without_top = score_of[everybody & ~members_of(order[:num_top])]
    return Faithfulness(
        comprehensiveness=deletion.score - _mean([score_of[everybody & ~some] for some in first]),
        sufficiency=deletion.score - _mean([score_of[some] for some in first]),
        top_drop=deletion.score - without_top,
        flip=float(rank_among(without_top, deletion.rivals) > rank_among(deletion.score, deletion.rivals)),
    )


def _coalitions(order: Order, *, num_top: int) -> list[int]:
    """Return the coalitions of words that an order asks about."""
    everybody = members_of(order)
    first = [members_of(order[:size]) for size in _sizes(len(order))]
    return [*first, *(everybody & ~some for some in first), everybody & ~members_of(order[:num_top])]


def _sizes(num_words: int) -> list[int]:
    """Return how many words each share is, at least one."""
    return [max(1, math.ceil(share * num_words)) for share in SHARES]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
