"""Runs beside their baselines, and a fusion weight chosen on other queries."""

from __future__ import annotations

import numpy as np
import pytest

from rerank_core.errors import DataError
from rerank_core.evaluation.comparison import (
    MeasuredRun,
    check_candidates,
    choose_weight,
    compare,
    fused_rankings,
    measure_baselines,
)
from rerank_core.evaluation.ranking_metrics import NDCG_BURGES, evaluate, metrics
from rerank_core.records import Candidate, Document, Ranking

MEASURED = metrics(relevant_from=1)
CANDIDATES = {
    query_id: [Candidate(Document(doc_id, ""), n, 4.0 - n) for n, doc_id in enumerate("abc", start=1)]
    for query_id in ("q1", "q2")
}
QRELS = {"q1": {"c": 2, "a": 1}, "q2": {"b": 1}}
REVERSED = {query_id: Ranking(query_id, ("c", "b", "a"), (3.0, 2.0, 1.0)) for query_id in CANDIDATES}


def test_baselines_lie_between_floor_and_ideal() -> None:
    found = measure_baselines(
        CANDIDATES, QRELS, measured=MEASURED, num_permutations=50, rng=np.random.default_rng(0)
    )
    means = {kind: np.mean(list(run.values[NDCG_BURGES].values())) for kind, run in found.items()}
    assert means["floor"] < means["random"] < means["ideal"] == 1
    assert means["floor"] <= means["first_stage"] <= means["ideal"]


def test_the_table_compares_every_run_with_the_first_stage() -> None:
    baselines = measure_baselines(
        CANDIDATES, QRELS, measured=MEASURED, num_permutations=5, rng=np.random.default_rng(0)
    )
    run = MeasuredRun("mine", "run", evaluate(REVERSED, QRELS, measured=MEASURED))
    table = compare([baselines["first_stage"], run], measured=MEASURED, num_samples=500, seed=0)
    first_stage, mine = table.rows
    assert (first_stage.name, first_stage.kind, first_stage.differences) == ("bm25", "first_stage", {})
    assert mine.num_queries == 2
    for metric in table.metrics:
        expected = mine.values[metric].mean - first_stage.values[metric].mean
        assert mine.differences[metric].mean == pytest.approx(expected)
        assert mine.values[metric].low <= mine.values[metric].mean <= mine.values[metric].high


def test_a_run_of_other_queries_cannot_be_compared() -> None:
    run = MeasuredRun("mine", "run", evaluate({"q1": REVERSED["q1"]}, QRELS, measured=MEASURED))
    baselines = measure_baselines(
        CANDIDATES, QRELS, measured=MEASURED, num_permutations=5, rng=np.random.default_rng(0)
    )
    with pytest.raises(DataError, match="query 'q2' is in one of two runs"):
        compare([baselines["first_stage"], run], measured=MEASURED, num_samples=500, seed=0)


def test_fusion_goes_from_the_first_stage_to_the_run_and_ties_follow_the_first_stage() -> None:
    orders = {w: fused_rankings(REVERSED, CANDIDATES, weight=w)["q1"].doc_ids for w in (0.0, 0.5, 1.0)}
    assert orders == {0.0: ("a", "b", "c"), 0.5: ("a", "b", "c"), 1.0: ("c", "b", "a")}


def test_the_weight_with_the_best_ndcg_is_chosen_and_the_smallest_of_equal_ones() -> None:
    assert choose_weight(REVERSED, CANDIDATES, qrels={"q1": {"c": 1}, "q2": {"c": 1}}) == 0.6
    assert choose_weight(REVERSED, CANDIDATES, qrels={"q1": {"a": 1}, "q2": {"a": 1}}) == 0.1


def test_rankings_of_other_candidates_are_refused_by_query() -> None:
    check_candidates(REVERSED, CANDIDATES)
    for wrong in (Ranking("q2", ("a", "b"), (2.0, 1.0)), Ranking("q2", ("a", "b", "d"), (3.0, 2.0, 1.0))):
        with pytest.raises(DataError, match="the run of query 'q2' does not rank its prepared candidates"):
            check_candidates({"q2": wrong}, CANDIDATES)
    with pytest.raises(DataError, match="the run of query 'q9'"):
        check_candidates({"q9": Ranking("q9", ("a",), (1.0,))}, CANDIDATES)
