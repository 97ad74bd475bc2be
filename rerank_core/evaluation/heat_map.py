"""An attribution laid over its document: pieces of text, each with its value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rerank_core.errors import DataError
from rerank_core.text import normalise, words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rerank_core.records import Attribution, Document, Query, TextField

NUM_STRONG: Final = 10


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a text: a word with its value, or what lies between two words (`value` None)."""

    text: str
    value: float | None = None
    strength: float = 0.0  # value divided by the value of full colour: -1 to 1
    is_strong: bool = False  # in a document: among the ten largest absolute values
    is_cited: bool = False


@dataclass(frozen=True, slots=True)
class HeatMap:
    """A document cut into segments that together spell the part of it whose score it has."""

    title: tuple[Segment, ...]
    text: tuple[Segment, ...]
    title_sum: float
    text_sum: float
    num_outside: int  # characters before and behind the part whose score is the document's


def largest_value(attribution: Attribution) -> float:
    """Return the largest absolute value of a unit, in logits; 0 without units."""
    return max((abs(value) for value in attribution.values), default=0.0)


def heat_map(
    attribution: Attribution, document: Document, *, cited: Sequence[str], scale: float | None = None
) -> HeatMap:
    """Lay an attribution over its document; `cited` are the words to mark as cited, in any spelling.

    `scale` is the absolute value that gets full colour, in logits: that of the document's own strongest word
    unless given. Documents that are compared share one.

    Raises:
        DataError: the units do not lie in the document one after the other.
        ValueError: a value is beyond the scale.
    """
    largest = largest_value(attribution)
    scale = largest if scale is None else scale
    if scale < largest:
        raise ValueError(f"scale must be at least the largest absolute value {largest}, got {scale}")
    order = sorted(range(len(attribution.values)), key=lambda i: (-abs(attribution.values[i]), i))
    strong = frozenset(i for i in order[:NUM_STRONG] if attribution.values[i] != 0)
    marks = _Marks(scale=scale, strong=strong, cited=frozenset(map(normalise, cited)))
    title = _segments(attribution, document.title, field="title", marks=marks)
    text = _segments(attribution, document.text, field="text", marks=marks)
    if attribution.is_truncated:
        title, text = _read_part(title, text)
    num_shown = sum(len(segment.text) for segment in (*title, *text))
    return HeatMap(
        title=title,
        text=text,
        title_sum=_field_sum(attribution, "title"),
        text_sum=_field_sum(attribution, "text"),
        num_outside=len(document.title) + len(document.text) - num_shown,
    )


def query_segments(attribution: Attribution, query: Query) -> tuple[Segment, ...]:
    """Lay an attribution of a query's words over what the scorer reads of the query.

    Raises:
        DataError: the units do not lie in the query one after the other.
    """
    strong = frozenset(i for i, value in enumerate(attribution.values) if value != 0)
    marks = _Marks(scale=largest_value(attribution), strong=strong, cited=frozenset())
    segments = _segments(attribution, query.text, field="query", marks=marks)
    return _without_rest(segments) if attribution.is_truncated else segments


@dataclass(frozen=True, slots=True, kw_only=True)
class _Marks:
    scale: float  # the absolute value of full colour
    strong: frozenset[int]  # indices of units
    cited: frozenset[str]  # normalised


def _field_sum(attribution: Attribution, field: TextField) -> float:
    pairs = zip(attribution.units, attribution.values, strict=True)
    return sum(value for unit, value in pairs if unit.field == field)


def _segments(
    attribution: Attribution, content: str, *, field: TextField, marks: _Marks
) -> tuple[Segment, ...]:
    """Return the segments that spell `content`."""
    indices = [i for i, unit in enumerate(attribution.units) if unit.field == field]
    segments: list[Segment] = []
    position = 0
    for index in sorted(indices, key=lambda i: attribution.units[i].start):
        unit, value = attribution.units[index], attribution.values[index]
        if not position <= unit.start <= unit.end <= len(content):
            raise DataError(
                f"the attribution of document {attribution.doc_id!r} for query {attribution.query_id!r} "
                f"has the unit {unit.text!r} at {unit.start}-{unit.end} of the {field}, where it cannot lie; "
                f"run `whyrank attribute` again on this prepared folder"
            )
        if position < unit.start:
            segments.append(Segment(content[position : unit.start]))
        word = content[unit.start : unit.end]
        strength = value / marks.scale if marks.scale else 0.0
        is_cited = normalise(word) in marks.cited
        segments.append(Segment(word, value, strength, index in marks.strong, is_cited))
        position = unit.end
    if position < len(content):
        segments.append(Segment(content[position:]))
    return tuple(segments)


def _read_part(
    title: tuple[Segment, ...], text: tuple[Segment, ...]
) -> tuple[tuple[Segment, ...], tuple[Segment, ...]]:
    """Return title and text without what stands before the first unit and behind the last one."""
    if not _has_units(title):
        shown = _without_start(_without_rest(text)) if _has_units(text) else ()
        is_from_start = shown[:1] == text[:1] and not words("".join(segment.text for segment in title))
        return title if is_from_start else (), shown
    if not _has_units(text):
        return _without_start(_without_rest(title)), ()
    return _without_start(title), _without_rest(text)


def _has_units(segments: tuple[Segment, ...]) -> bool:
    return any(segment.value is not None for segment in segments)


def _without_start(segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """Return segments without words that are no units; punctuation may stand before the first unit."""
    return segments[1:] if segments[0].value is None and words(segments[0].text) else segments


def _without_rest(segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    return segments[:-1] if segments and segments[-1].value is None else segments
