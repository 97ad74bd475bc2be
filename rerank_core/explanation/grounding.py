"""The check that an explanation names only what exists, with the sign that it has."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rerank_core.prompting.render import load_template, neutralise
from rerank_core.text import normalise, words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rerank_core.prompting.parse import Citation
    from rerank_core.records import Document, Evidence

_LINK = re.compile(
    r"\b[a-z][a-z0-9+.-]*://|\bwww\.|\b(?:mailto|javascript|data):\S"
    r"|\b[\w-]+(?:\.[\w-]+)*\.(?:[a-z]{2,}|[A-Z]{2,})\b"
)
_MARKUP = re.compile(r"<[a-zA-Z/!]|\]\(|!\[|`|\*\*|__|^\s*#|&#?\w+;")


def connectives() -> tuple[str, ...]:
    """Return the words that join a document's words to a sentence, and so may be said of any document."""
    return tuple(load_template("connectives").split())


def check_grounding(
    text: str, cited: Sequence[Citation], *, evidence: Evidence | None, document: Document
) -> list[str]:
    """Return what is wrong with an explanation, as short machine-readable strings; none if it is grounded.

    The text must have words, each of them the document's or a connective. It may not run in circles, nor hold
    a link, markup or characters that a reader cannot see. Citations are checked by `check_citations`.
    """
    return list(
        dict.fromkeys([*_text_problems(text, document), *check_citations(cited, evidence, document=document)])
    )


def check_citations(cited: Sequence[Citation], evidence: Evidence | None, *, document: Document) -> list[str]:
    """Return what is wrong with the citations alone.

    Every cited word must occur in the document. With evidence there must be a citation, each must be a piece
    of it, and a claimed effect must have the sign of its value. Without evidence no effect may be claimed.
    """
    in_document = _forms(document.content)
    value_by_word = {normalise(word.text): word.value for word in evidence.words} if evidence else {}
    problems = [] if cited or evidence is None else ["no_citation"]
    for citation in cited:
        word = normalise(citation.word)
        if word not in in_document:
            problems.append(f"absent_from_document:{citation.word}")
        if evidence is not None and word not in value_by_word:
            problems.append(f"absent_from_evidence:{citation.word}")
        elif citation.effect is not None and not _has_effect(citation, value_by_word):
            problems.append(f"wrong_effect:{citation.word}")
    return problems


def _has_effect(citation: Citation, value_by_word: dict[str, float]) -> bool:
    value = value_by_word.get(normalise(citation.word), 0.0)
    return value > 0 if citation.effect == "raised" else value < 0


def _text_problems(text: str, document: Document) -> list[str]:
    said = words(text)
    if not said:
        return ["empty_text"]
    allowed = _forms(document.content) | {normalise(word) for word in connectives()}
    problems = [f"absent_from_document:{word.text}" for word in said if normalise(word.text) not in allowed]
    if _goes_in_circles([normalise(word.text) for word in said]):
        problems.append("repeats")
    if _LINK.search(text):
        problems.append("link")
    if _MARKUP.search(text):
        problems.append("markup")
    if neutralise(text) != " ".join(text.split()):
        problems.append("hidden_characters")
    return problems


def _goes_in_circles(said: Sequence[str]) -> bool:
    """Say whether the same four words follow one another twice, as where a small model loops."""
    runs = [tuple(said[start : start + 4]) for start in range(len(said) - 3)]
    return len(set(runs)) < len(runs)


def _forms(text: str) -> set[str]:
    return {normalise(word.text) for word in words(text)}
