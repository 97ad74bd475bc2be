"""Floor, random, first stage and ideal, over the same candidates."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import numpy as np
import pytest

from rerank_core.evaluation.baselines import (
    expert_rankings,
    first_stage_rankings,
    floor_rankings,
    ideal_rankings,
    random_rankings,
    random_values,
)
from rerank_core.evaluation.ranking_metrics import evaluate, metrics
from rerank_core.records import Candidate, Document, Ranking

MEASURED = metrics(relevant_from=1)
CANDIDATES = {
    "q": [
        Candidate(Document("b", ""), 2, 2.0),
        Candidate(Document("a", ""), 1, 3.0),
        Candidate(Document("c", ""), 3, 1.0),
    ]
}
QRELS = {"q": {"a": 1, "c": 2, "missed": 3}}


def test_the_first_stage_is_ranked_by_its_own_rank() -> None:
    assert first_stage_rankings(CANDIDATES) == {"q": Ranking("q", ("a", "b", "c"), (3.0, 2.0, 1.0))}


def test_the_expert_orders_candidates_by_grade_and_equal_grades_in_any_order(
    rng: np.random.Generator,
) -> None:
    qrels = {"q": {"c": 2}}  # a and b are equal
    orders = Counter(expert_rankings(CANDIDATES, qrels, rng=rng)["q"].doc_ids for _ in range(200))
    assert set(orders) == {("c", "a", "b"), ("c", "b", "a")}
    assert min(orders.values()) > 60


def test_the_ideal_orders_candidates_by_grade_and_the_floor_reverses_it() -> None:
    assert ideal_rankings(CANDIDATES, QRELS)["q"].doc_ids == ("c", "a", "b")
    assert floor_rankings(CANDIDATES, QRELS)["q"].doc_ids == ("b", "a", "c")


def test_equal_grades_keep_first_stage_order_in_the_ideal() -> None:
    assert ideal_rankings(CANDIDATES, {"q": {"x": 1}})["q"].doc_ids == ("a", "b", "c")


def test_the_ideal_of_candidates_stays_below_1_where_a_relevant_document_was_missed() -> None:
    assert evaluate(ideal_rankings(CANDIDATES, QRELS), QRELS, measured=MEASURED)["ndcg@10"]["q"] < 1


def test_random_is_near_the_mean_over_all_orders_and_repeats_with_its_seed() -> None:
    orders = [Ranking("q", order, (0.0,) * 3) for order in permutations("abc")]
    exact = np.mean([evaluate({"q": order}, QRELS, measured=MEASURED)["ndcg@10"]["q"] for order in orders])
    first, second = (
        random_values(
            CANDIDATES, QRELS, measured=MEASURED, num_permutations=400, rng=np.random.default_rng(3)
        )
        for _ in range(2)
    )
    assert first == second
    assert first["ndcg@10"]["q"] == pytest.approx(exact, abs=0.02)


def test_every_order_is_as_likely_whatever_order_the_candidates_come_in(rng: np.random.Generator) -> None:
    orders = Counter(random_rankings(CANDIDATES, rng=rng)["q"].doc_ids for _ in range(1200))
    assert set(orders) == set(permutations("abc"))
    assert all(150 <= count <= 250 for count in orders.values())
    backwards = {"q": CANDIDATES["q"][::-1]}
    first, second = (
        random_rankings(found, rng=np.random.default_rng(3)) for found in (CANDIDATES, backwards)
    )
    assert first == second
