"""Intervals and tests over queries."""

from __future__ import annotations

from itertools import product
from operator import mul

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_core.errors import DataError
from rerank_core.evaluation.significance import (
    NUM_EXACT_QUERIES,
    Interval,
    bootstrap_interval,
    holm,
    paired_interval,
    randomisation_test,
)


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


# --- the randomisation test


def enumerated_p(differences: list[int]) -> float:
    """By definition, in whole numbers: over all signs, the share of sums at least as far from 0."""
    sums = [abs(sum(map(mul, signs, differences))) for signs in product((-1, 1), repeat=len(differences))]
    return float(np.mean([found >= abs(sum(differences)) for found in sums]))


def p_of(differences: list[float], *, num_samples: int) -> float:
    zeros = values(*[0.0] * len(differences))
    return randomisation_test(values(*differences), zeros, num_samples=num_samples, seed=0)


@given(st.lists(st.integers(-6, 6), min_size=1, max_size=9))
def test_for_few_queries_the_p_value_is_that_of_all_sign_assignments(numbers: list[int]) -> None:
    assert p_of([number / 8 for number in numbers], num_samples=1) == enumerated_p(numbers)


def test_rounding_does_not_hide_assignments_that_are_as_large() -> None:
    tenths = [1, 2, 3, 1, 2, 3, -6]  # many sums equal the observed one, 6
    assert p_of([number / 10 for number in tenths], num_samples=1) == enumerated_p(tenths)


def test_n_queries_that_all_agree_have_the_smallest_p_value_there_is() -> None:
    better, baseline = values(*[0.3] * 10), values(*[0.1] * 10)
    for first, second in ((better, baseline), (baseline, better)):  # two-sided
        assert randomisation_test(first, second, num_samples=1, seed=0) == 2 / 2**10


def test_equal_runs_have_the_p_value_1() -> None:
    for num_queries in (3, NUM_EXACT_QUERIES + 1):
        found = values(*[0.4] * num_queries)
        assert randomisation_test(found, found, num_samples=700, seed=0) == 1.0


def test_sampling_comes_near_the_exact_value(rng: np.random.Generator) -> None:
    numbers = [int(number) for number in rng.normal(6, 20, size=NUM_EXACT_QUERIES + 1)]
    exact = enumerated_p(numbers)
    assert 0.05 < exact < 0.95
    four_errors = 4 * (exact * (1 - exact) / 20_000) ** 0.5
    assert p_of([float(number) for number in numbers], num_samples=20_000) == pytest.approx(
        exact, abs=four_errors
    )


def test_a_sampled_p_value_is_never_0_and_depends_on_seed_and_values_alone(rng: np.random.Generator) -> None:
    baseline = values(*rng.normal(0, 1, size=40))
    better = {query_id: value + 1 for query_id, value in baseline.items()}
    assert randomisation_test(better, baseline, num_samples=999, seed=0) == 1 / 1000
    near = values(
        *(value + noise for value, noise in zip(baseline.values(), rng.normal(0, 1, 40), strict=True))
    )
    backwards = dict(reversed(near.items()))
    p_value = randomisation_test(near, baseline, num_samples=999, seed=3)
    assert p_value == randomisation_test(backwards, baseline, num_samples=999, seed=3)
    assert p_value != randomisation_test(near, baseline, num_samples=999, seed=4)


def test_runs_that_do_not_differ_are_seldom_called_different(rng: np.random.Generator) -> None:
    below = sum(
        randomisation_test(
            values(*rng.normal(0, 1, 20)), values(*rng.normal(0, 1, 20)), num_samples=199, seed=seed
        )
        <= 0.05
        for seed in range(300)
    )
    assert 0.01 <= below / 300 <= 0.09


def test_tests_of_different_queries_and_of_none_are_refused() -> None:
    with pytest.raises(DataError, match="query 'q1' is in one of two runs"):
        randomisation_test(values(1.0, 2.0), values(1.0), num_samples=10, seed=0)
    with pytest.raises(DataError, match="a test needs the values of at least one query"):
        randomisation_test({}, {}, num_samples=10, seed=0)


# --- several comparisons


def test_holm_corrects_a_worked_example() -> None:
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert adjusted == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert list(adjusted) == ["a", "b", "c", "d"]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.5))
def test_holm_rejects_step_by_step_until_the_first_that_is_too_large(
    p_values: list[float], level: float
) -> None:
    named = {str(n): p_value for n, p_value in enumerate(p_values)}
    rejected = set()
    for place, name in enumerate(sorted(named, key=lambda name: named[name])):
        if (len(named) - place) * named[name] > level:
            break
        rejected.add(name)
    assert {name for name, p_value in holm(named).items() if p_value <= level} == rejected


def test_one_comparison_needs_no_correction_and_none_gives_none() -> None:
    assert holm({"a": 0.2}) == {"a": 0.2}
    assert holm({}) == {}


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan")])
def test_what_is_no_p_value_is_refused_by_name(wrong: float) -> None:
    with pytest.raises(ValueError, match="the p-value of 'b'"):
        holm({"b": wrong})
