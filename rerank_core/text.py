"""The one definition of a word, shared by BM25, attribution and metrics.

A word is a longest run of Unicode letters, digits and combining marks. An apostrophe between two such
characters belongs to the word (`don't`, `Arctic’s`), and so does a full stop or comma between two digits
(`PM2.5`, `1,000`). Everything else separates words: a hyphen too, so that `sea-ice` and `sea ice` are the
same two words.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# `\w` leaves combining marks out, which would cut Indic and Arabic words, and decomposed accents, in pieces.
_MARKS = "".join(
    chr(code) for code in range(0x300, 0x10000) if unicodedata.category(chr(code)).startswith("M")
)
_CHARACTER = rf"(?:[^\W_]|[{_MARKS}])"
_WORD = re.compile(rf"{_CHARACTER}+(?:['’]{_CHARACTER}+|(?<=\d)[.,](?=\d){_CHARACTER}+)*")


@dataclass(frozen=True, slots=True)
class Word:
    """A word at characters `start` to `end` of the text it was found in."""

    text: str
    start: int
    end: int


def words(text: str) -> list[Word]:
    """Return the words of a text from left to right; `text[word.start:word.end] == word.text`."""
    return [Word(match.group(), match.start(), match.end()) for match in _WORD.finditer(text)]


def normalise(word: str) -> str:
    """Return the form in which two spellings of a word are equal: compatibility forms folded, no case."""
    return unicodedata.normalize("NFKC", word).casefold().replace("’", "'")


def tokens_to_words(offsets: Sequence[tuple[int, int]], text: str) -> list[int]:
    """Return for each sub-word, given by character offsets, the index in `words(text)` of its word.

    A sub-word belongs to the word that it shares most characters with (the earlier one if equal). One that
    touches no word, such as punctuation, goes to the nearest word (the earlier one if equally near). The
    answer is -1 for an empty span (special tokens have one), and everywhere in a text without words.
    """
    found = words(text)
    starts = [word.start for word in found]
    return [_owner(start, end, found=found, starts=starts) if start < end else -1 for start, end in offsets]


def _owner(start: int, end: int, *, found: Sequence[Word], starts: Sequence[int]) -> int:
    if not found:
        return -1
    first = max(bisect_left(starts, start) - 1, 0)  # the last word that starts before may reach into the span
    behind = min(bisect_left(starts, end), len(found) - 1)
    # A shared character counts as a negative gap: the minimum is the largest share, else the smallest gap.
    return min(range(first, behind + 1), key=lambda i: max(start, found[i].start) - min(end, found[i].end))
