"""An estimate is measured against the exact values."""

import pytest

from rerank_core.errors import DataError
from rerank_core.evaluation.attribution_error import attribution_error

EXACT = [3.0, -2.0, 0.5, 0.25, -0.125, 0.0625, 0.0]


def test_the_exact_values_have_no_error():
    error = attribution_error(EXACT, EXACT, bound=0.0)
    assert (error.relative_l2, error.kendall_tau, error.top_5, error.top_10) == (0.0, 1.0, 1.0, 1.0)
    assert error.is_covered


def test_zeros_have_a_relative_error_of_one():
    assert attribution_error([0.0] * 7, EXACT, bound=None).relative_l2 == 1.0


def test_reversed_values_have_the_opposite_order():
    error = attribution_error([-value for value in EXACT], EXACT, bound=None)
    assert error.kendall_tau == pytest.approx(-1.0)
    assert error.top_5 == 1.0  # the top is by size, whatever the sign


def test_the_top_is_counted_by_place():
    error = attribution_error([0.0, -2.0, 0.5, 0.25, -0.125, 0.0625, 9.0], EXACT, bound=None)
    assert error.top_5 == 0.8  # the last place instead of the first


@pytest.mark.parametrize(("bound", "is_covered"), [(1.0, True), (0.9, False), (None, False)])
def test_a_bound_covers_the_length_of_what_is_missed(bound, is_covered):
    error = attribution_error([1.0, 1.0], [1.0, 0.0], bound=bound)
    assert error.length == 1.0
    assert error.is_covered is is_covered


def test_values_that_are_all_zero_can_be_compared():
    assert attribution_error([0.0], [0.0], bound=None).relative_l2 == 0.0
    assert attribution_error([1.0], [0.0], bound=None).relative_l2 == 1.0


def test_other_numbers_of_values_are_refused():
    with pytest.raises(DataError, match="2 values cannot be compared with 1 exact ones"):
        attribution_error([1.0, 2.0], [1.0], bound=None)
    with pytest.raises(DataError, match="0 values"):
        attribution_error([], [], bound=None)
