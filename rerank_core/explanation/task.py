"""What a text generator is asked about a document's placement."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from rerank_core.explanation.grounding import (
    MAX_CITED,
    MAX_SENTENCES,
    citable,
    connectives,
    effects_told,
    is_refused,
    openings,
)
from rerank_core.explanation.instructions import without_instructions
from rerank_core.prompting.render import load_template, neutralise, render
from rerank_core.text import words

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from rerank_core.prompting.parse import Effect
    from rerank_core.records import Attribution, Document, Evidence, Query

MAX_DOCUMENT_CHARS = 4000
"""Longest part of a document's text that a prompt shows."""

MAX_VOCABULARY = 400
"""Distinct words of a document that a text may use; bounds the size of the schema."""

MIN_TERMS, MAX_TERMS = 6, 24

CONTRAST_TEMPLATE = "explain_contrast"
"""The template of explanations that compare a document with the next-ranked one."""


@dataclass(frozen=True, slots=True)
class Placement:
    """A document at a rank (from 1) for a query, to be explained; without evidence, from the texts alone."""

    query: Query
    document: Document
    rank: int
    num_candidates: int
    evidence: Evidence | None

    @property
    def is_low(self) -> bool:
        """Whether it stands in the lower half of its list: then what lowered its score is told first."""
        return self.num_candidates > 1 and 2 * self.rank > self.num_candidates

    @property
    def template(self) -> str:
        """The name of the prompt template that asks about it."""
        if self.evidence is None:
            return "explain_without_attribution"
        if self.evidence.contrast is not None:
            return CONTRAST_TEMPLATE
        return "explain_low_rank" if self.is_low else "explain_with_attribution"

    @property
    def digest(self) -> str:
        """The SHA-256 of what a text is to tell and how it is asked for, in hexadecimal.

        It is of the placement, and of prompt and schema, so of the words that a text may have. The checks
        that a text has passed, and the sentences on rank and effects, are not in it.
        """
        task = build_task(self)
        told = json.dumps([asdict(self), task.prompt, task.schema], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Task:
    """What a text generator is asked: a prompt, and the JSON schema of the answer."""

    prompt: str
    schema: Mapping[str, Any]


def build_task(
    placement: Placement, *, special_tokens: Iterable[str] = (), max_document_chars: int = MAX_DOCUMENT_CHARS
) -> Task:
    """Return what to ask about a placement, showing the first `max_document_chars` of each document's text.

    The schema asks for one or two sentences in the document's own words (and `connectives` to join them);
    with evidence, each cites `MAX_CITED` evidence words at most for each effect that they had. Sentences of a
    document that give commands are neither shown nor a source of words.
    """
    tokens = tuple(special_tokens)
    title = without_instructions(placement.document.title)
    text = _beginning(without_instructions(placement.document.text), max_document_chars)
    slots = {
        "query": neutralise(placement.query.text, special_tokens=tokens),
        "title": neutralise(title, special_tokens=tokens),
        "text": neutralise(text, special_tokens=tokens),
        "url": neutralise(placement.document.url, special_tokens=tokens),
        "rank": str(placement.rank),
        "num_candidates": str(placement.num_candidates),
    }
    properties: dict[str, Any] = {
        "text": {"type": "string", "pattern": _sentence_pattern(f"{title}\n{text}")}
    }
    if placement.evidence is not None:
        by_effect = asked_words(placement)
        slots["words"] = json.dumps(by_effect, ensure_ascii=False)
        slots |= _other_slots(placement.evidence, tokens=tokens, max_chars=max_document_chars)
        properties |= {effect: _word_list(found) for effect, found in by_effect.items() if found}
    sentence = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    schema = {
        "type": "object",
        "properties": {
            "sentences": {"type": "array", "items": sentence, "minItems": 1, "maxItems": MAX_SENTENCES}
        },
        "required": ["sentences"],
        "additionalProperties": False,
    }
    return Task(render(load_template(placement.template), slots), schema)


def asked_words(placement: Placement) -> dict[Effect, list[str]]:
    """Return the words that an explanation may cite, by the effect that they had, in the order told.

    At a low rank what lowered the score is told first.
    """
    if placement.evidence is None:
        return {}
    found, told = citable(placement.evidence), effects_told(placement.evidence)
    is_turned = placement.is_low and placement.evidence.contrast is None
    return {
        effect: [word.text for word in found[effect]] for effect in (reversed(told) if is_turned else told)
    }


def read_document(attribution: Attribution, document: Document) -> Document:
    """Return a document as far as its scorer reads it: an explanation may tell nothing else of it.

    Of a text that is read in part, what stands from the first attributed word to the last remains, with the
    letters and marks that touch them; a title without an attributed word goes.
    """
    if not attribution.is_truncated or not attribution.units:
        return document
    of_text = [unit for unit in attribution.units if unit.field == "text"]
    is_titled = len(of_text) < len(attribution.units)
    start, end = (of_text[0].start, of_text[-1].end) if of_text else (0, 0)
    while start > 0 and not document.text[start - 1].isspace():
        start -= 1
    while end < len(document.text) and not document.text[end].isspace():
        end += 1
    title = document.title if is_titled else ""
    return replace(document, text=document.text[start:end], title=title)


def _other_slots(evidence: Evidence, *, tokens: Sequence[str], max_chars: int) -> dict[str, str]:
    if evidence.contrast is None:
        return {}
    other = evidence.contrast.document
    text = _beginning(without_instructions(other.text), max_chars)
    return {
        "other_title": neutralise(without_instructions(other.title), special_tokens=tokens),
        "other_text": neutralise(text, special_tokens=tokens),
        "other_rank": str(evidence.contrast.rank),
    }


def _beginning(text: str, max_chars: int) -> str:
    """Return whole words from the start of a text, `max_chars` at most; part of the first if it is longer."""
    if len(text) <= max_chars:
        return text
    return re.sub(r"\S+\Z", "", text[: max_chars + 1]).rstrip() or text[:max_chars]


def _word_list(enum: Sequence[str]) -> dict[str, Any]:
    return {
        "type": "array",
        "items": {"enum": list(enum)},
        "minItems": min(MAX_CITED, len(enum)),
        "maxItems": MAX_CITED,
    }


def _sentence_pattern(content: str) -> str:
    """Return a pattern for a sentence of connectives and the content's terms, as written or in lower case."""
    allowed = (term for term in _terms(content) if not any(is_refused(word.text) for word in words(term)))
    own = list(dict.fromkeys(allowed))[:MAX_VOCABULARY]
    vocabulary = dict.fromkeys([*own, *(term.lower() for term in own), *connectives()])
    longest_first = sorted(vocabulary, key=len, reverse=True)
    term = f"({'|'.join(re.escape(t) for t in longest_first)})"
    opening = "|".join(openings())
    return f"^({opening}) ({term},? ){{{MIN_TERMS - 1},{MAX_TERMS - 1}}}{term}\\.$"


def _terms(content: str) -> Iterator[str]:
    """Yield words, and in one piece those that hyphens join: `ice`, `multi-angle`, `2003-2020`."""
    found = words(content)
    first = 0
    for last, word in enumerate(found):
        follower = found[last + 1] if last + 1 < len(found) else None
        if follower is None or content[word.end : follower.start] != "-":
            yield content[found[first].start : word.end]
            first = last + 1
