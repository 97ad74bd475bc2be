"""Which queries train, which tune, which test."""

from __future__ import annotations

import math
from collections.abc import Collection as Some
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, get_args

from rerank_core.data.leakage import check_disjoint
from rerank_core.errors import DataError
from rerank_core.records import Split

if TYPE_CHECKING:
    import numpy as np

MIN_QUERIES_FOR_ONE_SPLIT = 100
NUM_FOLDS = 5

Fold = Mapping[str, Split]
"""`fold[query_id] -> split`."""


def plan_folds(
    query_ids: Some[str], *, shipped: Fold | None, num_folds: int, rng: np.random.Generator
) -> tuple[Fold, ...]:
    """Return the folds of a collection.

    `num_folds` 1 is one split 80:10:10, 2 or more is a cross-validation; 0 takes the collection's own
    (`shipped`) splits, or, where it ships none, cross-validates in 5 folds under 100 queries and splits once
    from 100 on.
    """
    if num_folds == 0 and shipped is not None:
        return (dict(shipped),)
    if num_folds == 0:
        num_folds = NUM_FOLDS if len(query_ids) < MIN_QUERIES_FOR_ONE_SPLIT else 1
    if num_folds == 1:
        return (split_once(query_ids, rng=rng),)
    return cross_validation(query_ids, num_folds=num_folds, rng=rng)


def split_once(query_ids: Some[str], *, rng: np.random.Generator) -> Fold:
    """Return a random split 80:10:10, with at least one query in each part.

    Raises:
        DataError: there are fewer than 3 queries.
    """
    if len(query_ids) < 3:
        raise DataError(
            f"{len(query_ids)} judged queries cannot be split in train, dev and test; at least 3 are needed"
        )
    order = _shuffled(query_ids, rng)
    tenth = max(1, round(len(order) / 10))
    return _fold(order[2 * tenth :], dev=order[tenth : 2 * tenth], test=order[:tenth])


def cross_validation(query_ids: Some[str], *, num_folds: int, rng: np.random.Generator) -> tuple[Fold, ...]:
    """Return folds in which every query is in test exactly once; dev is an eighth of the rest, at least one.

    Raises:
        DataError: there are too few queries for each fold to have some for test, dev and train.
    """
    if len(query_ids) < num_folds or len(query_ids) - math.ceil(len(query_ids) / num_folds) < 2:
        raise DataError(
            f"{len(query_ids)} judged queries are too few for {num_folds} folds; set fewer with --num-folds"
        )
    order = _shuffled(query_ids, rng)
    folds = []
    for k in range(num_folds):
        test = order[k::num_folds]
        rest = [query_id for i, query_id in enumerate(order) if i % num_folds != k]
        num_dev = max(1, round(len(rest) / 8))
        # Each fold takes its dev queries from another place of the order, so that no query tunes every fold.
        start = k * num_dev
        rest = rest[start:] + rest[:start]
        folds.append(_fold(rest[num_dev:], dev=rest[:num_dev], test=test))
    return tuple(folds)


def members(fold: Fold) -> dict[Split, list[str]]:
    """Return the sorted query_ids of each split."""
    return {split: sorted(q for q, own in fold.items() if own == split) for split in get_args(Split)}


def _shuffled(query_ids: Some[str], rng: np.random.Generator) -> list[str]:
    ordered = sorted(query_ids)
    return [ordered[i] for i in rng.permutation(len(ordered))]


def _fold(train: Sequence[str], *, dev: Sequence[str], test: Sequence[str]) -> Fold:
    parts: dict[Split, Sequence[str]] = {"train": train, "dev": dev, "test": test}
    check_disjoint(parts)
    return {query_id: split for split, query_ids in parts.items() for query_id in query_ids}
