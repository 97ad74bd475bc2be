"""The check that an explanation names only what exists, with the sign that it has."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

import Stemmer

from rerank_core.explanation.instructions import without_instructions
from rerank_core.prompting.parse import EFFECTS, Citation, Effect, Sentence
from rerank_core.prompting.render import load_template, neutralise
from rerank_core.text import normalise, words

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rerank_core.records import Document, Evidence, EvidenceWord

_LINK = re.compile(
    r"\b[a-z][a-z0-9+.-]*://|\bwww\.|\b(?:mailto|javascript|data):\S"
    r"|\b[\w-]+(?:\.[\w-]+)*\.(?:[a-z]{2,}|[A-Z]{2,})\b"
)
_MARKUP = re.compile(r"<[a-zA-Z/!]|\]\(|!\[|`|\*\*|__|^\s*#|&#?\w+;")


@cache
def connectives() -> tuple[str, ...]:
    """Return the words that join a document's words to a sentence, and so may be said of any document."""
    return tuple(load_template("connectives").split())


@cache
def openings() -> tuple[str, ...]:
    """Return the beginnings of which every sentence has one: they make it a description."""
    return tuple(load_template("openings").splitlines())


@cache
def refused_words() -> frozenset[str]:
    """Return the normalised words that no sentence may use: they deny, or judge, where it should describe."""
    return frozenset(normalise(word) for word in load_template("refused").split())


def citable(evidence: Evidence) -> Mapping[Effect, Sequence[EvidenceWord]]:
    """Return the evidence words by the effect that each had, largest first; an effect may have none."""
    other = evidence.contrast.words if evidence.contrast else ()
    found: dict[Effect, Sequence[EvidenceWord]] = {
        "raised": [word for word in evidence.words if word.value > 0],
        "lowered": [word for word in evidence.words if word.value < 0],
        "other_raised": [word for word in other if word.value > 0],
        "other_lowered": [word for word in other if word.value < 0],
    }
    return found


def check_grounding(
    sentences: Sequence[Sentence], *, evidence: Evidence | None, document: Document
) -> list[str]:
    """Return what is wrong with an explanation, as short machine-readable strings; none if it is grounded.

    Each sentence must begin as a description. Its words must be the document's (up to inflection: English
    Snowball stems; numbers exactly) or connectives; sentences of the document that give orders do not count,
    and words that deny or judge are refused, also where the document has them. It may not run in circles, nor
    hold a link, markup or characters that a reader cannot see. Citations are checked by `check_citations`;
    with evidence every sentence must have one.

    What it cannot see is a false statement made of the document's own words.
    """
    allowed = _allowed(document)
    problems = [] if sentences else ["empty_text"]
    for sentence in sentences:
        problems += _sentence_problems(sentence.text, allowed)
        problems += check_citations(sentence.citations, evidence, document=document)
    if _goes_in_circles([normalise(word.text) for sentence in sentences for word in words(sentence.text)]):
        problems.append("repeats")
    return list(dict.fromkeys(problems))


def check_citations(cited: Sequence[Citation], evidence: Evidence | None, *, document: Document) -> list[str]:
    """Return what is wrong with the citations alone.

    Every cited word must occur in the document that its effect speaks of. With evidence there must be a
    citation, each must be a piece of it, and a claimed effect must be the one that the word had. Without
    evidence no effect may be claimed.
    """
    problems = [] if cited or evidence is None else ["no_citation"]
    for citation in cited:
        problems += _citation_problems(citation, evidence, document=document)
    return problems


def _citation_problems(citation: Citation, evidence: Evidence | None, *, document: Document) -> list[str]:
    word, effect = normalise(citation.word), citation.effect
    contrast = evidence.contrast if evidence else None
    of_other = effect is not None and effect.startswith("other_")
    source = contrast.document if of_other and contrast else document
    problems = [] if word in _forms(source.content) else [f"absent_from_document:{citation.word}"]
    found = citable(evidence) if evidence else {}
    same_document = [e for e in EFFECTS if e.startswith("other_") == of_other]
    if evidence and not any(_has(found[e], word) for e in same_document):
        problems.append(f"absent_from_evidence:{citation.word}")
    elif effect is not None and not _has(found.get(effect, ()), word):
        problems.append(f"wrong_effect:{citation.word}")
    return problems


def _has(found: Iterable[EvidenceWord], word: str) -> bool:
    return any(normalise(candidate.text) == word for candidate in found)


def _sentence_problems(text: str, allowed: frozenset[str]) -> list[str]:
    said = words(text)
    if not said:
        return ["empty_text"]
    problems = [f"refused_word:{word.text}" for word in said if normalise(word.text) in refused_words()]
    problems += [f"absent_from_document:{word.text}" for word in said if _stem(word.text) not in allowed]
    if not text.startswith(tuple(f"{opening} " for opening in openings())):
        problems.append("no_opening")
    if _LINK.search(text):
        problems.append("link")
    if _MARKUP.search(text):
        problems.append("markup")
    if neutralise(text) != " ".join(text.split()):
        problems.append("hidden_characters")
    return problems


def _allowed(document: Document) -> frozenset[str]:
    described = f"{without_instructions(document.title)}\n{without_instructions(document.text)}"
    return frozenset(
        [_stem(word.text) for word in words(described)] + [_stem(word) for word in connectives()]
    )


def _stem(word: str) -> str:
    """Return a word normalised, without its English inflection unless it has a digit."""
    form = normalise(word)
    return form if any(character.isdigit() for character in form) else str(_stemmer().stemWord(form))


@cache
def _stemmer() -> Stemmer.Stemmer:
    return Stemmer.Stemmer("english")


def _goes_in_circles(said: Sequence[str]) -> bool:
    """Say whether the same four words follow one another twice, as where a small model loops."""
    runs = [tuple(said[start : start + 4]) for start in range(len(said) - 3)]
    return len(set(runs)) < len(runs)


def _forms(text: str) -> set[str]:
    return {normalise(word.text) for word in words(text)}
