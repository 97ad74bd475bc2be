"""Sub-words are summed into words, and nothing is lost on the way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_core.attribution.words import Part, merge_into_words
from rerank_core.records import Document


def _values_by_word(spans, values, document, visible=None):
    visible = document.content if visible is None else visible
    units, sums = merge_into_words(spans, values, Part(document, 0, visible))
    for unit in units:
        assert getattr(document, unit.field)[unit.start : unit.end] == unit.text
    return list(zip((unit.text for unit in units), sums, strict=True))


def test_sub_words_of_a_word_are_summed():
    document = Document("d", "earthquake map")
    assert _values_by_word([(0, 5), (5, 10), (11, 14)], [1.0, 2.0, 4.0], document) == [
        ("earthquake", 3.0),
        ("map", 4.0),
    ]


def test_punctuation_goes_to_the_nearest_word():
    document = Document("d", "warm (sea)")
    spans = [(0, 4), (5, 6), (6, 9), (9, 10)]
    assert _values_by_word(spans, [1.0, 2.0, 4.0, 8.0], document) == [("warm", 1.0), ("sea", 14.0)]


def test_special_tokens_go_to_the_first_and_the_last_word():
    document = Document("d", "warm sea")
    spans = [(0, 0), (0, 4), (5, 8), (8, 8)]
    assert _values_by_word(spans, [1.0, 2.0, 4.0, 8.0], document) == [("warm", 3.0), ("sea", 12.0)]


def test_title_and_text_have_their_own_offsets():
    document = Document("d", "sea ice", title="Sea level")
    spans = [(0, 3), (4, 9), (10, 13), (14, 17)]
    units, values = merge_into_words(
        spans, [1.0, 2.0, 4.0, 8.0], Part.at((0, len(document.content)), document)
    )
    assert [(u.field, u.start, u.end, u.text) for u in units] == [
        ("title", 0, 3, "Sea"),
        ("title", 4, 9, "level"),
        ("text", 0, 3, "sea"),
        ("text", 4, 7, "ice"),
    ]
    assert values == (1.0, 2.0, 4.0, 8.0)


def test_only_the_visible_part_has_units():
    document = Document("d", "glaciers melt", title="Ice")
    assert _values_by_word([(0, 3), (4, 8)], [1.0, 2.0], document, visible="Ice\nglac") == [
        ("Ice", 1.0),
        ("glac", 2.0),
    ]


def test_a_text_without_words_is_cut_at_white_space():
    document = Document("d", "?! ...", title="--")
    spans = [(0, 0), (0, 1), (1, 2), (2, 3), (3, 5), (6, 9)]
    values = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    assert _values_by_word(spans, values, document) == [("--", 15.0), ("?!", 16.0), ("...", 32.0)]


def test_a_word_without_sub_words_has_no_value():
    assert _values_by_word([], [], Document("d", "warm sea")) == [("warm", 0.0), ("sea", 0.0)]


def test_special_tokens_alone_keep_their_sum():
    assert _values_by_word([(0, 0), (8, 8)], [1.0, 2.0], Document("d", "warm sea")) == [
        ("warm", 3.0),
        ("sea", 0.0),
    ]


@given(text=st.text(min_size=1).filter(str.strip), title=st.text(max_size=5), data=st.data())
def test_any_cut_of_any_text_keeps_the_sum(text, title, data):
    document = Document("d", text, title=title)
    length = len(document.content)
    cuts = sorted(data.draw(st.lists(st.integers(0, length), max_size=6)))
    spans = list(zip([0, *cuts], [*cuts, length], strict=True))
    values = data.draw(st.lists(st.integers(-8, 8), min_size=len(spans), max_size=len(spans)))
    by_word = _values_by_word(spans, [float(value) for value in values], document)
    assert sum(value for _, value in by_word) == pytest.approx(sum(values), abs=1e-9)
