"""The better order of a query's candidates, and one that is worse by the grades."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rerank_core.data.preferred_orders import preferred_orders
from rerank_core.records import GradedCandidate


def rows(query_id: str, grades: list[int]) -> list[GradedCandidate]:
    return [GradedCandidate(query_id, f"d{rank}", rank, grade) for rank, grade in enumerate(grades, start=1)]


def test_the_chosen_order_follows_the_grades_and_then_the_first_stage() -> None:
    (found,) = preferred_orders(rows("q", [0, 2, 1, 2])[::-1], num_candidates=9, rng=np.random.default_rng(0))
    assert found.listed == ("d1", "d2", "d3", "d4")
    assert found.chosen == ("d2", "d4", "d3", "d1")


def test_only_the_first_candidates_of_the_first_stage_are_ranked() -> None:
    (found,) = preferred_orders(rows("q", [0, 1, 5]), num_candidates=2, rng=np.random.default_rng(0))
    assert (found.listed, found.chosen, found.rejected) == (("d1", "d2"), ("d2", "d1"), ("d1", "d2"))


def test_queries_without_two_grades_are_left_out_and_the_others_sorted() -> None:
    given_rows = [*rows("b", [0, 1]), *rows("c", [1, 1]), *rows("a", [1, 0]), *rows("d", [0])]
    found = preferred_orders(given_rows, num_candidates=9, rng=np.random.default_rng(0))
    assert [preference.query_id for preference in found] == ["a", "b"]


def test_the_rejected_order_is_drawn_by_the_seed() -> None:
    given_rows = rows("q", [3, 2, 1, 0, 0])
    drawn = [preferred_orders(given_rows, num_candidates=9, rng=np.random.default_rng(s)) for s in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.integers(0, 99))
def test_the_rejected_order_ranks_some_document_above_a_better_one(grades: list[int], seed: int) -> None:
    for found in preferred_orders(rows("q", grades), num_candidates=9, rng=np.random.default_rng(seed)):
        grade_by_doc = {f"d{rank}": grade for rank, grade in enumerate(grades, start=1)}
        rejected = [grade_by_doc[doc_id] for doc_id in found.rejected]
        assert sorted(found.rejected) == sorted(found.chosen) == sorted(found.listed)
        assert rejected != sorted(rejected, reverse=True)
