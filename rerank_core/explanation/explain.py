"""Why a document was placed where it is, in words that the document and its attribution bear out."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rerank_core.explanation.grounding import check_citations, check_grounding, connectives
from rerank_core.prompting.parse import EFFECTS, Citation, Effect, parse_answer
from rerank_core.prompting.render import load_template, neutralise, render
from rerank_core.records import Document, Evidence, Explanation, Generation, Query
from rerank_core.text import normalise, words

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from rerank_core.protocols import TextGenerator

MAX_CITED = 3
"""Words that an explanation cites for each effect."""

MAX_DOCUMENT_CHARS = 4000
"""Longest part of a document's text that a prompt shows."""

MAX_VOCABULARY = 400
"""Distinct words of a document that a text may use; bounds the size of the schema."""

OPENING = "This document describes"
MIN_TERMS, MAX_TERMS = 6, 24


@dataclass(frozen=True, slots=True)
class Placement:
    """A document at a rank (from 1) for a query, to be explained; without evidence, from the texts alone."""

    query: Query
    document: Document
    rank: int
    num_candidates: int
    evidence: Evidence | None


@dataclass(frozen=True, slots=True)
class Task:
    """What a text generator is asked: a prompt, and the JSON schema of the answer."""

    prompt: str
    schema: Mapping[str, Any]


class Explainer:
    """Writes explanations with a text generator, and from a template where its text is not grounded."""

    def __init__(self, generator: TextGenerator, *, name: str, special_tokens: Iterable[str] = ()) -> None:
        """Take the generator, the name to store with its texts, and its tokenizer's special tokens."""
        self._generator = generator
        self._name = name
        self._special_tokens = tuple(special_tokens)

    def explain(self, placements: Sequence[Placement]) -> list[Explanation]:
        """Return one explanation per placement, in order."""
        tasks = [build_task(placement, special_tokens=self._special_tokens) for placement in placements]
        generations = self._generator.generate(
            [task.prompt for task in tasks], [task.schema for task in tasks]
        )
        return [
            conclude(placement, generation, generator=self._name)
            for placement, generation in zip(placements, generations, strict=True)
        ]


def build_task(
    placement: Placement, *, special_tokens: Iterable[str] = (), max_document_chars: int = MAX_DOCUMENT_CHARS
) -> Task:
    """Return what to ask about a placement, showing the first `max_document_chars` of the document's text.

    The answer's `reason` is one sentence in the document's own words (and `connectives` to join them); with
    evidence, `raised` and `lowered` cite evidence words of that sign, `MAX_CITED` at most for each.
    """
    document, tokens = placement.document, tuple(special_tokens)
    shown = _beginning(document.text, max_document_chars)
    slots = {
        "query": neutralise(placement.query.text, special_tokens=tokens),
        "title": neutralise(document.title, special_tokens=tokens),
        "text": neutralise(shown, special_tokens=tokens),
        "url": neutralise(document.url, special_tokens=tokens),
        "rank": str(placement.rank),
        "num_candidates": str(placement.num_candidates),
    }
    properties: dict[str, Any] = {
        "reason": {"type": "string", "pattern": _sentence_pattern(f"{document.title}\n{shown}")}
    }
    name = "explain_without_attribution"
    if placement.evidence is not None:
        name = "explain_with_attribution"
        by_effect = {effect: _words_with(effect, placement.evidence) for effect in EFFECTS}
        slots["words"] = json.dumps(by_effect, ensure_ascii=False)
        properties |= {effect: _word_list(found) for effect, found in by_effect.items() if found}
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return Task(render(load_template(name), slots), schema)


def conclude(placement: Placement, generation: Generation, *, generator: str) -> Explanation:
    """Return the explanation that an answer gives: its own text if that is grounded, else the template's.

    After a grounded text, templates say the rank, and what the answer cites by effect.
    """
    answer = parse_answer(generation.text)
    problems = [
        *answer.problems,
        *check_grounding(
            answer.text, answer.citations, evidence=placement.evidence, document=placement.document
        ),
    ]
    if problems:
        return _fallback(placement, problems, generation=generation, generator=generator)
    text = " ".join([answer.text, _rank_sentence("placed", placement), *_effect_sentences(answer.citations)])
    return _explanation(placement, text, answer.citations, generation=generation, generator=generator)


def conclude_failure(placement: Placement, reason: str, *, generator: str) -> Explanation:
    """Return the template's explanation for a placement on which the generator failed."""
    problem = f"generator_failed: {reason}"
    return _fallback(placement, [problem], generation=Generation("", 0, 0), generator=generator)


