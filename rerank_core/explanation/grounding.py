"""The check that an explanation names only what exists, with the sign that it has."""

from __future__ import annotations

from collections import Counter
from functools import cache, lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import Stemmer

from rerank_core.explanation.instructions import without_instructions
from rerank_core.prompting.parse import EFFECTS, Citation, Effect, Sentence
from rerank_core.prompting.render import load_template
from rerank_core.text import Word, normalise, words

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rerank_core.records import Document, Evidence, EvidenceWord

MAX_SENTENCES: Final = 2

MAX_CITED: Final = 3
"""Words that a sentence cites for each effect."""

_INFLECTIONS: Final = frozenset(["", "s", "es", "d", "ed", "e", "ing", "'s", "y", "ies", "ied"])
_SIGNS: Final = frozenset("-−–+±~<>≤≥≈")
_BETWEEN: Final = frozenset([" ", ", "])
"""What may stand between two words, besides the hyphen that the document has there."""


@cache
def connectives() -> tuple[str, ...]:
    """Return the words that join a document's words to a sentence, and so may be said of any document."""
    return tuple(load_template("connectives").split())


@cache
def openings() -> tuple[str, ...]:
    """Return the beginnings of which every sentence has one: they make it a description."""
    return tuple(load_template("openings").splitlines())


def is_refused(word: str) -> bool:
    """Say whether a word denies or judges (`templates/refused.txt`, by stem), where it should describe."""
    form = normalise(word)
    return form.endswith("n't") or _stem(form) in _refused_stems()


def citable(evidence: Evidence) -> Mapping[Effect, Sequence[EvidenceWord]]:
    """Return the evidence words by the effect that each had, largest first; an effect may have none.

    Units of more than one word, as sentences are, are not cited: they could bring a command with them.
    """
    own = _single_words(evidence.words)
    other = _single_words(evidence.contrast.words) if evidence.contrast else []
    found: dict[Effect, Sequence[EvidenceWord]] = {
        "raised": [word for word in own if word.value > 0],
        "lowered": [word for word in own if word.value < 0],
        "other_raised": [word for word in other if word.value > 0],
        "other_lowered": [word for word in other if word.value < 0],
    }
    return found


def _single_words(units: Iterable[EvidenceWord]) -> list[EvidenceWord]:
    return [unit for unit in units if [word.text for word in words(unit.text)] == [unit.text]]


def effects_told(evidence: Evidence) -> tuple[Effect, ...]:
    """Return the effects that an explanation tells of.

    Why a document is above another: what raised its score and what lowered the other's. Where neither
    happened, it is above in spite of both lists, and they are told.
    """
    if evidence.contrast is None:
        return ("raised", "lowered")
    found = citable(evidence)
    if found["raised"] or found["other_lowered"]:
        return ("raised", "other_lowered")
    return ("lowered", "other_raised")


def is_sayable(word: str, document: Document) -> bool:
    """Say whether a text about a document may have a word: one of its own, or one that joins them."""
    return not is_refused(word) and _is_said_by(word, _described(document))


def check_grounding(
    sentences: Sequence[Sentence], *, evidence: Evidence | None, document: Document
) -> list[str]:
    """Return what is wrong with an explanation, as short machine-readable strings; none if it is grounded.

    One or two sentences (`MAX_SENTENCES`), each begun as a description. Its words must be the document's (up
    to endings of one English stem; numbers exactly, and without a sign) or connectives; sentences of the
    document that give commands do not count, and words that deny or judge are refused, also where the
    document has them. Between words stand spaces and commas, and the hyphens of the document; at the end one
    full stop. A sentence may not run in circles, nor consist of connectives alone. With evidence every
    sentence must cite, `MAX_CITED` words at most for an effect; citations are checked by
    `check_citations`.

    What it cannot see is a false statement made of the document's own words.
    """
    problems = [] if sentences else ["empty_text"]
    if len(sentences) > MAX_SENTENCES:
        problems.append("too_many_sentences")
    for sentence in sentences:
        problems += _sentence_problems(sentence.text, document)
        problems += check_citations(sentence.citations, evidence, document=document)
        cited = Counter(citation.effect for citation in sentence.citations)
        problems += ["too_many_citations"] if any(count > MAX_CITED for count in cited.values()) else []
    said = [sentence.text.partition("describes")[2] for sentence in sentences]
    if len(set(said)) < len(said):
        problems.append("repeats")
    return list(dict.fromkeys(problems))


