"""What every way to attribute has in common: it asks for coalitions, and ends with a value per player."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SearchResult:
    """One value per player; `base_value + sum(values)` is the worth of all players together.

    `error` is an estimated bound on the Euclidean length of what the values miss of the exact ones: 0 where
    they are exact, None where the search knows no bound.
    """

    base_value: float
    values: tuple[float, ...]
    num_evals: int
    error: float | None


Search = Generator[list[int], Sequence[float], SearchResult]
"""Yields coalitions, each an integer whose bit i is player i, and is sent their worths, in that order."""


def run_searches(
    searches: Sequence[Search], worths: Callable[[list[tuple[int, int]]], Sequence[float]]
) -> list[SearchResult]:
    """Run searches in lock-step, and return their results in order.

    In every round `worths` is given what all searches that still run ask for, as pairs of a search's index
    and a coalition; one call of a model answers them together.
    """
    results: dict[int, SearchResult] = {}
    asked: dict[int, list[int]] = {index: next(search) for index, search in enumerate(searches)}
    while asked:
        answers = iter(worths([(index, one) for index, coalitions in asked.items() for one in coalitions]))
        for index, coalitions in list(asked.items()):
            try:
                asked[index] = searches[index].send([next(answers) for _ in coalitions])
            except StopIteration as end:
                results[index] = end.value
                del asked[index]
    return [results[index] for index in range(len(searches))]
