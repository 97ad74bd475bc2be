"""Scores and margins taken apart into steps that add up."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_core.errors import DataError
from rerank_core.evaluation.waterfall import (
    NEGLIGIBLE,
    NUM_WORDS,
    Waterfall,
    margin_waterfall,
    score_waterfall,
)
from rerank_core.records import Attribution, Unit

WORDS = st.sampled_from(["ice", "Ice", "sea", "salt", "snow", *(f"w{n}" for n in range(20))])
NUMBERS = st.floats(-20, 20)


def attribution_of(
    pairs: list[tuple[str, float]], *, base: float = -1.0, residual: float = 0.0, query_id: str = "q"
) -> Attribution:
    units = tuple(Unit(word, n, n + 1) for n, (word, _) in enumerate(pairs))
    values = tuple(value for _, value in pairs)
    score = base + sum(values) + residual
    return Attribution(query_id, "d", score, base, units, values, "test", 1, residual, 0)


attributions = st.builds(
    attribution_of,
    st.lists(st.tuples(WORDS, NUMBERS), max_size=30),
    base=NUMBERS,
    residual=st.sampled_from([0.0, 1e-6, -0.2, 3.0]),
)


def assert_adds_up(found: Waterfall) -> None:
    places = [found.start, *(step.start for step in found.steps), found.total]
    if found.steps:
        assert found.steps[0].start == found.start
        assert found.steps[-1].end == pytest.approx(found.total, abs=NEGLIGIBLE)
    assert all(before.end == after.start for before, after in pairwise(found.steps))
    low, high = found.span
    assert low < high
    assert all(low <= place <= high for place in places)


@given(attributions)
def test_a_score_is_its_base_value_and_every_step(attribution: Attribution) -> None:
    found = score_waterfall(attribution)
    assert_adds_up(found)
    assert (found.start, found.total) == (attribution.base_value, attribution.score)


@given(attributions, attributions)
def test_a_margin_is_the_difference_of_base_values_and_every_step(
    first: Attribution, second: Attribution
) -> None:
    found = margin_waterfall(first, second)
    assert_adds_up(found)
    assert found.start == first.base_value - second.base_value
    assert found.total == first.score - second.score


@given(attributions, attributions)
def test_swapping_two_documents_turns_every_step_around(first: Attribution, second: Attribution) -> None:
    there, back = margin_waterfall(first, second, num_words=99), margin_waterfall(second, first, num_words=99)
    swapped = str.maketrans("AB", "BA")
    values = {step.label.translate(swapped): -step.value for step in back.steps if step.kind == "word"}
    assert {step.label: step.value for step in there.steps if step.kind == "word"} == values


def test_the_largest_words_stand_alone_and_the_others_as_one_step() -> None:
    pairs = [(f"w{n}", float(n) * (-1) ** n) for n in range(1, 14)]
    found = score_waterfall(attribution_of(pairs))
    assert [step.label for step in found.steps] == [f"w{n}" for n in range(13, 3, -1)] + ["3 other words"]
    assert [step.kind for step in found.steps] == ["word"] * NUM_WORDS + ["rest"]
    assert found.steps[-1].value == -1 + 2 - 3
    assert score_waterfall(attribution_of(pairs), num_words=12).steps[-1].label == "1 other word"


def test_places_of_one_word_are_one_step_and_zeros_have_none() -> None:
    found = score_waterfall(attribution_of([("Ice", 1.0), ("sea", -1.5), ("ice", 2.0), ("of", 0.0)]))
    assert [(step.label, step.value) for step in found.steps] == [("Ice", 3.0), ("sea", -1.5)]


@pytest.mark.parametrize(("residual", "is_shown"), [(0.0004, False), (-0.01, True)])
def test_a_residual_is_a_step_where_it_can_be_seen(residual: float, is_shown: bool) -> None:
    found = score_waterfall(attribution_of([("ice", 1.0)], residual=residual))
    assert ("residual" in [step.kind for step in found.steps]) == is_shown


def test_words_of_the_second_document_count_against_the_margin() -> None:
    first = attribution_of([("ice", 2.0), ("soil", -0.5)], base=-1.0)
    second = attribution_of([("ice", 1.25), ("mud", -0.25)], base=-1.25)
    found = margin_waterfall(first, second)
    assert [(step.label, step.value) for step in found.steps] == [
        ("ice (A)", 2.0),
        ("ice (B)", -1.25),
        ("soil (A)", -0.5),
        ("mud (B)", 0.25),
    ]
    assert (found.start, found.total) == (0.25, 0.75)


def test_documents_of_different_queries_have_no_margin() -> None:
    with pytest.raises(DataError, match=r"'q1' and 'q2'; compare two documents of one query"):
        margin_waterfall(attribution_of([], query_id="q1"), attribution_of([], query_id="q2"))


def test_nothing_to_show_still_has_a_width() -> None:
    assert score_waterfall(attribution_of([], base=2.0)).span == (1.5, 2.5)


def test_sentences_have_their_steps_as_words_have() -> None:
    units = (Unit("Sea ice is thin.", 0, 16), Unit("It drifts.", 17, 27))
    found = score_waterfall(Attribution("q", "d", 1.3, 0.0, units, (1.0, 0.3), "exact", 3, 0.0, 0))
    assert [step.label for step in found.steps] == ["Sea ice is thin.", "It drifts."]
