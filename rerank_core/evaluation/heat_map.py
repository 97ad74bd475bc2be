"""An attribution laid over its document: pieces of text, each with its value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rerank_core.errors import DataError
from rerank_core.text import normalise

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
    """A document cut into segments that together spell what the scorer read of it."""

    title: tuple[Segment, ...]
    text: tuple[Segment, ...]
    title_sum: float
    text_sum: float
    num_unread: int  # characters after the last one that the scorer read


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
    title, title_read = _segments(attribution, document.title, field="title", marks=marks)
    text, text_read = _segments(attribution, document.text, field="text", marks=marks)
    unread = 0
    if attribution.is_truncated:
        unread = len(document.text) - text_read
        text = _without_rest(text)
        if text_read == 0:
            unread += len(document.title) - title_read
            title = _without_rest(title)
    return HeatMap(
        title=title,
        text=text,
        title_sum=_field_sum(attribution, "title"),
        text_sum=_field_sum(attribution, "text"),
        num_unread=unread,
    )


def query_segments(attribution: Attribution, query: Query) -> tuple[Segment, ...]:
    """Lay an attribution of a query's words over what the scorer reads of the query.

    Raises:
        DataError: the units do not lie in the query one after the other.
    """
    strong = frozenset(i for i, value in enumerate(attribution.values) if value != 0)
    marks = _Marks(scale=largest_value(attribution), strong=strong, cited=frozenset())
    segments, _ = _segments(attribution, query.text, field="query", marks=marks)
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
) -> tuple[tuple[Segment, ...], int]:
    """Return the segments that spell `content`, and where its last unit ends (0 without units)."""
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
    return tuple(segments), position


def _without_rest(segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    return segments[:-1] if segments and segments[-1].value is None else segments
