"""Owen values at a lower cost: groups are split a second time only where that is likely to change them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from heapq import heappop, heappush
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rerank_core.attribution.search import Search, SearchResult
from rerank_core.attribution.token_tree import group_members, group_sizes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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

ERROR_FACTOR = 1.6
"""The bound on the error over its estimate, as calibrated on five scorers (docs/experiments.md)."""

MOVED_SHARE = 2.0
"""How much the squared change by the second half of the evaluations counts in the bound."""

SNAPSHOT_GROWTH = 1.25
"""A search that may end anywhere keeps its values each time the evaluations have grown by this factor."""

LEAST_KNOWN = 16
"""Borrowers that must have been split before a bound is stated."""

Vector = npt.NDArray[np.float64]


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

    The bound is `ERROR_FACTOR` times the root of a sum of squared lengths: of what the visits that are not
    split are expected to change, and of what the second half of the evaluations has changed, times
    `MOVED_SHARE`, and as much smaller as these expectations have become since.
    """
    recursion = _Recursion(merges, rng)
    worths: dict[int, float] = {}
    ends = [0, recursion.everybody]
    worths.update(zip(ends, (yield ends), strict=True))
    recursion.start(worths)
    history = _History(_snapshot(recursion, worths), max_evals=None if max_error > 0 else max_evals)
    while not (max_error > 0 and _is_within(max_error, recursion, worths, history)):
        batch = recursion.next_batch(worths, room=max_evals - len(worths))
        if not batch:
            break
        asked = list(dict.fromkeys(one for visit in batch for one in recursion.coalitions(visit)))
        new = [coalition for coalition in asked if coalition not in worths]
        if new:
            worths.update(zip(new, (yield new), strict=True))
        for visit in batch:
            recursion.split(visit, worths)
        if history.is_due(len(worths)):
            history.keep(_snapshot(recursion, worths))
    end = _snapshot(recursion, worths)
    error = _bound(end, history.halfway(end.num_evals))
    return SearchResult(worths[0], tuple(end.values.tolist()), end.num_evals, error)


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """The state of a search after some evaluations."""

    num_evals: int
    values: Vector
    expected_change: float | None


def _snapshot(recursion: _Recursion, worths: Mapping[int, float]) -> _Snapshot:
    return _Snapshot(len(worths), recursion.values(), recursion.expected_change())


def _is_within(
    max_error: float, recursion: _Recursion, worths: Mapping[int, float], history: _History
) -> bool:
    """Return whether the values are known to be as near as asked for."""
    expected = recursion.expected_change()
    if expected is None or ERROR_FACTOR * math.sqrt(expected) > max_error:
        return False  # without the values, which take longer
    error = _bound(_snapshot(recursion, worths), history.halfway(len(worths)))
    return error is not None and error <= max_error


def _bound(now: _Snapshot, halfway: _Snapshot) -> float | None:
    """Return the bound on the error; 0 where nothing is left to split, None where too little is known."""
    expected = now.expected_change
    if not expected:
        return expected
    moved = now.values - halfway.values
    shrunk = min(1.0, expected / halfway.expected_change) if halfway.expected_change else 1.0
    return ERROR_FACTOR * math.sqrt(expected + MOVED_SHARE * float(moved @ moved) * shrunk**2)


