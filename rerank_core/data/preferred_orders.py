"""Which order of a query's candidates beats which."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np

    from rerank_core.records import GradedCandidate


@dataclass(frozen=True, slots=True)
class PreferredOrder:
    """For one query, the chosen order beats the rejected one; `listed` is the first stage's."""

    query_id: str
    listed: tuple[str, ...]
    chosen: tuple[str, ...]
    rejected: tuple[str, ...]


def preferred_orders(
    rows: Iterable[GradedCandidate], *, num_candidates: int, rng: np.random.Generator
) -> list[PreferredOrder]:
    """Return one preference per query, over its first `num_candidates` candidates, in the order of query ids.

    Chosen is the order by grade, equal grades in first-stage order. Rejected is a shuffle that ranks some
    document above one of a higher grade. Queries whose candidates all have the same grade say nothing and
    are left out.
    """
    ordered = sorted(rows, key=lambda row: (row.query_id, row.first_stage_rank))
    preferences = []
    for query_id, group in groupby(ordered, key=lambda row: row.query_id):
        listed = list(group)[:num_candidates]
        if len({row.grade for row in listed}) > 1:
            chosen = sorted(listed, key=lambda row: -row.grade)
            rejected = _worse_shuffle(chosen, rng)
            preferences.append(PreferredOrder(query_id, _ids(listed), _ids(chosen), _ids(rejected)))
    return preferences


def _worse_shuffle(chosen: Sequence[GradedCandidate], rng: np.random.Generator) -> list[GradedCandidate]:
    """Shuffle until the grades no longer fall: with two grades, half of all shuffles do at worst."""
    while True:
        shuffled = [chosen[place] for place in rng.permutation(len(chosen))]
        if [row.grade for row in shuffled] != [row.grade for row in chosen]:
            return shuffled


def _ids(rows: Iterable[GradedCandidate]) -> tuple[str, ...]:
    return tuple(row.doc_id for row in rows)
