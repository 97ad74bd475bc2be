"""Changes to a text that should not matter, each with where its words came from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rerank_core.attribution.leaves import leaf_spans
from rerank_core.attribution.words import Part
from rerank_core.errors import DataError
from rerank_core.text import words

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from rerank_core.records import Document, Query
    from rerank_core.retrieval.bm25 import Bm25Retriever

INSERTED = -1
SENTENCE_WORDS = (5, 25)
"""The least and the most words of a sentence that is inserted."""

_CONTRACTIONS = {"can't": "cannot", "won't": "will not", "shan't": "shall not", "i'm": "I am"}
_ENDINGS = {"n't": " not", "'re": " are", "'ve": " have", "'ll": " will"}
_THOUSANDS = re.compile(r"[1-9]\d{0,2}(?:,\d{3})+")
_SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*\s+$|\n\s*$")
_PLAIN_PUNCTUATION = str.maketrans({"“": '"', "”": '"', "„": '"', "–": "-", "—": "-"})


@dataclass(frozen=True, slots=True)
class ChangedText:
    """A text, and for each of its words the place of the word that it stands for, or `INSERTED`."""

    text: str
    owners: tuple[int, ...]

    def __post_init__(self) -> None:
        assert len(words(self.text)) == len(self.owners), "a change must not join or part other words"


def surface_edit(text: str) -> ChangedText:
    """Return a text in another spelling: the same words in the same order, none of them replaced.

    Contractions with one reading are written out (not `'s` and `'d`, which have several), thousands lose
    their comma (English ones: 1,000), curly quotes, dashes and apostrophes become plain ones, a semicolon
    before white space a comma, and a capital that only marks the start of a sentence a small letter, that of
    a name which happens to stand there too. That is far less than a paraphrase: no synonym, no other order,
    no other sentence.
    """
    pieces, owners, place = [], [], 0
    for number, word in enumerate(words(text)):
        gap = text[place : word.start]
        starts = number == 0 or _SENTENCE_END.search(gap) is not None
        written = _respelled(word.text, starts=starts)
        pieces += [_repunctuated(gap), written]
        owners += [number] * len(words(written))
        place = word.end
    return ChangedText("".join([*pieces, _repunctuated(text[place:])]), tuple(owners))


def with_sentence(text: str, sentence: str) -> ChangedText:
    """Return a text with a sentence behind it."""
    owners = [*range(len(words(text))), *[INSERTED] * len(words(sentence))]
    return ChangedText(f"{text.rstrip()} {sentence}", tuple(owners))


def unrelated_sentence(
    query: Query,
    document: Document,
    documents: Sequence[Document],
    *,
    lexical: Bm25Retriever,
    rng: np.random.Generator,
) -> str:
    """Return a sentence of another document, drawn at random, that shares no content word with the query.

    Words are shared when their stems are equal; stop words do not count. Sharing no word is not proof that a
    sentence says nothing about what the query asks.

    Raises:
        DataError: no document has one.
    """
    for place in rng.permutation(len(documents)):
        other = documents[int(place)]
        if other.doc_id == document.doc_id:
            continue
        for start, end in leaf_spans("sentence", Part.at((0, len(other.content)), other)):
            found = [word.text for word in words(other.content[start:end])]
            is_fit = SENTENCE_WORDS[0] <= len(found) <= SENTENCE_WORDS[1]
            if is_fit and not any(lexical.word_weights(query, found)):
                return other.content[start:end]
    raise DataError(
        f"query {query.query_id!r}: no document has a sentence of {SENTENCE_WORDS[0]} to {SENTENCE_WORDS[1]}"
        " words that shares none with it"
    )


def _respelled(word: str, *, starts: bool) -> str:
    plain = word.replace("’", "'")
    lower = plain.lower()
    if lower in _CONTRACTIONS:
        return _CONTRACTIONS[lower]
    if _THOUSANDS.fullmatch(plain):
        return plain.replace(",", "")
    if starts and len(plain) > 1 and plain[1:].islower():
        plain = lower
    for ending, written in _ENDINGS.items():
        if lower.endswith(ending) and len(lower) > len(ending):
            return plain[: -len(ending)] + written
    return plain


def _repunctuated(gap: str) -> str:
    return re.sub(r";(?=\s)", ",", gap.translate(_PLAIN_PUNCTUATION))
