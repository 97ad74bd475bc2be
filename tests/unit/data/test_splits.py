"""Every query is tested once, and in one split only."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_core.data.leakage import check_disjoint
from rerank_core.data.splits import cross_validation, members, plan_folds, split_once
from rerank_core.errors import DataError

if TYPE_CHECKING:
    from rerank_core.records import Split


def ids(count: int) -> list[str]:
    return [f"q{n}" for n in range(count)]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_a_query_in_two_splits_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="query 'b' is in two splits, train and test"):
        check_disjoint({"train": ["a", "b"], "dev": ["c"], "test": ["b"]})
    check_disjoint({"train": ["a", "a"], "dev": ["c"], "test": []})


@given(st.integers(3, 300))
def test_one_split_is_80_10_10_of_all_queries(count: int) -> None:
    found = members(split_once(ids(count), rng=rng()))
    assert sorted(q for query_ids in found.values() for q in query_ids) == sorted(ids(count))
    tenth = max(1, round(count / 10))
    assert (len(found["dev"]), len(found["test"])) == (tenth, tenth)


@given(st.integers(2, 12), st.integers(4, 120))
def test_every_query_is_tested_exactly_once(num_folds: int, count: int) -> None:
    if count < num_folds or count - -(-count // num_folds) < 2:
        with pytest.raises(DataError, match="too few"):
            cross_validation(ids(count), num_folds=num_folds, rng=rng())
        return
    folds = cross_validation(ids(count), num_folds=num_folds, rng=rng())
    tested = Counter(query_id for fold in folds for query_id in members(fold)["test"])
    assert tested == dict.fromkeys(ids(count), 1)
    for fold in folds:
        assert sorted(fold) == sorted(ids(count))
        assert all(members(fold).values())


def test_94_queries_make_five_folds_with_an_eighth_of_the_rest_in_dev() -> None:
    folds = plan_folds(ids(94), shipped=None, num_folds=0, rng=rng())
    sizes = [{split: len(found) for split, found in members(fold).items()} for fold in folds]
    assert sizes == [{"train": 66, "dev": 9, "test": 19}] * 4 + [{"train": 66, "dev": 10, "test": 18}]


def test_folds_tune_on_different_queries() -> None:
    folds = plan_folds(ids(94), shipped=None, num_folds=0, rng=rng())
    assert len({tuple(members(fold)["dev"]) for fold in folds}) == 5


def test_a_hundred_queries_are_split_once_unless_folds_are_asked_for() -> None:
    assert len(plan_folds(ids(100), shipped=None, num_folds=0, rng=rng())) == 1
    assert len(plan_folds(ids(100), shipped=None, num_folds=3, rng=rng())) == 3


def test_shipped_splits_are_taken_unless_folds_are_asked_for() -> None:
    shipped: dict[str, Split] = {"q0": "train", "q1": "dev", "q2": "test"}
    assert plan_folds(ids(3), shipped=shipped, num_folds=0, rng=rng()) == (shipped,)
    assert len(plan_folds(ids(30), shipped=shipped, num_folds=1, rng=rng())[0]) == 30


def test_the_split_depends_on_the_seed_and_not_on_the_order_of_queries() -> None:
    assert split_once(ids(50), rng=rng()) == split_once(set(ids(50)), rng=rng())
    assert split_once(ids(50), rng=rng()) != split_once(ids(50), rng=np.random.default_rng(1))


def test_too_few_queries_are_refused() -> None:
    with pytest.raises(DataError, match="2 judged queries cannot be split"):
        split_once(ids(2), rng=rng())
    with pytest.raises(DataError, match="4 judged queries are too few for 5 folds"):
        cross_validation(ids(4), num_folds=5, rng=rng())
