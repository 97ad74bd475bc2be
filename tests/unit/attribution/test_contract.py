"""An attribution that does not add up to its score is refused."""

import math

import pytest

from rerank_core.attribution.contract import check_residual, document_seed, residual
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


@pytest.mark.parametrize("value", [0.0, 1e-4, -1e-4])
def test_a_residual_within_the_limit_is_accepted(value):
    check_residual(_attribution(value))


@pytest.mark.parametrize("value", [1.1e-4, -1.1e-4, math.nan, math.inf])
def test_a_residual_beyond_the_limit_is_refused_by_name(value):
    with pytest.raises(DataError, match=r"'q1', document 'd7'.*more than 0\.0001"):
        check_residual(_attribution(value))


def test_a_document_has_its_own_seed_on_every_machine():
    assert document_seed(0, "q1", doc_id="d1") == 3107248747
    assert len({document_seed(s, q, doc_id=d) for s in (0, 1) for q in ("q", "q2") for d in ("d", "2d")}) == 8
