"""A long document as chunks that a scorer can read whole."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

Span = tuple[int, int]


def chunk_spans(text: str, token_ends: Sequence[int], *, room: int) -> list[Span]:
    """Return the characters of a text's chunks of at most `room` tokens, from left to right.

    `token_ends` are where the tokens of the text end. The chunks are as few and as even as that allows, and
    share no token; each ends at white space where its second half has some, else (a script without spaces)
    behind a token. White space at a chunk's ends is left out, and so is a chunk of nothing else.

    Raises:
        ValueError: `room` is below 1.
    """
    if room < 1:
        raise ValueError(f"a chunk must have room for a token, got {room}")
    spans = []
    start = first = 0  # a character, and a token
    while first < len(token_ends):
        left = len(token_ends) - first
        behind = _chunk_end(text, token_ends, first=first, size=ceil(left / ceil(left / room)))
        end = len(text) if behind == len(token_ends) else token_ends[behind - 1]
        inside = text[start:end]
        if inside.strip():
            spans.append((start + len(inside) - len(inside.lstrip()), start + len(inside.rstrip())))
        start, first = end, behind
    return spans


def _chunk_end(text: str, token_ends: Sequence[int], *, first: int, size: int) -> int:
    """Return the token behind a chunk that begins at token `first` and has at most `size` tokens."""
    if first + size >= len(token_ends):
        return len(token_ends)
    for behind in range(first + size, first + (size - 1) // 2, -1):
        end = token_ends[behind - 1]
        if text[end : end + 1].isspace() or text[end - 1 : end].isspace():
            return behind
    return first + size