class _History:
    """Earlier states of a search; with `max_evals`, that after half of that many evaluations."""

    def __init__(self, first: _Snapshot, *, max_evals: int | None) -> None:
        self._snapshots = [first]
        self._next = first.num_evals * SNAPSHOT_GROWTH if max_evals is None else max_evals / 2
        self._growth = SNAPSHOT_GROWTH if max_evals is None else math.inf

    def is_due(self, num_evals: int) -> bool:
        """Return whether the state is to be kept."""
        return num_evals >= self._next

    def keep(self, snapshot: _Snapshot) -> None:
        """Keep a state for later."""
        self._snapshots.append(snapshot)
        self._next = snapshot.num_evals * self._growth

    def halfway(self, num_evals: int) -> _Snapshot:
        """Return the state after about half of some evaluations."""
        return min(self._snapshots, key=lambda kept: abs(2 * kept.num_evals - num_evals))


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
    pending: float = 0.0  # what splitting it is expected to change

    @property
    def change(self) -> float:
        return self.high - self.low

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
        # What splits have changed, squared, by weight squared: against equal shares; against the borrowed
        self._first_changes: list[float] = []
        self._later_changes: list[float] = []
        self.everybody = self._members[-1]

    def expected_change(self) -> float | None:
        """Return the squared length of what the values are expected to change; 0 only where all is split.

        None says that too little is known: few splits, or none that has changed anything.

        Each visit that is not split changes what its split is expected to, and one that borrows also what no
        worth has shown yet: the median of what splits of borrowers have changed, per unit of weight.
        """
        if not self._queue:
            return 0.0
        if len(self._later_changes) < LEAST_KNOWN:
            return None
        hidden = median(self._later_changes)
        expected = math.fsum(
            visit.pending**2 + (hidden * visit.weight**2 if visit.lender() else 0.0)
            for _, _, visit in self._queue
        )
        return expected or None

    def start(self, worths: Mapping[int, float]) -> None:
        root = len(self._members) - 1
        self._root = _Visit(root, 0, worths[0], worths[self.everybody], weight=1.0)
        self._push(self._root, abs(self._root.change), priority=1.0)

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
        changes = [self._push_first(pair) for pair in visit.pairs]
        if lender:
            self._later_changes.append(math.fsum(change**2 for change in changes) / visit.weight**2)
        else:
            self._first_changes.append(self._change_of_first(visit))
        twin = visit.twin
        if twin is not None and not twin.pairs:
            self._push(twin, twin.weight * abs(twin.change - visit.change), priority=SECOND_CONTEXT_SHARE)

    def values(self) -> Vector:
        """Return the value of each player as far as it is known, (players,)."""
        return self._estimate(self._root, None)

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

    def _push_first(self, pair: tuple[_Visit, _Visit]) -> float:
        """Queue one of two contexts, drawn at random, and return what the pair changes in the values.

        The other context follows when this one has been split.
        """
        chosen = pair[int(self._rng.integers(2))]
        weight = 2 * chosen.weight
        if chosen.cousins:
            change = weight * abs(_mean_change(pair) - _mean_change(chosen.cousins))
            self._push(chosen, change, priority=1.0)
        else:  # opposite effects may hide in a sum
            change = weight * abs(_mean_change(pair))
            hidden = weight**2 * median(self._first_changes or [0.0])
            self._push(chosen, math.sqrt(change**2 + hidden), priority=1.0)
        return change

    def _change_of_first(self, visit: _Visit) -> float:
        """Return how far the parts of a visit lie from equal shares of its change, squared and summed."""
        size = self._sizes[visit.group]
        return math.fsum(
            (_mean_change(pair) - visit.change * self._sizes[pair[0].group] / size) ** 2
            for pair in visit.pairs
        )

    def _push(self, visit: _Visit, pending: float, *, priority: float) -> None:
        if visit.group < self._num_players:
            return
        visit.pending = pending
        self._num_pushed += 1
        heappush(self._queue, (-priority * pending, self._num_pushed, visit))

    def _estimate(self, visit: _Visit, borrowed: Vector | None) -> Vector:
        """Return what each player of a visited group adds, (players of the group,)."""
        size = self._sizes[visit.group]
        if visit.pairs:
            cut = self._sizes[visit.pairs[0][0].group]
            below = (None, None) if borrowed is None else (borrowed[:cut], borrowed[cut:])
            return np.concatenate(
                [self._mean_estimate(*pair, part) for pair, part in zip(visit.pairs, below, strict=True)]
            )
        if borrowed is None:
            return np.full(size, visit.change / size)
        shifted: Vector = borrowed + (visit.change - borrowed.sum()) / size
        return shifted

    def _mean_estimate(self, first: _Visit, second: _Visit, borrowed: Vector | None) -> Vector:
        """Return the mean over two contexts; the one that was split first lends to the other."""
        if second.pairs and not (first.pairs and first.order < second.order):
            first, second = second, first
        lent = self._estimate(first, borrowed)
        return (lent + self._estimate(second, lent if first.pairs else borrowed)) / 2


def _mean_change(visits: tuple[_Visit, ...]) -> float:
    return math.fsum(visit.change for visit in visits) / len(visits)
