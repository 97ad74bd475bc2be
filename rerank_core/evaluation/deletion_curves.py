"""How a score falls as words are deleted tenth by tenth, on a scale between the worst and the best order.

AOPC = mean over the steps i of score − score without the words of the first i steps; one step is one word of
a text of up to ten words, and else a tenth of them. Source: Samek et al. (2017). Its values depend on the
scale of a model's scores, so two models cannot be compared by them. Normalised, per document:

    NAOPC = (AOPC − lower) / (upper − lower)

where lower and upper are the least and the largest AOPC of any order. Source: Edin et al. (2025), Normalized
AOPC, whose steps are single words. Up to `MAX_EXACT_WORDS` words both are exact. Beyond, a greedy search
finds them only approximately: the true ones lie further out. As every order that is measured counts as found
too, NAOPC lies between 0 and 1, and is flattered where the search fell short.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import TYPE_CHECKING

from rerank_core.attribution.deletion import members_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rerank_core.attribution.deletion import Worths
    from rerank_core.evaluation.faithfulness import Order

NUM_STEPS = 10
MAX_EXACT_WORDS = 8
"""Up to so many words the bounds are found by trying all coalitions, 2^8 of them."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The least and the largest AOPC of a document; for those of a greedy search, that were found."""

    lower: float
    upper: float

    def normalised(self, aopc: float) -> float:
        """Return where between the bounds an AOPC lies, 0 to 1; 1/2 where both are equal, as of one word."""
        width = self.upper - self.lower
        return (aopc - self.lower) / width if width > 0 else 0.5


def step_sizes(num_words: int) -> list[int]:
    """Return how many words are gone after each step: 1, 2, … or the tenths, rounded up; the last is all."""
    return sorted({math.ceil(step * num_words / NUM_STEPS) for step in range(1, NUM_STEPS + 1)})


def deletion_coalitions(order: Order) -> list[int]:
    """Return the words that are left after each step."""
    everybody = members_of(order)
    return [everybody & ~members_of(order[:size]) for size in step_sizes(len(order))]


def aopc(score: float, worths: Sequence[float]) -> float:
    """Return the mean fall from a score to the scores after each step."""
    return score - math.fsum(worths) / len(worths)


def measure_curves(orders: Sequence[Order], *, score: float, worths: Worths) -> list[dict[str, float]]:
    """Return for each order of one text's words AOPC, NAOPC and the scores along the way.

    `deleted_10` … `deleted_100` are the scores without the first tenths of the words, `inserted_10` … those
    of the first tenths alone. The first order, reversed, counts as found for the bounds too.
    """
    asked = sorted({one for order in orders for one in _curve_coalitions(order)})
    score_of = dict(zip(asked, worths(asked), strict=True))
    curves = [_curve(order, score, score_of) for order in orders]
    reverse = aopc(score, worths(deletion_coalitions(orders[0][::-1])))
    bounds = widened(
        aopc_bounds(len(orders[0]), score=score, worths=worths),
        [reverse, *(found["aopc"] for found in curves)],
    )
    return [{**found, "naopc": bounds.normalised(found["aopc"])} for found in curves]


def _curve(order: Order, score: float, score_of: Mapping[int, float]) -> dict[str, float]:
    measures = {"aopc": aopc(score, [score_of[one] for one in deletion_coalitions(order)])}
    everybody = members_of(order)
    for tenth in range(1, NUM_STEPS + 1):
        first = members_of(order[: math.ceil(tenth * len(order) / NUM_STEPS)])
        measures[f"deleted_{tenth * 10}"] = score_of[everybody & ~first]
        measures[f"inserted_{tenth * 10}"] = score_of[first]
    return measures


def _curve_coalitions(order: Order) -> list[int]:
    """Return the words that are left after each step, and those that are gone."""
    return [*deletion_coalitions(order), *(members_of(order[:size]) for size in step_sizes(len(order)))]


def aopc_bounds(num_words: int, *, score: float, worths: Worths) -> Bounds:
    """Return the bounds of AOPC over all orders: exact for few words, else those of a greedy search."""
    if num_words <= MAX_EXACT_WORDS:
        return exact_bounds(num_words, score=score, worths=worths)
    return greedy_bounds(num_words, score=score, worths=worths)


def exact_bounds(num_words: int, *, score: float, worths: Worths) -> Bounds:
    """Return the bounds of AOPC over all orders, from the scores of all 2^n coalitions of n words.

    An order is a path from all words down to none; the best path to a coalition extends the best one to a
    coalition of one step before it.
    """
    coalitions = range(2**num_words)
    worth_of = dict(zip(coalitions, worths(coalitions), strict=True))
    sizes = [0, *step_sizes(num_words)]
    least = most = {2**num_words - 1: 0.0}
    for before, after in pairwise(sizes):
        gone = after - before
        least = _extended(least, gone, worth_of, choose=min)
        most = _extended(most, gone, worth_of, choose=max)
    num_steps = len(sizes) - 1
    return Bounds(score - most[0] / num_steps, score - least[0] / num_steps)


def greedy_bounds(num_words: int, *, score: float, worths: Worths) -> Bounds:
    """Return the AOPC of two greedy orders: each step deletes the words that, alone, lower or raise most.

    About 5 n evaluations of each for n words: a step tries every word that is left. The true bounds are at
    least as far apart. Source: Edin et al. (2025) search by beams; this is a beam of one, by tenths.
    """
    return Bounds(
        aopc(score, _greedy_path(num_words, worths, sign=-1)),
        aopc(score, _greedy_path(num_words, worths, sign=1)),
    )


def widened(bounds: Bounds, found: Sequence[float]) -> Bounds:
    """Return bounds that hold for every AOPC that was found, too."""
    return Bounds(min([bounds.lower, *found]), max([bounds.upper, *found]))


def _greedy_path(num_words: int, worths: Worths, *, sign: int) -> list[float]:
    """Return the scores after each step; `sign` is 1 for the order that lowers the score soonest."""
    left: list[int] = list(range(num_words))
    path: list[float] = []
    for before, after in pairwise([0, *step_sizes(num_words)]):
        everybody = members_of(left)
        without = worths([everybody & ~(1 << word) for word in left])
        found = sorted(zip((sign * worth for worth in without), left, strict=True))
        left = sorted(word for _, word in found[after - before :])
        path += worths([members_of(left)])
    return path


def _extended(
    sums: Mapping[int, float],
    num_gone: int,
    worth_of: Mapping[int, float],
    *,
    choose: Callable[[float, float], float],
) -> dict[int, float]:
    """Return the best sum of scores along a path to each coalition of `num_gone` words less."""
    extended: dict[int, float] = {}
    for coalition, total in sums.items():
        members = [word for word in range(coalition.bit_length()) if coalition >> word & 1]
        for gone in combinations(members, num_gone):
            left = coalition & ~members_of(gone)
            reached = total + worth_of[left]
            extended[left] = choose(extended.get(left, reached), reached)
    return extended
