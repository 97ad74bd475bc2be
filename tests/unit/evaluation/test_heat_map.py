"""Words and their values, laid over the document they came from."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_core.errors import DataError
from rerank_core.evaluation.heat_map import NUM_STRONG, Segment, heat_map
from rerank_core.records import Attribution, Document, Unit
from rerank_core.text import words


def _attribution(document: Document, values: list[float] | None = None) -> Attribution:
    units = tuple(
        Unit(word.text, word.start, word.end, field)  # type: ignore[arg-type]
        for field, content in (("title", document.title), ("text", document.text))
        for word in words(content)
    )
    found = tuple(values) if values is not None else tuple(float(n) - 2 for n in range(len(units)))
    return Attribution("q", document.doc_id, sum(found), 0.0, units, found, "test", 1, 0.0, 0)


def _spelled(segments: tuple[Segment, ...]) -> str:
    return "".join(segment.text for segment in segments)


@given(title=st.text(max_size=30), text=st.text(max_size=60))
def test_segments_spell_the_document(title: str, text: str) -> None:
    document = Document("d", text, title=title)
    shown = heat_map(_attribution(document), document, cited=())
    assert (_spelled(shown.title), _spelled(shown.text)) == (title, text)


def test_strength_is_relative_to_the_largest_value_and_keeps_its_sign() -> None:
    document = Document("d", "one two three", title="zero")
    shown = heat_map(_attribution(document, [2.0, -4.0, 1.0, 0.0]), document, cited=())
    by_word = {s.text: s.strength for s in (*shown.title, *shown.text) if s.value is not None}
    assert by_word == {"zero": 0.5, "one": -1.0, "two": 0.25, "three": 0.0}
    assert (shown.title_sum, shown.text_sum) == (2.0, -3.0)
    wider = heat_map(_attribution(document, [2.0, -4.0, 1.0, 0.0]), document, cited=(), scale=8.0)
    assert [s.strength for s in wider.text if s.value is not None] == [-0.5, 0.125, 0.0]


def test_a_scale_that_a_value_exceeds_is_refused() -> None:
    document = Document("d", "one two")
    with pytest.raises(ValueError, match=r"at least the largest absolute value 4\.0, got 3\.0"):
        heat_map(_attribution(document, [2.0, -4.0]), document, cited=(), scale=3.0)


def test_the_ten_largest_absolute_values_are_strong_and_zeros_never_are() -> None:
    document = Document("d", " ".join("abcdefghijklmno"))
    mixed = heat_map(_attribution(document, [float(-n) for n in range(15)]), document, cited=())
    strong = [s.text for s in mixed.text if s.is_strong]
    assert strong == list("fghijklmno")
    assert len(strong) == NUM_STRONG
    silent = heat_map(_attribution(document, [0.0] * 15), document, cited=())
    assert not any(s.is_strong or s.strength for s in silent.text)


def test_cited_words_are_found_in_any_case() -> None:
    document = Document("d", "Sea ice, ICE cores")
    shown = heat_map(_attribution(document), document, cited=("ice", "glacier"))
    assert [s.text for s in shown.text if s.is_cited] == ["ice", "ICE"]


def test_what_stands_behind_the_part_that_was_read_is_counted_and_left_out() -> None:
    document = Document("d", "one two three four", title="zero")
    read = [u for u in _attribution(document).units if u.text in ("zero", "one", "two")]
    cut = replace(_attribution(document), units=tuple(read), values=(1.0, 1.0, 1.0), is_truncated=True)
    shown = heat_map(cut, document, cited=())
    assert (_spelled(shown.title), _spelled(shown.text), shown.num_outside) == (
        "zero",
        "one two",
        len(" three four"),
    )


def test_a_cut_inside_the_title_leaves_the_whole_text_out() -> None:
    document = Document("d", "one", title="zero more")
    cut = replace(
        _attribution(document), units=(Unit("zero", 0, 4, "title"),), values=(1.0,), is_truncated=True
    )
    shown = heat_map(cut, document, cited=())
    assert (_spelled(shown.title), shown.text, shown.num_outside) == ("zero", (), len(" more") + len("one"))


def test_what_stands_before_a_chunk_is_counted_and_left_out() -> None:
    document = Document("d", "one two (three) four", title="zero")
    of_chunk = (Unit("three", 9, 14), Unit("four", 16, 20))
    cut = replace(_attribution(document), units=of_chunk, values=(1.0, 1.0), is_truncated=True)
    shown = heat_map(cut, document, cited=())
    assert (shown.title, _spelled(shown.text)) == ((), "three) four")
    assert shown.num_outside == len("zero") + len("one two (")


def test_a_cut_behind_the_last_word_leaves_nothing_out() -> None:
    document = Document("d", "one")
    shown = heat_map(replace(_attribution(document), is_truncated=True), document, cited=())
    assert (_spelled(shown.text), shown.num_outside) == ("one", 0)


@pytest.mark.parametrize(("start", "end"), [(0, 99), (1, 2), (5, 3)])
def test_units_that_cannot_lie_in_the_document_are_refused(start: int, end: int) -> None:
    document = Document("d7", "one two")
    odd = replace(
        _attribution(document), units=(Unit("one", 0, 3), Unit("odd", start, end)), values=(1.0, 1.0)
    )
    with pytest.raises(DataError, match=r"'d7'.*'odd'.*whyrank attribute"):
        heat_map(odd, document, cited=())
