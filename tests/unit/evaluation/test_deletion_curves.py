"""AOPC between its bounds: exact for few words, and never wider than exact where they were searched."""

from itertools import permutations

import numpy as np
import pytest

from rerank_core.evaluation.deletion_curves import (
    Bounds,
    aopc,
    aopc_bounds,
    deletion_coalitions,
    exact_bounds,
    greedy_bounds,
    measure_curves,
    step_sizes,
)
from rerank_core.evaluation.faithfulness import random_orders


def additive(weights):
    """Return the worths of a text whose words add their weights."""
    return lambda coalitions: [
        sum(weight for word, weight in enumerate(weights) if one >> word & 1) for one in coalitions
    ]


def tabled(num_words, rng):
    """Return the worths of a text whose every coalition has a score of its own."""
    table = rng.normal(size=2**num_words)
    return lambda coalitions: [float(table[one]) for one in coalitions]


def enumerated(num_words, worths):
    """Return the bounds over all orders, one after the other."""
    (score,) = worths([2**num_words - 1])
    found = [aopc(score, worths(deletion_coalitions(order))) for order in permutations(range(num_words))]
    return Bounds(min(found), max(found))


def test_a_step_is_a_word_of_a_short_text_and_a_tenth_of_a_long_one():
    assert step_sizes(4) == [1, 2, 3, 4]
    assert step_sizes(10) == list(range(1, 11))
    assert step_sizes(25) == [3, 5, 8, 10, 13, 15, 18, 20, 23, 25]


def test_aopc_is_the_mean_fall_of_the_score():
    worths = additive([3.0, 1.0, 0.0])
    assert aopc(4.0, worths(deletion_coalitions((0, 1, 2)))) == pytest.approx((3 + 4 + 4) / 3)
    assert aopc(4.0, worths(deletion_coalitions((2, 1, 0)))) == pytest.approx((0 + 1 + 4) / 3)


@pytest.mark.parametrize("num_words", [1, 2, 5, 6])
def test_exact_bounds_are_those_of_all_orders(num_words, rng):
    worths = tabled(num_words, rng)
    (score,) = worths([2**num_words - 1])
    found, expected = exact_bounds(num_words, score=score, worths=worths), enumerated(num_words, worths)
    assert (found.lower, found.upper) == pytest.approx((expected.lower, expected.upper))


@pytest.mark.parametrize("num_words", [3, 8])
def test_a_greedy_search_finds_bounds_of_orders_that_exist(num_words, rng):
    for _ in range(20):
        worths = tabled(num_words, rng)
        (score,) = worths([2**num_words - 1])
        exact = exact_bounds(num_words, score=score, worths=worths)
        found = greedy_bounds(num_words, score=score, worths=worths)
        assert exact.lower - 1e-9 <= found.lower <= found.upper <= exact.upper + 1e-9


def test_a_greedy_search_is_exact_where_words_do_not_interact(rng):
    weights = rng.normal(size=8)
    worths, score = additive(weights), float(weights.sum())
    exact = exact_bounds(8, score=score, worths=worths)
    found = greedy_bounds(8, score=score, worths=worths)
    assert (found.lower, found.upper) == pytest.approx((exact.lower, exact.upper))


def test_few_words_are_bounded_exactly_and_many_by_search(rng):
    for num_words, bounds in [(8, exact_bounds), (9, greedy_bounds)]:
        worths = tabled(num_words, rng)
        assert aopc_bounds(num_words, score=1.0, worths=worths) == bounds(num_words, score=1.0, worths=worths)


def test_the_best_order_has_a_normalised_aopc_of_one_the_worst_of_zero_and_chance_half(rng):
    weights = np.arange(30.0)
    best = tuple(range(29, -1, -1))
    curves = measure_curves(
        [best, best[::-1], *random_orders(30, rng)], score=float(weights.sum()), worths=additive(weights)
    )
    assert [found["naopc"] for found in curves[:2]] == pytest.approx([1.0, 0.0])
    assert np.mean([found["naopc"] for found in curves[2:]]) == pytest.approx(0.5, abs=0.1)


def test_every_normalised_aopc_lies_between_the_bounds_whatever_the_search_missed(rng):
    for _ in range(10):
        table = tabled(12, rng)
        curves = measure_curves(random_orders(12, rng), score=0.0, worths=table)
        assert all(0 <= found["naopc"] <= 1 for found in curves)


def test_normalising_takes_a_models_scale_away(rng):
    weights, orders = rng.normal(size=12), random_orders(12, rng)
    small, large = (
        measure_curves(orders, score=float(scale * weights.sum()), worths=additive(scale * weights))
        for scale in (1.0, 50.0)
    )
    assert [one["naopc"] for one in small] == pytest.approx([one["naopc"] for one in large])
    assert [50 * one["aopc"] for one in small] == pytest.approx([one["aopc"] for one in large])


def test_the_curves_are_the_scores_along_the_way():
    (found,) = measure_curves([(0, 1, 2, 3, 4)], score=15.0, worths=additive([5.0, 4.0, 3.0, 2.0, 1.0]))
    assert [found[f"deleted_{share}"] for share in (10, 20, 30, 100)] == [10, 10, 6, 0]
    assert [found[f"inserted_{share}"] for share in (10, 20, 30, 100)] == [5, 5, 9, 15]


def test_a_text_of_one_word_lies_in_the_middle_of_nothing():
    (found,) = measure_curves([(0,)], score=2.0, worths=additive([2.0]))
    assert (found["aopc"], found["naopc"]) == (2.0, 0.5)
