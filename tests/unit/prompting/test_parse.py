"""A model's answer is read, whatever it is, without an exception."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_core.prompting.parse import MAX_ANSWER_CHARS, Answer, Citation, parse_answer


def test_text_and_citations_are_read() -> None:
    answer = parse_answer(
        '{"sentences": [{"text": "It  has\\nice.", "raised": ["ice", "Snow"], "lowered": ["sand"]}]}'
    )
    assert answer.text == "It has ice."
    assert answer.citations == (
        Citation("ice", "raised"),
        Citation("Snow", "raised"),
        Citation("sand", "lowered"),
    )
    assert answer.problems == ()


def test_a_word_cited_twice_for_the_same_effect_counts_once() -> None:
    answer = parse_answer(
        '{"sentences": [{"text": "x", "raised": ["Ice", "ice"]}, {"text": "y", "lowered": ["ICE"]}]}'
    )
    assert answer.text == "x y"
    assert answer.citations == (Citation("Ice", "raised"), Citation("ICE", "lowered"))


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        ("", "not_json"),
        ('{"sentences": [{"text": "cut', "not_json"),
        ("[" * 10_000, "not_json"),
        ("9" * 10_000, "not_json"),
        ("[1]", "not_an_object"),
        ("x" * (MAX_ANSWER_CHARS + 1), "answer_too_long"),
        ("{}", "no_sentences"),
        ('{"sentences": []}', "no_sentences"),
        ('{"sentences": {"text": "x"}}', "no_sentences"),
        ('{"sentences": ["x"]}', "no_text"),
        ('{"sentences": [{"text": 3}]}', "no_text"),
        ('{"sentences": [{"text": "x", "raised": "ice"}]}', "not_a_list_of_words:raised"),
        ('{"sentences": [{"text": "x", "lowered": [1]}]}', "not_a_list_of_words:lowered"),
        ('{"sentences": [{"text": "x", "tool": 1}]}', "unknown_field"),
        ('{"sentences": [{"text": "x"}], "tool": 1}', "unknown_field"),
    ],
)
def test_what_cannot_be_read_is_a_problem(raw, problem) -> None:
    assert parse_answer(raw).problems == (problem,)


def test_a_lone_surrogate_is_replaced() -> None:
    answer = parse_answer('{"sentences": [{"text": "ice \\ud800", "raised": ["\\udfff"]}]}')
    assert answer.text == "ice ?"
    assert answer.citations == (Citation("?", "raised"),)


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(), lambda part: st.lists(part, max_size=3)
)
_FIELDS = st.sampled_from(["text", "raised", "lowered", "other_raised", "other"])
_SENTENCES = st.lists(st.dictionaries(_FIELDS, _JSON) | _JSON, max_size=3).map(
    lambda found: {"sentences": found}
)


@given(st.text() | _JSON.map(json.dumps) | _SENTENCES.map(json.dumps))
def test_any_answer_is_read_or_has_a_problem(raw) -> None:
    answer = parse_answer(raw)
    assert isinstance(answer, Answer)
    answer.text.encode("utf-8")
    if not isinstance(raw, str) or not raw.startswith("{"):
        assert answer.problems
