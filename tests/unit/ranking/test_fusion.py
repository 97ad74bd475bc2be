"""Fusion standardises per query, then mixes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_core.errors import DataError
from rerank_core.ranking.fusion import fuse

score_lists = st.lists(st.integers(-50, 50).map(float), min_size=1, max_size=8)


def by_doc(scores: list[float]) -> dict[str, float]:
    return {f"d{n}": score for n, score in enumerate(scores)}


def test_two_scales_are_brought_to_one() -> None:
    fused = fuse({"a": 100.0, "b": 300.0}, {"a": 0.2, "b": 0.1}, weight=0.25)
    assert fused == pytest.approx({"a": -0.5, "b": 0.5})


@given(score_lists, st.floats(0.1, 100), st.floats(-10, 10))
def test_scale_and_shift_of_a_list_do_not_matter(scores: list[float], scale: float, shift: float) -> None:
    first = by_doc(scores)
    moved = {doc_id: score * scale + shift for doc_id, score in first.items()}
    second = by_doc(scores[::-1])
    assert fuse(moved, second, weight=0.5) == pytest.approx(fuse(first, second, weight=0.5), abs=1e-6)


@given(score_lists)
def test_weights_0_and_1_keep_the_order_of_one_list(scores: list[float]) -> None:
    first, second = by_doc(scores), by_doc(scores[::-1])
    for weight, source in ((0.0, first), (1.0, second)):
        fused = fuse(first, second, weight=weight)
        assert sorted(fused, key=lambda d: (-fused[d], d)) == sorted(source, key=lambda d: (-source[d], d))


def test_a_list_of_equal_scores_says_nothing() -> None:
    assert fuse({"a": 5.0, "b": 5.0}, {"a": 1.0, "b": 2.0}, weight=0.5) == {"a": -0.5, "b": 0.5}
    assert fuse({"a": 5.0}, {"a": 1.0}, weight=0.5) == {"a": 0.0}


def test_different_documents_are_refused_by_name() -> None:
    with pytest.raises(DataError, match="document 'b' has one of two scores"):
        fuse({"a": 1.0, "b": 2.0}, {"a": 1.0}, weight=0.5)


def test_a_score_that_is_no_number_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="score of document 'a' is nan"):
        fuse({"a": 1.0}, {"a": float("nan")}, weight=0.5)


@pytest.mark.parametrize("weight", [-0.1, 1.1])
def test_a_weight_outside_0_and_1_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="weight must lie in"):
        fuse({"a": 1.0}, {"a": 1.0}, weight=weight)