def shared_words(query: str, text: str) -> list[str]:
    """Return the first `MAX_CITED` words of a text that a query has too, as the text writes them."""
    in_query = {normalise(word.text) for word in words(query)}
    joining = {normalise(word) for word in connectives()}
    shown: dict[str, str] = {}
    for word in words(text):
        form = normalise(word.text)
        if form in in_query and form not in joining:
            shown.setdefault(form, word.text)
    return list(shown.values())[:MAX_CITED]


def _beginning(text: str, max_chars: int) -> str:
    """Return whole words from the start of a text, `max_chars` at most; part of the first if it is longer."""
    if len(text) <= max_chars:
        return text
    return re.sub(r"\S+\Z", "", text[: max_chars + 1]).rstrip() or text[:max_chars]


def _words_with(effect: Effect, evidence: Evidence) -> list[str]:
    return [word.text for word in evidence.words if (word.value > 0) == (effect == "raised")]


def _word_list(enum: Sequence[str]) -> dict[str, Any]:
    count = min(MAX_CITED, len(enum))
    return {"type": "array", "items": {"enum": list(enum)}, "minItems": count, "maxItems": MAX_CITED}


def _sentence_pattern(content: str) -> str:
    """Return a pattern for a sentence of connectives and the content's terms, as written or in lower case."""
    own = list(dict.fromkeys(_terms(content)))[:MAX_VOCABULARY]
    vocabulary = dict.fromkeys([*own, *(term.lower() for term in own), *connectives()])
    longest_first = sorted(vocabulary, key=len, reverse=True)
    term = f"({'|'.join(re.escape(t) for t in longest_first)})"
    return f"^{OPENING} ({term},? ){{{MIN_TERMS - 1},{MAX_TERMS - 1}}}{term}\\.$"


def _terms(content: str) -> Iterator[str]:
    """Yield words, and in one piece those that hyphens join: `ice`, `multi-angle`, `2003-2020`."""
    found = words(content)
    first = 0
    for last, word in enumerate(found):
        follower = found[last + 1] if last + 1 < len(found) else None
        if follower is None or content[word.end : follower.start] != "-":
            yield content[found[first].start : word.end]
            first = last + 1


def _rank_sentence(template: str, placement: Placement) -> str:
    slots = {"rank": str(placement.rank), "num_candidates": str(placement.num_candidates)}
    return render(load_template(template), slots)


def _effect_sentences(citations: Sequence[Citation]) -> list[str]:
    sentences = []
    for effect in EFFECTS:
        cited = [citation.word for citation in citations if citation.effect == effect]
        if cited:
            sentences.append(render(load_template(effect), {"words": _enumerated(cited)}))
    return sentences


def _enumerated(found: Sequence[str]) -> str:
    """Return `"a", "b" and "c"`."""
    quoted = [f'"{word}"' for word in found]
    return " and ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)


def _fallback(
    placement: Placement, problems: Sequence[str], *, generation: Generation, generator: str
) -> Explanation:
    if placement.evidence is None:
        shared = shared_words(placement.query.text, placement.document.content)
        citations = tuple(Citation(word) for word in shared)
        listed = _enumerated(shared) if shared else "no word"
        sentences = [render(load_template("shared"), {"words": listed})]
    else:
        citations = tuple(
            Citation(word, effect)
            for effect in EFFECTS
            for word in _words_with(effect, placement.evidence)[:MAX_CITED]
        )
        sentences = _effect_sentences(citations)
    return _explanation(
        placement,
        " ".join([_rank_sentence("fallback", placement), *sentences]),
        citations,
        generation=generation,
        generator=generator,
        problems=tuple(problems),
    )


def _explanation(  # noqa: PLR0913 - one argument per part of the record
    placement: Placement,
    text: str,
    citations: Sequence[Citation],
    *,
    generation: Generation,
    generator: str,
    problems: tuple[str, ...] = (),
) -> Explanation:
    return Explanation(
        query_id=placement.query.query_id,
        doc_id=placement.document.doc_id,
        text=text,
        cited=tuple(citation.word for citation in citations),
        grounded=not check_citations(citations, placement.evidence, document=placement.document),
        problems=problems,
        with_attribution=placement.evidence is not None,
        fallback=bool(problems),
        prompt_tokens=generation.prompt_tokens,
        generated_tokens=generation.generated_tokens,
        generator=generator,
    )
