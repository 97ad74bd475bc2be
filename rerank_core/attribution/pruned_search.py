"""Owen values at a lower cost: groups are split a second time only where that is likely to change them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from heapq import heappop, heappush
from statistics import fmean, median
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rerank_core.attribution.search import Search, SearchResult
from rerank_core.attribution.token_tree import group_members, group_sizes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rerank_core.attribution.token_tree import Merge

CALL_SIZE = 6
"""New coalitions after which the model is asked."""

SECOND_CONTEXT_SHARE = 0.5
"""How much a second context counts in the order of the search, against the first one.

Splitting a group for the first time also shapes the values in its other context. Of 1 and 0.5, 0.5 had the
smaller error (docs/experiments.md).
"""

CALL_SHARE = 0.5
"""A visit is split in a call only if it promises this share of what the most promising one does."""

ERROR_FACTOR = 1.5
"""The bound on the error over the error to be expected, as calibrated (docs/experiments.md)."""

NUM_DRAWS = 64
"""Errors drawn to know the error to be expected."""

CHECK_GROWTH = 1.1
"""A search that may end early asks for its bound each time the evaluations have grown by this factor."""

LEAST_KNOWN = 16
"""Borrowers that must have been split before a bound is stated."""

FloatArray = npt.NDArray[np.float64]


def pruned_search(
    merges: Sequence[Merge], *, max_evals: int, max_error: float, rng: np.random.Generator
) -> Search:
    """Return a search that spends evaluations where the two contexts of a group disagree.

    In an Owen value each of two neighbouring groups is valued without and with the other, and the mean of the
    two contexts is taken, at every level of the tree. Here a group's players are first valued in one context,
    drawn at random. The other context borrows that division and only shifts it, equally, to its own sum: with
    f00, f10, f01 and f11 the worths without both groups, with one and with both, the shift is the half
    interaction (f11 − f10 − f01 + f00) / 2. So `base_value + sum(values)` is exact at any time, and the draw
    is fair: borrowing adds no bias where all groups have been split once. The context whose own sum differs
    most from the borrowed one, weighted by its share of the value, is split next. A group that nobody has
    split shares its sum out equally. With enough evaluations the values are the exact Owen values.

    The search ends when everything has been split, after `max_evals` evaluations, or, with a `max_error`
    above 0, as soon as a bound on its error is known and at most that. Worths that are known are not asked
    for again.

    The bound is `ERROR_FACTOR` times the error to be expected, the root mean square of `NUM_DRAWS` draws: the
    players of each group that is not split lie off its division, independently of each other, by what earlier
    splits have shown to be usual, and who borrows a division borrows what it is off by. It is meant to cover
    the error of nine texts in ten, and did so for every scorer that it was held against, at each number of
    evaluations (docs/benchmarks); on games with saturation it covers between about four in five and all.
    None is stated before `LEAST_KNOWN` borrowers have been split.
    """
    recursion = _Recursion(merges, rng)
    worths: dict[int, float] = {}
    ends = [0, recursion.everybody]
    worths.update(zip(ends, (yield ends), strict=True))
    recursion.start(worths)
    next_check = 0.0
    while True:
        if max_error > 0 and len(worths) >= next_check:
            if _is_within(max_error, recursion):
                break
            next_check = len(worths) * CHECK_GROWTH
        batch = recursion.next_batch(worths, room=max_evals - len(worths))
        if not batch:
            break
        asked = list(dict.fromkeys(one for visit in batch for one in recursion.coalitions(visit)))
        new = [coalition for coalition in asked if coalition not in worths]
        if new:
            worths.update(zip(new, (yield new), strict=True))
        for visit in batch:
            recursion.split(visit, worths)
    values, error = recursion.values(), _bound(recursion)
    return SearchResult(worths[0], tuple(values.tolist()), len(worths), error)


def _is_within(max_error: float, recursion: _Recursion) -> bool:
    """Return whether the values are known to be as near as asked for."""
    error = _bound(recursion)
    return error is not None and error <= max_error


def _bound(recursion: _Recursion) -> float | None:
    """Return the bound on the error; 0 where nothing is left to split, None where too little is known."""
    expected = recursion.expected_error()
    return None if expected is None else ERROR_FACTOR * expected


@dataclass(slots=True, eq=False)
class _Visit:
    """A group in one context: it brings the worth from `low`, of the players `without` it, to `high`."""

    group: int
    without: int
    low: float
    high: float
    weight: float  # its share in the value of each of its players
    cousins: tuple[_Visit, ...] = ()  # the same group, below the visit from which this one's parent borrows
    twin: _Visit | None = None  # the same group in the other context
    pairs: tuple[tuple[_Visit, _Visit], ...] = ()  # its two parts, each in two contexts, once it is split
    order: int = 0  # when it was split

    @property
    def change(self) -> float:
        return self.high - self.low

    def borrowed_change(self) -> float | None:
        """Return the sum of the division that a visit borrows until it is split; None where nobody lends."""
        if self.twin is not None and self.twin.pairs:
            return self.twin.change
        return _mean_change(self.cousins) if self.cousins else None

    def lender(self) -> _Visit | None:
        """Return the split visit of the same group from which this one borrows."""
        known = [visit for visit in (self.twin, *self.cousins) if visit is not None and visit.pairs]
        return known[0] if known else None


class _Recursion:
    """The visits of one search, and the order in which they are split."""

    def __init__(self, merges: Sequence[Merge], rng: np.random.Generator) -> None:
        self._merges = merges
        self._members, self._sizes = group_members(merges), group_sizes(merges)
        self._num_players = len(merges) + 1
        self._rng = rng
        self._queue: list[tuple[float, int, _Visit]] = []
        self._num_pushed = self._num_split = 0
        self._first_changes: list[float] = []  # what first splits have changed, squared, by weight squared
        # How far one player lay off what was expected before a split; off equal shares; off the borrowed
        self._first_deviations: list[float] = []
        self._later_deviations: list[float] = []
        self.everybody = self._members[-1]

    def expected_error(self) -> float | None:
        """Return the length that the error of the values is expected to have; 0 only where all is split.

        None says that too little is known: few splits of borrowers, or none that has changed anything.
        """
        if not self._queue:
            return 0.0
        if len(self._later_deviations) < LEAST_KNOWN:
            return None
        drawn = _DrawnErrors(
            self._sizes, first=median(self._first_deviations), later=fmean(self._later_deviations)
        )
        errors = self._estimate(self._root, None, drawn)
        return math.sqrt(float((errors**2).sum()) / NUM_DRAWS) or None

    def start(self, worths: Mapping[int, float]) -> None:
        root = len(self._members) - 1
        self._root = _Visit(root, 0, worths[0], worths[self.everybody], weight=1.0)
        self._push(self._root, abs(self._root.change))

    def coalitions(self, visit: _Visit) -> tuple[int, int]:
        """Return the coalitions whose worths it takes to split a visit."""
        left, right = self._merges[visit.group - self._num_players]
        return visit.without | self._members[left], visit.without | self._members[right]

    def next_batch(self, worths: Mapping[int, float], *, room: int) -> list[_Visit]:
        """Return the visits to split next, for at most `room` new evaluations; none when all is done."""
        batch: list[_Visit] = []
        new: set[int] = set()
        least = CALL_SHARE * -self._queue[0][0] if self._queue else 0.0
        while self._queue and len(new) < CALL_SIZE and -self._queue[0][0] >= least:
            visit = self._queue[0][2]
            wanted = new | {one for one in self.coalitions(visit) if one not in worths}
            if len(wanted) > room:
                break
            new = wanted
            heappop(self._queue)
            batch.append(visit)
        return batch

    def split(self, visit: _Visit, worths: Mapping[int, float]) -> None:
        """Visit both parts of a group, each without and with the other part."""
        lender = visit.lender()
        cousins = lender.pairs if lender else ((), ())
        visit.pairs = tuple(self._pair(visit, place, worths, cousins[place]) for place in (0, 1))
        self._num_split += 1
        visit.order = self._num_split
        for pair in visit.pairs:
            self._push_first(pair)
        if lender:
            expected = _mean_change(lender.pairs[0]) + self._share(visit.change - lender.change, visit)
            self._later_deviations.append(self._deviation(visit, expected))
        else:
            self._first_changes.append(self._change_of_first(visit))
            self._first_deviations.append(self._deviation(visit, self._share(visit.change, visit)))
        twin = visit.twin
        if twin is not None and not twin.pairs:
            self._push(twin, SECOND_CONTEXT_SHARE * twin.weight * abs(twin.change - visit.change))

    def values(self) -> FloatArray:
        """Return the value of each player as far as it is known, (players,)."""
        return self._estimate(self._root, None, self._equal_shares)[:, 0]

    def _pair(
        self, parent: _Visit, place: int, worths: Mapping[int, float], cousins: tuple[_Visit, ...]
    ) -> tuple[_Visit, _Visit]:
        """Return the visits of a parent's first or second part, without and with the other part."""
        part = self._merges[parent.group - self._num_players][place]
        with_part, with_other = self.coalitions(parent)[:: -1 if place else 1]
        half = parent.weight / 2
        alone = _Visit(part, parent.without, parent.low, worths[with_part], half, cousins)
        beside = _Visit(part, with_other, worths[with_other], parent.high, half, cousins)
        alone.twin, beside.twin = beside, alone
        return alone, beside

    def _push_first(self, pair: tuple[_Visit, _Visit]) -> None:
        """Queue one of two contexts, drawn at random; the other follows when this one has been split."""
        chosen = pair[int(self._rng.integers(2))]
        weight = 2 * chosen.weight
        if chosen.cousins:
            self._push(chosen, weight * abs(_mean_change(pair) - _mean_change(chosen.cousins)))
        else:  # opposite effects may hide in a sum
            hidden = median(self._first_changes or [0.0])
            self._push(chosen, weight * math.sqrt(_mean_change(pair) ** 2 + hidden))

    def _change_of_first(self, visit: _Visit) -> float:
        """Return how far the parts of a visit lie from equal shares of its change, squared and summed."""
        size = self._sizes[visit.group]
        return math.fsum(
            (_mean_change(pair) - visit.change * self._sizes[pair[0].group] / size) ** 2
            for pair in visit.pairs
        )

    def _share(self, change: float, visit: _Visit) -> float:
        """Return the first part's share of a change, by the number of its players."""
        return change * self._sizes[visit.pairs[0][0].group] / self._sizes[visit.group]

    def _deviation(self, visit: _Visit, expected: float) -> float:
        """Return how far a player lies off what was expected, as the sum over the first part shows it.

        Where the players of a group deviate independently, but not their sum, this estimates the deviation of
        one, whatever the sizes of the parts.
        """
        first, second = (self._sizes[pair[0].group] for pair in visit.pairs)
        return abs(_mean_change(visit.pairs[0]) - expected) * math.sqrt(1 / first + 1 / second)

    def _push(self, visit: _Visit, priority: float) -> None:
        if visit.group < self._num_players:
            return
        self._num_pushed += 1
        heappush(self._queue, (-priority, self._num_pushed, visit))

    def _equal_shares(self, visit: _Visit) -> FloatArray:
        size = self._sizes[visit.group]
        return np.full((size, 1), visit.change / size)

    def _estimate(
        self, visit: _Visit, borrowed: FloatArray | None, own: Callable[[_Visit], FloatArray]
    ) -> FloatArray:
        """Return what each player of a visited group adds, (players of the group, columns of `own`).

        A visit that is not split has its `own` part, and what the borrowed ones differ from each other.
        """
        if visit.pairs:
            cut = self._sizes[visit.pairs[0][0].group]
            below = (None, None) if borrowed is None else (borrowed[:cut], borrowed[cut:])
            return np.concatenate(
                [self._mean_estimate(pair, part, own) for pair, part in zip(visit.pairs, below, strict=True)]
            )
        if borrowed is None or len(borrowed) == 1:
            return own(visit)
        shifted: FloatArray = borrowed - borrowed.sum(axis=0) / len(borrowed) + own(visit)
        return shifted

    def _mean_estimate(
        self,
        pair: tuple[_Visit, _Visit],
        borrowed: FloatArray | None,
        own: Callable[[_Visit], FloatArray],
    ) -> FloatArray:
        """Return the mean over two contexts; the one that was split first lends to the other."""
        first, second = pair
        if second.pairs and not (first.pairs and first.order < second.order):
            first, second = second, first
        lent = self._estimate(first, borrowed, own)
        return (lent + self._estimate(second, lent if first.pairs else borrowed, own)) / 2


