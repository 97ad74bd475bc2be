"""Owen values by shap's best-first search, coalition for coalition."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING

from rerank_core.attribution.search import Search, SearchResult
from rerank_core.attribution.token_tree import group_members, group_sizes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from rerank_core.attribution.token_tree import Merge

CALL_SIZE = 5
"""Coalitions after which shap asks the model (it asks in pairs, so for six)."""


def partition_search(
    merges: Sequence[Merge], *, fixed: int, max_evals: int, rng: np.random.RandomState
) -> Search:
    """Return a search that asks for the coalitions of shap 0.50's Partition explainer, in its order.

    The group whose worth matters most is split next, in both contexts: without and with its sibling. What is
    left unsplit after `max_evals` evaluations is shared out equally among the players below. `fixed` holds
    players that nothing switches off. shap breaks ties by numpy's global generator; with the same seed `rng`
    breaks them alike.

    Source: Owen (1977), nested as in Winter (1989); the order of the search is shap's (MIT licence), checked
    against it in the tests.
    """
    members, sizes = group_members(merges), group_sizes(merges)
    num_players, root = len(merges) + 1, 2 * len(merges)
    ((base_value,), (whole,)) = (yield [fixed]), (yield [members[root]])
    credit = [0.0] * len(sizes)
    queue: list[tuple[float, float, tuple[int, float, float, int, float]]] = []
    heappush(queue, (0.0, 0.0, (0, base_value, whole, root, 1.0)))
    num_evals, limit = 0, max_evals - 2
    while queue and num_evals < limit:
        batch: list[tuple[int, float, float, int, float]] = []
        coalitions: list[int] = []
        while queue and len(coalitions) < CALL_SIZE and num_evals + len(coalitions) < limit:
            item = heappop(queue)[2]
            without, low, high, group, weight = item
            if group < num_players:
                credit[group] += (high - low) * weight
                continue
            left, right = merges[group - num_players]
            batch.append(item)
            coalitions += [without | members[left], without | members[right]]
        if not batch:
            continue
        worths = yield [coalition | fixed for coalition in coalitions]
        tie_breaks = iter(rng.randn(4 * len(batch)).tolist())
        num_evals += len(coalitions)
        for place, (without, low, high, group, weight) in enumerate(batch):
            left, right = merges[group - num_players]
            with_left, with_right = coalitions[2 * place : 2 * place + 2]
            of_left, of_right = worths[2 * place : 2 * place + 2]
            half = weight / 2
            for item in (
                (without, low, of_left, left, half),
                (without, low, of_right, right, half),
                (with_right, of_right, high, left, half),
                (with_left, of_left, high, right, half),
            ):
                heappush(queue, (-abs(item[2] - item[1]) * half, next(tie_breaks), item))
    for _, _, (_, low, high, group, weight) in sorted(queue):
        credit[group] += (high - low) * weight
    _share_out(credit, merges, sizes)
    return SearchResult(base_value, tuple(credit[:num_players]), num_evals + 2, None)


def _share_out(credit: list[float], merges: Sequence[Merge], sizes: Sequence[int]) -> None:
    """Pass the credit of every group down to its players, in equal shares, in place."""
    num_players = len(merges) + 1
    for group in range(len(credit) - 1, num_players - 1, -1):
        for child in merges[group - num_players]:
            credit[child] += credit[group] * sizes[child] / sizes[group]