def check_citations(cited: Sequence[Citation], evidence: Evidence | None, *, document: Document) -> list[str]:
    """Return what is wrong with the citations alone.

    Every cited word must occur in the document that its effect speaks of. With evidence there must be a
    citation, each must be a piece of it, and a claimed effect must be the one that the word had, and one of
    those that are told. Without evidence no effect may be claimed.
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
    elif effect is not None and evidence and effect not in effects_told(evidence):
        problems.append(f"untold_effect:{citation.word}")
    return problems


def _has(found: Iterable[EvidenceWord], word: str) -> bool:
    return any(normalise(candidate.text) == word for candidate in found)


def _sentence_problems(text: str, document: Document) -> list[str]:
    said = words(text)
    if not said:
        return ["empty_text"]
    described = _described(document)
    problems = [f"refused_word:{word.text}" for word in said if is_refused(word.text)]
    problems += [
        f"absent_from_document:{word.text}" for word in said if not _is_said_by(word.text, described)
    ]
    if not text.startswith(tuple(f"{opening} " for opening in openings())):
        problems.append("no_opening")
    if all(normalise(word.text) in connectives() for word in said):
        problems.append("says_nothing")
    if _goes_in_circles([normalise(word.text) for word in said]):
        problems.append("repeats")
    gaps = [(text[first.end : second.start], first, second) for first, second in pairwise(said)]
    if (
        text[: said[0].start]
        or text[said[-1].end :] not in {"", "."}
        or any(not _may_stand_between(*gap, document=document) for gap in gaps)
    ):
        problems.append("symbols")
    return problems


def _may_stand_between(gap: str, first: Word, second: Word, *, document: Document) -> bool:
    if gap == "-":
        return f"{first.text}-{second.text}".casefold() in document.content.casefold()
    return gap in _BETWEEN


@lru_cache(maxsize=256)
def _described(document: Document) -> Mapping[str, frozenset[str]]:
    """Return the words that may be said of a document: its forms by stem, and numbers as they are."""
    found: dict[str, set[str]] = {}
    for text in (document.title, document.text):
        described = without_instructions(text)
        for word in words(described):
            if not _has_digit(word.text):
                form = normalise(word.text)
                found.setdefault(_stem(form), set()).add(form)
            elif not _has_sign(word, described):
                found.setdefault(word.text, set()).add(word.text)
    return {stem: frozenset(forms) for stem, forms in found.items()}


def _is_said_by(word: str, described: Mapping[str, frozenset[str]]) -> bool:
    form = normalise(word)
    if form in connectives():
        return True
    if _has_digit(word):
        return word in described
    return any(_is_inflected(form, other) for other in described.get(_stem(form), ()))


def _is_inflected(form: str, other: str) -> bool:
    """Say whether two words of one stem differ by an ending alone: not `import` and `important`."""
    shared = next(
        (place for place, (a, b) in enumerate(zip(form, other, strict=False)) if a != b),
        min(len(form), len(other)),
    )
    return form[shared:] in _INFLECTIONS and other[shared:] in _INFLECTIONS


def _has_digit(word: str) -> bool:
    return any(character.isnumeric() for character in word)


def _has_sign(word: Word, text: str) -> bool:
    """Say whether a sign stands before a number, and not between it and a word: `-25`, not `2003-2020`."""
    before = text[max(word.start - 2, 0) : word.start]
    return before[-1:] in _SIGNS and bool(before) and not before[:-1].isalnum()


def _stem(form: str) -> str:
    return str(_stemmer().stemWord(form))


@cache
def _stemmer() -> Stemmer.Stemmer:
    return Stemmer.Stemmer("english")


@cache
def _refused_stems() -> frozenset[str]:
    return frozenset(_stem(normalise(word)) for word in load_template("refused").split())


def _goes_in_circles(said: Sequence[str]) -> bool:
    """Say whether the same four words follow one another twice, as where a small model loops."""
    runs = [tuple(said[start : start + 4]) for start in range(len(said) - 3)]
    return len(set(runs)) < len(runs)


@lru_cache(maxsize=256)
def _forms(text: str) -> frozenset[str]:
    return frozenset(normalise(word.text) for word in words(text))
