"""Which document beats which: counts, ties and short lists."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rerank_core.data.preferences import preference_pairs
from rerank_core.records import GradedCandidate, PreferencePair


def rows(*grades: int) -> list[GradedCandidate]:
    """Candidates in first-stage order with the given grades."""
    return [GradedCandidate("q", f"d{rank}", rank, grade) for rank, grade in enumerate(grades, start=1)]


def test_ten_candidates_with_a_clear_cut_give_25_pairs() -> None:
    pairs, dropped = preference_pairs(rows(0, 9, 1, 8, 2, 7, 3, 6, 4, 5), top=5, bottom=5)
    assert (len(pairs), dropped) == (25, 0)
    assert {pair.chosen_grade for pair in pairs} == {9, 8, 7, 6, 5}
    assert pairs[0] == PreferencePair("q", "d2", "d9", 9, 4)


def test_pairs_of_equal_grade_are_dropped_and_counted() -> None:
    pairs, dropped = preference_pairs(rows(1, 1, 1, 1, 1, 1, 0, 0, 0, 0), top=5, bottom=5)
    assert (len(pairs), dropped) == (20, 5)
    assert preference_pairs(rows(*[0] * 10), top=5, bottom=5) == ([], 25)


def test_a_tie_at_the_cut_is_broken_by_first_stage_rank() -> None:
    pairs, dropped = preference_pairs(rows(1, 1, 0, 0), top=1, bottom=3)
    assert {pair.chosen_id for pair in pairs} == {"d1"}
    assert {pair.rejected_id for pair in pairs} == {"d3", "d4"}
    assert dropped == 1


def test_a_short_list_is_halved_without_its_middle() -> None:
    pairs, _ = preference_pairs(rows(4, 3, 2, 1, 0), top=5, bottom=5)
    assert {(pair.chosen_id, pair.rejected_id) for pair in pairs} == {
        ("d1", "d4"),
        ("d1", "d5"),
        ("d2", "d4"),
        ("d2", "d5"),
    }


def test_a_short_list_gives_no_more_than_was_asked_for() -> None:
    pairs, _ = preference_pairs(rows(7, 6, 5, 4, 3, 2), top=1, bottom=9)
    assert {pair.chosen_id for pair in pairs} == {"d1"}
    assert {pair.rejected_id for pair in pairs} == {"d4", "d5", "d6"}


def test_one_candidate_gives_no_pair() -> None:
    assert preference_pairs(rows(3), top=5, bottom=5) == ([], 0)
    assert preference_pairs([], top=5, bottom=5) == ([], 0)


@given(st.lists(st.integers(0, 4), max_size=14), st.integers(1, 6), st.integers(1, 6), st.randoms())
def test_pairs_are_strict_and_do_not_depend_on_the_order_given(
    grades: list[int], top: int, bottom: int, random: object
) -> None:
    found = rows(*grades)
    pairs, dropped = preference_pairs(found, top=top, bottom=bottom)
    assert all(pair.chosen_grade > pair.rejected_grade for pair in pairs)
    assert len(pairs) + dropped <= top * bottom
    assert len(set(pairs)) == len(pairs)
    random.shuffle(found)  # type: ignore[attr-defined]
    assert preference_pairs(found, top=top, bottom=bottom) == (pairs, dropped)
