"""An attribution that does not add up to its score is refused."""

import math

import pytest

from rerank_core.attribution.contract import check_residual, residual
from rerank_core.errors import DataError
from rerank_core.records import Attribution


def _attribution(residual_value):
    return Attribution(
        query_id="q1",
        doc_id="d7",
        score=1.0,
        base_value=1.0 - residual_value,
        units=(),
        values=(),
        method="test",
        num_evals=1,
        residual=residual_value,
        seed=0,
    )


def test_the_residual_is_what_base_value_and_values_leave_of_the_score():
    assert residual(3.0, 1.0, [0.5, 0.25]) == 1.25


@pytest.mark.parametrize("value", [0.0, 1e-3, -1e-3])
def test_a_residual_within_the_limit_is_accepted(value):
    check_residual(_attribution(value))


@pytest.mark.parametrize("value", [1.1e-3, -1.1e-3, math.nan, math.inf])
def test_a_residual_beyond_the_limit_is_refused_by_name(value):
    with pytest.raises(DataError, match=r"'q1', document 'd7'.*more than 0\.001"):
        check_residual(_attribution(value))
