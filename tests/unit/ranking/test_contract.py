"""Any scores become an exact permutation, with a written order of ties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_core.errors import DataError
from rerank_core.ranking.contract import is_permutation, rank
from rerank_core.records import Ranking


def test_higher_scores_come_first() -> None:
    found = rank("q", ["a", "b", "c"], scores=[0.1, 0.3, 0.2], first_stage_ranks=[1, 2, 3])
    assert found == Ranking("q", ("b", "c", "a"), (0.3, 0.2, 0.1))


def test_equal_scores_keep_first_stage_order() -> None:
    found = rank("q", ["a", "b", "c"], scores=[1.0, 1.0, 1.0], first_stage_ranks=[3, 1, 2])
    assert found.doc_ids == ("b", "c", "a")


@given(st.lists(st.floats(-3, 3) | st.sampled_from([0.0, -0.0, 1.0]), max_size=12), st.randoms())
def test_every_order_of_candidates_gives_the_same_permutation(scores: list[float], random: object) -> None:
    rows = [(f"d{n}", score, n) for n, score in enumerate(scores, start=1)]
    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    first, second = (
        rank("q", [r[0] for r in some], scores=[r[1] for r in some], first_stage_ranks=[r[2] for r in some])
        for some in (rows, shuffled)
    )
    assert first == second
    assert is_permutation(first, [row[0] for row in shuffled])
    assert list(first.scores) == sorted(scores, reverse=True)


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_no_number_is_refused_by_name(score: float) -> None:
    with pytest.raises(DataError, match="score of document 'b' for query 'q' is"):
        rank("q", ["a", "b"], scores=[1.0, score], first_stage_ranks=[1, 2])


def test_a_repeated_document_or_rank_is_refused() -> None:
    with pytest.raises(DataError, match="query 'q' has a document or first-stage rank twice"):
        rank("q", ["a", "a"], scores=[1.0, 2.0], first_stage_ranks=[1, 2])
    with pytest.raises(DataError, match="query 'q' has a document or first-stage rank twice"):
        rank("q", ["a", "b"], scores=[1.0, 2.0], first_stage_ranks=[1, 1])


def test_lengths_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        rank("q", ["a", "b"], scores=[1.0], first_stage_ranks=[1, 2])


def test_a_missing_foreign_or_repeated_document_is_no_permutation() -> None:
    ranking = Ranking("q", ("b", "a"), (2.0, 1.0))
    assert is_permutation(ranking, ["a", "b"])
    assert not is_permutation(ranking, ["a"])
    assert not is_permutation(ranking, ["a", "b", "c"])
    assert not is_permutation(ranking, ["a", "c"])
    assert not is_permutation(Ranking("q", ("a", "a"), (1.0, 1.0)), ["a", "b"])
