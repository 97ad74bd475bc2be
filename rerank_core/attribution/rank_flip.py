"""The few words without which a document would stand lower in its list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rerank_core.attribution.deletion import members_of, rank_among

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rerank_core.attribution.deletion import Deletion, Worths

MAX_DELETED = 10
"""Words that are deleted at most: a list of more explains little."""

MAX_FLIP_EVALS = MAX_DELETED + MAX_DELETED * (MAX_DELETED + 1) // 2 - 1
"""Texts that a search scores at most: with one word less after the other, then with each one put back."""


@dataclass(frozen=True, slots=True)
class RankFlip:
    """Words whose deletion lowers a document's rank, while putting any one of them back undoes it."""

    places: tuple[int, ...]  # of the words, from left to right
    rank: int  # with all words
    flipped_rank: int
    score: float  # without the words, in logits


def find_rank_flip(deletion: Deletion, values: Sequence[float], worths: Worths) -> RankFlip | None:
    """Return a smallest set, under the search below, of words without which a document stands lower.

    `values` are the words' attributed values. Words are deleted one after the other, those with the largest
    values first, until the rank falls; then the one with the smallest value is put back whose return leaves
    the rank fallen, as long as there is one. The ranks are those of scores that were taken, not of sums of
    values; the other documents stay as they are. None where the first `MAX_DELETED` words with positive
    values do not suffice, or none has one.
    """
    order = sorted((i for i, value in enumerate(values) if value > 0), key=lambda i: -values[i])[:MAX_DELETED]
    everybody = members_of(range(len(values)))
    rank = rank_among(deletion.score, deletion.rivals)

    def ranks_without(sets: Sequence[Sequence[int]]) -> list[int]:
        scores = worths([everybody & ~members_of(places) for places in sets])
        return [rank_among(score, deletion.rivals) for score in scores]

    prefixes = [order[:size] for size in range(1, len(order) + 1)]
    fallen = [found for found, lower in zip(prefixes, ranks_without(prefixes), strict=True) if lower > rank]
    if not fallen:
        return None
    places = fallen[0]
    while len(places) > 1:
        smaller = [places[:at] + places[at + 1 :] for at in reversed(range(len(places)))]
        still = [some for some, lower in zip(smaller, ranks_without(smaller), strict=True) if lower > rank]
        if not still:
            break
        places = still[0]
    (score,) = worths([everybody & ~members_of(places)])
    return RankFlip(tuple(sorted(places)), rank, rank_among(score, deletion.rivals), score)
