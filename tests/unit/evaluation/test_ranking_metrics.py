"""Metrics on lists small enough to work out by hand."""

from __future__ import annotations

from math import log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_core.errors import DataError
from rerank_core.evaluation.ranking_metrics import NDCG_BURGES, evaluate, metrics
from rerank_core.records import Ranking

MEASURED = metrics(relevant_from=2)


def ranking(*doc_ids: str, query_id: str = "q") -> Ranking:
    return Ranking(query_id, doc_ids, tuple(0.0 for _ in doc_ids))


def values(doc_ids: list[str], grades: dict[str, int]) -> dict[str, float]:
    found = evaluate({"q": ranking(*doc_ids)}, {"q": grades}, measured=MEASURED)
    return {name: by_query["q"] for name, by_query in found.items()}


def test_the_two_gains_are_what_their_labels_say() -> None:
    found = values(["a", "b"], {"a": 1, "b": 3})
    assert found["ndcg@10"] == pytest.approx((1 + 3 / log2(3)) / (3 + 1 / log2(3)))
    assert found[NDCG_BURGES] == pytest.approx((1 + 7 / log2(3)) / (7 + 1 / log2(3)))
    labels = {metric.name: metric.label for metric in MEASURED}
    assert labels[NDCG_BURGES] == "ndcg_burges@10 (gain 2^g-1)"
    assert labels["ndcg@5"] == "ndcg@5 (gain g)"


def test_only_grades_from_the_cut_count_as_relevant() -> None:
    found = values(["a", "b", "c"], {"a": 1, "b": 2, "c": 3})
    assert found["mrr"] == pytest.approx(1 / 2)
    assert found["map"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert {m.name: m.label for m in MEASURED}["map"] == "map (grade 2 or more is relevant)"


def test_unjudged_documents_count_as_grade_0_and_missed_ones_as_missed() -> None:
    found = values(["new", "a"], {"a": 2, "missed": 2})
    assert found["ndcg@10"] == pytest.approx((2 / log2(3)) / (2 + 2 / log2(3)))
    assert found["map"] == pytest.approx((1 / 2) / 2)


def test_ranks_below_the_cut_do_not_count() -> None:
    others = [f"d{n}" for n in range(5)]
    found = values([*others, "a"], {"a": 2, **dict.fromkeys(others, 0)})
    assert found["ndcg@5"] == 0
    assert found["ndcg@10"] == pytest.approx(1 / log2(7))


def test_a_query_without_relevant_documents_has_the_value_0() -> None:
    assert set(values(["a", "b"], {"a": 0, "b": 0}).values()) == {0.0}


def test_an_empty_ranking_has_the_value_0() -> None:
    assert set(values([], {"a": 2}).values()) == {0.0}


def test_the_order_counts_as_it_stands_even_among_equal_scores() -> None:
    assert values(["a", "b"], {"a": 2})["mrr"] == 1
    assert values(["b", "a"], {"a": 2})["mrr"] == 0.5


def test_queries_keep_their_own_values_whatever_their_lengths() -> None:
    rankings = {"q1": ranking("b", "a", query_id="q1"), "q2": ranking("c", query_id="q2")}
    qrels = {"q1": {"a": 3}, "q2": {"c": 2, "d": 0, "e": 0}, "unranked": {"a": 1}}
    assert evaluate(rankings, qrels, measured=MEASURED)["mrr"] == {"q1": 0.5, "q2": 1.0}


def test_one_metric_alone_is_measured_too() -> None:
    assert evaluate({"q": ranking("a")}, {"q": {"a": 1}}, measured=MEASURED[:1]) == {NDCG_BURGES: {"q": 1.0}}


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.randoms())
def test_the_order_by_grade_is_the_best_one(grades: list[int], random: object) -> None:
    grade_by_doc = {f"d{n}": grade for n, grade in enumerate(grades)}
    best = sorted(grade_by_doc, key=lambda doc_id: -grade_by_doc[doc_id])
    other = list(best)
    random.shuffle(other)  # type: ignore[attr-defined]
    ideal, found = values(best, grade_by_doc), values(other, grade_by_doc)
    assert all(found[name] <= ideal[name] + 1e-9 for name in found)
    assert ideal[NDCG_BURGES] == pytest.approx(1 if any(grades) else 0)


def test_nothing_to_evaluate_and_unjudged_queries_are_refused() -> None:
    with pytest.raises(DataError, match="there is no ranking to evaluate"):
        evaluate({}, {"q": {"a": 1}}, measured=MEASURED)
    with pytest.raises(DataError, match="query 'q' of the run is not judged"):
        evaluate({"q": ranking("a")}, {}, measured=MEASURED)
