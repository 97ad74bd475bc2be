"""Intervals over queries."""

from __future__ import annotations

import numpy as np
import pytest

from rerank_core.errors import DataError
from rerank_core.evaluation.significance import Interval, bootstrap_interval, paired_interval


def values(*numbers: float) -> dict[str, float]:
    return {f"q{n}": number for n, number in enumerate(numbers)}


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert bootstrap_interval(values(0.5, 0.5, 0.5), num_samples=700, seed=0) == Interval(0.5, 0.5, 0.5)


def test_the_interval_is_near_that_of_the_normal_distribution_for_many_queries() -> None:
    numbers = np.random.default_rng(1).normal(2.0, 1.0, size=400)
    interval = bootstrap_interval(values(*numbers), num_samples=4000, seed=0)
    half = 1.96 * numbers.std() / np.sqrt(len(numbers))
    assert interval.mean == pytest.approx(numbers.mean())
    assert interval.low == pytest.approx(numbers.mean() - half, abs=0.01)
    assert interval.high == pytest.approx(numbers.mean() + half, abs=0.01)


def test_the_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for seed in range(200):
        interval = bootstrap_interval(values(*rng.normal(0, 1, size=60)), num_samples=500, seed=seed)
        covered += not interval.excludes_zero
    assert 0.88 <= covered / 200 <= 0.99


def test_seed_and_values_decide_whatever_the_order_of_queries() -> None:
    found = values(0.1, 0.9, 0.4, 0.3)
    backwards = dict(reversed(found.items()))
    interval = bootstrap_interval(found, num_samples=600, seed=5)
    assert interval == bootstrap_interval(backwards, num_samples=600, seed=5)
    assert interval != bootstrap_interval(found, num_samples=600, seed=6)


def test_pairing_removes_what_both_runs_share() -> None:
    baseline = values(*np.random.default_rng(3).normal(0, 5, size=50))
    better = {query_id: value + 0.1 for query_id, value in baseline.items()}
    interval = paired_interval(better, baseline, num_samples=500, seed=0)
    assert interval.mean == pytest.approx(0.1)
    assert interval.excludes_zero
    assert paired_interval(baseline, better, num_samples=500, seed=0).excludes_zero
    assert not paired_interval(baseline, baseline, num_samples=500, seed=0).excludes_zero


def test_runs_of_different_queries_and_of_none_are_refused() -> None:
    with pytest.raises(DataError, match="query 'q1' is in one of two runs"):
        paired_interval(values(1.0, 2.0), values(1.0), num_samples=500, seed=0)
    with pytest.raises(DataError, match="at least one query"):
        bootstrap_interval({}, num_samples=500, seed=0)