class _DrawnErrors:
    """What the players of visits that are not split lie off by, an error per player and draw.

    Together a visit's players are not off. Each is off by what is usual where nobody lends; or by what is
    usual of borrowers and also by as much as its part of the shift, which is shared out equally.
    """

    def __init__(self, sizes: Sequence[int], *, first: float, later: float) -> None:
        self._sizes, self._first, self._later = sizes, first, later
        self._rng = np.random.default_rng(0)  # the same state has the same bound
        self._none = np.zeros((1, NUM_DRAWS))
        self._drawn: dict[_Visit, FloatArray] = {}

    def __call__(self, visit: _Visit) -> FloatArray:
        size = self._sizes[visit.group]
        if size == 1:
            return self._none
        borrowed = visit.borrowed_change()
        if borrowed is None:
            return self._first * self._of_either_context(visit, size)
        return math.hypot(self._later, (visit.change - borrowed) / size) * self._draw(size)

    def _of_either_context(self, visit: _Visit, size: int) -> FloatArray:
        """Return one draw for both contexts of a group that has been split in neither."""
        drawn = self._drawn.get(visit.twin) if visit.twin else None
        if drawn is None:
            drawn = self._drawn[visit] = self._draw(size)
        return drawn

    def _draw(self, size: int) -> FloatArray:
        drawn = self._rng.standard_normal((size, NUM_DRAWS))
        centred: FloatArray = drawn - drawn.sum(axis=0) / size
        return centred


def _mean_change(visits: tuple[_Visit, ...]) -> float:
    return math.fsum(visit.change for visit in visits) / len(visits)
