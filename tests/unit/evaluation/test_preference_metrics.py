"""Preferences on lists small enough to work out by hand."""

from __future__ import annotations

from itertools import combinations
from math import exp, log, log1p

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_core.errors import DataError
from rerank_core.evaluation.preference_metrics import (
    PAIRWISE_ACCURACY,
    PAIRWISE_LOSS,
    TOP1_ACCURACY,
    preference_values,
)
from rerank_core.records import Ranking


def ranking(scores: dict[str, float], query_id: str = "q") -> Ranking:
    ordered = sorted(scores, key=lambda doc_id: -scores[doc_id])  # stable
    return Ranking(query_id, tuple(ordered), tuple(scores[doc_id] for doc_id in ordered))


def values(scores: dict[str, float], grades: dict[str, int]) -> dict[str, float]:
    found = preference_values({"q": ranking(scores)}, {"q": grades})
    return {name: by_query["q"] for name, by_query in found.items()}


def test_one_pair_has_the_loss_of_its_margin() -> None:
    found = values({"good": 1.5, "bad": -0.5}, {"good": 3, "bad": 1})
    assert found[PAIRWISE_LOSS] == pytest.approx(log1p(exp(-2.0)))
    assert (found[PAIRWISE_ACCURACY], found[TOP1_ACCURACY]) == (1.0, 1.0)


def test_equal_scores_cost_ln_2_and_count_half() -> None:
    found = values({"a": 0.3, "b": 0.3, "c": 0.3}, {"b": 2, "c": 1})
    assert found[PAIRWISE_LOSS] == pytest.approx(log(2))
    assert found[PAIRWISE_ACCURACY] == 0.5
    assert found[TOP1_ACCURACY] == 0.0  # "a" stands first, and has grade 0


def test_the_first_document_needs_the_top_grade_of_the_candidates_and_may_share_it() -> None:
    grades = {"a": 2, "b": 2, "c": 0, "missed": 9}
    assert values({"b": 2.0, "a": 1.0, "c": 0.0}, grades)[TOP1_ACCURACY] == 1.0
    assert values({"c": 2.0, "a": 1.0, "b": 0.0}, grades)[TOP1_ACCURACY] == 0.0


def test_huge_margins_neither_overflow_nor_vanish() -> None:
    assert values({"bad": 1e4, "good": -1e4}, {"good": 1})[PAIRWISE_LOSS] == pytest.approx(2e4)
    assert values({"good": 1e4, "bad": -1e4}, {"good": 1})[PAIRWISE_LOSS] == 0.0


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-3, 3)), min_size=2, max_size=9))
def test_all_metrics_are_means_over_the_pairs_of_different_grades(rows: list[tuple[int, int]]) -> None:
    grades = {f"d{n}": grade for n, (grade, _) in enumerate(rows)}
    scores = {f"d{n}": float(score) for n, (_, score) in enumerate(rows)}
    pairs = [sorted(pair, key=grades.__getitem__) for pair in combinations(grades, 2)]
    margins = [scores[better] - scores[worse] for worse, better in pairs if grades[better] > grades[worse]]
    if not margins:
        with pytest.raises(DataError, match="no query has candidates of different grades"):
            values(scores, grades)
        return
    found = values(scores, grades)
    assert found[PAIRWISE_LOSS] == pytest.approx(np.mean([-log(1 / (1 + exp(-m))) for m in margins]))
    assert found[PAIRWISE_ACCURACY] == pytest.approx(np.mean([(np.sign(m) + 1) / 2 for m in margins]))


def test_reversed_scores_turn_the_accuracy_round() -> None:
    grades = {"a": 3, "b": 1, "c": 0, "d": 0}
    scores = {"a": 0.2, "b": 0.9, "c": 0.4, "d": 0.2}
    backwards = {doc_id: -score for doc_id, score in scores.items()}
    accuracies = [values(found, grades)[PAIRWISE_ACCURACY] for found in (scores, backwards)]
    assert sum(accuracies) == pytest.approx(1.0)


def test_queries_without_a_preference_have_no_value() -> None:
    rankings = {
        "q1": ranking({"a": 1.0, "b": 0.0}, "q1"),
        "flat": ranking({"a": 1.0, "b": 0.0}, "flat"),
        "one": ranking({"a": 1.0}, "one"),
        "none": ranking({}, "none"),
    }
    qrels = {"q1": {"a": 1}, "flat": {"a": 2, "b": 2}, "one": {"a": 1}, "none": {"a": 1}}
    found = preference_values(rankings, qrels)
    assert {tuple(by_query) for by_query in found.values()} == {("q1",)}


def test_a_query_that_nobody_judged_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="query 'q' of the run is not judged"):
        preference_values({"q": ranking({"a": 1.0})}, {"other": {"a": 1}})
