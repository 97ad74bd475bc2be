"""Values of sub-words into values of words, by summing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rerank_core.records import Document, Unit
from rerank_core.text import Word, tokens_to_words, words

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Part:
    """The part of a document that a scorer reads: some characters of its content."""

    document: Document
    start: int
    text: str

    @classmethod
    def at(cls, span: Span, document: Document) -> Part:
        """Return the part at some characters of the content."""
        return cls(document, span[0], document.content[slice(*span)])

    @property
    def is_whole(self) -> bool:
        """Whether the scorer reads all of the document."""
        return self.text == self.document.content

    @property
    def text_start(self) -> int:
        """Where in the part the document's text begins, behind its title: outside it, if not within."""
        return len(self.document.content) - len(self.document.text) - self.start


def merge_into_words(
    spans: Sequence[Span], values: Sequence[float], part: Part
) -> tuple[tuple[Unit, ...], tuple[float, ...]]:
    """Return the words of a part of a document, each with the sum of its sub-words' values.

    `spans[i]` are the characters of sub-word i in the part, which has something else than white space in it;
    sub-words stand in the order of the text. Each goes to exactly one
    word, so the sum is kept: punctuation to the nearest word, an empty span (a special token) to the word of
    the sub-word before it, or after it at the start. A text without any word is cut at white space instead. A
    word without sub-words has the value 0.
    """
    found = words(part.text)
    if found:
        owners = tokens_to_words(spans, part.text)
    else:
        found = [Word(match.group(), match.start(), match.end()) for match in re.finditer(r"\S+", part.text)]
        owners = [_run_of(span, found) for span in spans]
    sums = [0.0] * len(found)
    for owner, value in zip(_filled(owners), values, strict=True):
        sums[owner] += value
    return units_at([(word.start, word.end) for word in found], part), tuple(sums)


def units_at(spans: Sequence[Span], part: Part) -> tuple[Unit, ...]:
    """Return the units that lie at some characters of a part, each within one field of the document."""
    return tuple(_unit(start, end, part) for start, end in spans)


def _run_of(span: Span, runs: Sequence[Word]) -> int:
    """Return the index of the last run that starts before the span ends; of the first where there is none."""
    return max(sum(run.start < span[1] for run in runs) - 1, 0)


def _filled(owners: Sequence[int]) -> Iterator[int]:
    """Yield the owners, each -1 replaced by the owner before it, or by the first one known at the start."""
    last = next((owner for owner in owners if owner >= 0), 0)
    for owner in owners:
        last = owner if owner >= 0 else last
        yield last


def _unit(start: int, end: int, part: Part) -> Unit:
    if start < part.text_start:
        return Unit(part.text[start:end], start + part.start, end + part.start, field="title")
    return Unit(part.text[start:end], start - part.text_start, end - part.text_start, field="text")
