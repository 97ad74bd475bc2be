"""What is switched on and off: tokens, words, sentences, or whole fields of a document."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from rerank_core.attribution.words import Part, Span, merge_into_words, units_at
from rerank_core.text import words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rerank_core.records import Unit

Leaf = Literal["token", "word", "sentence", "field"]
"""Tokens are summed into words afterwards; words, sentences and fields are units as they are."""

_CLOSERS = r"[\"'”’»)\]」』）】]*"  # noqa: RUF001
_SENTENCE_STARTS = re.compile(
    rf"(?<=[.!?…؟۔।॥።]){_CLOSERS}\s+|(?<=[。！？]){_CLOSERS}|\n\s*\n"  # noqa: RUF001
)


def leaf_spans(leaf: Literal["word", "sentence", "field"], part: Part) -> list[Span]:
    """Return the characters of each leaf of a part of a document, from left to right.

    A leaf lies in one field. Text that is no leaf's own, such as white space, goes with the leaf before it.
    """
    if leaf == "word":
        return [(word.start, word.end) for word in words(part.text)]
    fields = _fields(part)
    return fields if leaf == "field" else [span for field in fields for span in _sentences(part.text, field)]


def attributed_units(
    leaf: Leaf, spans: Sequence[Span], values: Sequence[float], part: Part
) -> tuple[tuple[Unit, ...], tuple[float, ...]]:
    """Return the units of a part of a document with their values, from those of the leaves."""
    if leaf == "token":
        return merge_into_words(spans, values, part)
    return units_at(spans, part), tuple(values)


def _fields(part: Part) -> list[Span]:
    cuts = sorted({0, min(max(part.text_start, 0), len(part.text)), len(part.text)})
    return [_stripped(part.text, span) for span in pairwise(cuts) if part.text[slice(*span)].strip()]


def _sentences(text: str, field: Span) -> list[Span]:
    start, end = field
    cuts = [start, *(start + match.end() for match in _SENTENCE_STARTS.finditer(text[start:end])), end]
    return [_stripped(text, span) for span in pairwise(cuts) if text[slice(*span)].strip()]


def _stripped(text: str, span: Span) -> Span:
    """Return a span without the white space at its ends."""
    start, end = span
    inside = text[start:end]
    return start + len(inside) - len(inside.lstrip()), end - len(inside) + len(inside.rstrip())
