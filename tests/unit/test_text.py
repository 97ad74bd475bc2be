"""Words have one definition, and every sub-word finds its word."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_core.text import normalise, tokens_to_words, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Sea-ice extent, 1979–2020", ["Sea", "ice", "extent", "1979", "2020"]),
        ("don't stop: the Arctic’s ice", ["don't", "stop", "the", "Arctic’s", "ice"]),
        ("'quoted' rock 'n' roll", ["quoted", "rock", "n", "roll"]),
        ("PM2.5 at 1,000 m. 3. end", ["PM2.5", "at", "1,000", "m", "3", "end"]),
        ("v1.2.3 a.b", ["v1.2.3", "a", "b"]),
        ("snake_case", ["snake", "case"]),
        ("cafe\u0301 हिन्दी 東京", ["cafe\u0301", "हिन्दी", "東京"]),
        (" \n—!", []),
        ("", []),
    ],
)
def test_words_follow_the_stated_definition(text: str, expected: list[str]) -> None:
    assert [word.text for word in words(text)] == expected


@given(st.text())
def test_words_lie_where_they_say_in_order_without_overlap(text: str) -> None:
    found = words(text)
    assert all(text[word.start : word.end] == word.text for word in found)
    assert all(left.end <= right.start for left, right in itertools.pairwise(found))
    covered = {i for word in found for i in range(word.start, word.end)}
    assert all(i in covered for i, character in enumerate(text) if character.isalnum())


def test_normalise_folds_case_ligatures_and_typographic_apostrophes() -> None:
    assert normalise("STRASSE") == normalise("straße")
    assert normalise("ﬂux") == "flux"
    assert normalise("Arctic’s") == "arctic's"


def test_subwords_of_a_word_share_its_index_and_leading_blanks_do_not_matter() -> None:
    text = "permafrost thaw"
    assert tokens_to_words([(0, 5), (5, 10), (10, 15)], text) == [0, 0, 1]


def test_punctuation_goes_to_the_nearest_word_and_to_the_earlier_of_two() -> None:
    text = "ice ;  (wind)"
    assert tokens_to_words([(4, 5), (7, 8), (12, 13)], text) == [0, 1, 1]
    assert tokens_to_words([(1, 2)], "a-b") == [0]


def test_a_subword_over_two_words_goes_to_the_one_it_shares_most_with() -> None:
    assert tokens_to_words([(3, 9)], "abcd wxyz") == [1]
    assert tokens_to_words([(2, 7)], "abcd wxyz") == [0]


def test_special_tokens_and_texts_without_words_have_no_word() -> None:
    assert tokens_to_words([(0, 0), (0, 3)], "ice") == [-1, 0]
    assert tokens_to_words([(0, 1)], "!") == [-1]


@given(st.text(alphabet="ab1 .,'-", max_size=30), st.integers(0, 30), st.integers(1, 5))
def test_the_owner_is_the_word_a_search_over_all_words_finds(text: str, start: int, length: int) -> None:
    end = min(start + length, len(text))
    found = words(text)
    if not found or start >= end:
        assert tokens_to_words([(start, end)], text) == [-1]
        return
    shared = [min(end, word.end) - max(start, word.start) for word in found]
    assert tokens_to_words([(start, end)], text) == [shared.index(max(shared))]
