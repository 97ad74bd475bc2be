"""Queries are the unit; models are compared on the documents that both measured."""

import pytest

from rerank_core.errors import DataError
from rerank_core.evaluation.document_table import (
    MeasuredDocuments,
    kind_pairs,
    mean_row,
    name_pairs,
    paired_differences,
)

SETTINGS = {"num_samples": 500, "seed": 0}


def measured(name, kind, **values):
    """`q1_a=3.0` is 3 for query q1 and document a."""
    return MeasuredDocuments(name, kind, {(key[:2], key[3:]): {"x": x} for key, x in values.items()})


def test_a_query_counts_once_however_many_documents_it_has():
    row = mean_row(measured("dpo", "own", q1_a=1.0, q1_b=3.0, q2_a=8.0), **SETTINGS)
    assert (row.num_queries, row.num_documents) == (2, 3)
    assert row.values["x"].mean == pytest.approx((2 + 8) / 2)
    assert (row.values["x"].low, row.values["x"].high) == (2, 8)


def test_nothing_measured_is_refused():
    with pytest.raises(DataError, match="dpo own: no document was measured"):
        mean_row(measured("dpo", "own"), **SETTINGS)


def test_a_difference_is_over_common_documents_only():
    pair = (measured("dpo", "own", q1_a=5.0, q1_b=100.0), measured("sft", "own", q1_a=2.0, q2_a=100.0))
    (found,) = paired_differences([pair], measures=["x"], **SETTINGS)
    assert (found.first, found.second) == (("dpo", "own"), ("sft", "own"))
    assert (found.num_queries, found.num_documents, found.difference.mean) == (1, 1, 3.0)


def test_models_without_a_common_document_have_no_difference():
    pair = (measured("dpo", "own", q1_a=5.0), measured("sft", "own", q1_b=2.0))
    assert paired_differences([pair], measures=["x"], **SETTINGS) == []


def test_pairs_are_of_one_kind_or_of_one_name():
    rows = [measured(name, kind) for name in ("sft", "dpo") for kind in ("own", "random")]
    assert [(first.name, second.name, first.kind) for first, second in name_pairs(rows)] == [
        ("dpo", "sft", "own"),
        ("dpo", "sft", "random"),
    ]
    assert [(first.name, second.kind) for first, second in kind_pairs(rows, kind="own")] == [
        ("sft", "random"),
        ("dpo", "random"),
    ]
