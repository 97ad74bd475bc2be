"""What is switched on and off: tokens, words, sentences, or whole fields of a document."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from rerank_core.attribution.words import Span, merge_into_words, units_at
from rerank_core.text import words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rerank_core.records import Document, Unit

Leaf = Literal["token", "word", "sentence", "field"]
"""Tokens are summed into words afterwards; words, sentences and fields are units as they are."""

_CLOSERS = r"[\"'”’»)\]」』）】]*"  # noqa: RUF001
_SENTENCE_STARTS = re.compile(
    rf"(?<=[.!?…؟۔।॥።]){_CLOSERS}\s+|(?<=[。！？]){_CLOSERS}|\n\s*\n"  # noqa: RUF001
)


def leaf_spans(leaf: Literal["word", "sentence", "field"], visible: str, document: Document) -> list[Span]:
    """Return the characters of each leaf of the visible part of a document, from left to right.

    A leaf lies in one field. Text that is no leaf's own, such as white space, goes with the leaf before it.
    """
    if leaf == "word":
        return [(word.start, word.end) for word in words(visible)]
    fields = _fields(visible, document)
    return fields if leaf == "field" else [span for field in fields for span in _sentences(visible, field)]


def attributed_units(
    leaf: Leaf, spans: Sequence[Span], values: Sequence[float], *, document: Document, visible: str
) -> tuple[tuple[Unit, ...], tuple[float, ...]]:
    """Return the units of a document with their values, from those of the leaves that were switched."""
    if leaf == "token":
        return merge_into_words(spans, values, document=document, visible=visible)
    return units_at(spans, document=document, visible=visible), tuple(values)


def _fields(visible: str, document: Document) -> list[Span]:
    text_start = len(document.content) - len(document.text)
    cuts = sorted({0, min(text_start, len(visible)), len(visible)})
    return [_stripped(visible, span) for span in pairwise(cuts) if visible[slice(*span)].strip()]


def _sentences(visible: str, field: Span) -> list[Span]:
    start, end = field
    cuts = [start, *(start + match.end() for match in _SENTENCE_STARTS.finditer(visible[start:end])), end]
    return [_stripped(visible, span) for span in pairwise(cuts) if visible[slice(*span)].strip()]


def _stripped(text: str, span: Span) -> Span:
    """Return a span without the white space at its ends."""
    start, end = span
    inside = text[start:end]
    return start + len(inside) - len(inside.lstrip()), end - len(inside) + len(inside.rstrip())
