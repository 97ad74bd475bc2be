"""Leaves lie in one field, in order, and leave nothing out."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_core.attribution.leaves import attributed_units, leaf_spans
from rerank_core.attribution.words import Part
from rerank_core.records import Document

PIECES = [
    "sea ",
    "Ice. ",
    "3.5 ",
    "e.g. ",
    "قال؟ ",
    "نعم. ",
    "海。",
    "「氷。」",
    "नमस्ते। ",
    "🌊 ",
    "é! ",
    "\n\n",
    "\n",
    ") ",
    "“Yes.” ",
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Sea ice. It is thin!  Why? No 3.5", ["Sea ice.", "It is thin!", "Why?", "No 3.5"]),
        ("He said “thin.” Then", ["He said “thin.”", "Then"]),
        ("彼は「行く。」と言った。次", ["彼は「行く。」", "と言った。", "次"]),
        ("नमस्ते। यह है॥ अंत", ["नमस्ते।", "यह है॥", "अंत"]),
        ("هل؟ نعم.", ["هل؟", "نعم."]),
        ("heading\n\nbody", ["heading", "body"]),
    ],
)
def test_sentences_end_where_their_script_ends_them(text, expected):
    document = Document("d", text)
    assert [text[start:end] for start, end in leaf_spans("sentence", Part(document, 0, text))] == expected


@given(title=TEXTS, text=TEXTS, start=st.integers(0, 80), size=st.integers(0, 80))
@pytest.mark.parametrize("leaf", ["word", "sentence", "field"])
def test_leaves_are_exact_slices_of_one_field_from_left_to_right(leaf, title, text, start, size):
    document = Document("d", text, title=title)
    part = Part.at((start, start + size), document)
    visible = part.text
    spans = leaf_spans(leaf, part)
    assert all(start < end for start, end in spans)
    assert all(one[1] <= other[0] for one, other in pairwise(spans))
    units, values = attributed_units(leaf, spans, range(len(spans)), part)
    assert values == tuple(range(len(spans)))
    for unit, (start, end) in zip(units, spans, strict=True):
        assert getattr(document, unit.field)[unit.start : unit.end] == unit.text == visible[start:end]
    if leaf != "word":
        covered = {place for start, end in spans for place in range(start, end)}
        assert all(place in covered or letter.isspace() for place, letter in enumerate(visible))
