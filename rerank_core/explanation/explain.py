"""Why a document was placed where it is, in words that the document and its attribution bear out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rerank_core.explanation.grounding import MAX_CITED, check_citations, check_grounding, connectives
from rerank_core.explanation.task import Placement, asked_words, build_task
from rerank_core.prompting.parse import Citation, parse_answer
from rerank_core.prompting.render import load_template, render
from rerank_core.records import Explanation, Generation
from rerank_core.text import normalise, words

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rerank_core.protocols import TextGenerator

NUM_ATTEMPTS = 2
"""Texts that a generator may write about one placement before the template's stands in."""


class Explainer:
    """Writes explanations with a text generator, and from a template where its texts are not grounded."""

    def __init__(self, generator: TextGenerator, *, name: str, special_tokens: Iterable[str] = ()) -> None:
        """Take the generator, the name to store with its texts, and its tokenizer's special tokens."""
        self._generator = generator
        self._name = name
        self._special_tokens = tuple(special_tokens)

    def explain(self, placements: Sequence[Placement]) -> list[Explanation]:
        """Return one explanation per placement, in order; a text that is refused is asked for once more."""
        generations: list[list[Generation]] = [[] for _ in placements]
        explained: dict[int, Explanation] = {}
        pending = list(range(len(placements)))
        for attempt in range(1, NUM_ATTEMPTS + 1):
            tasks = [build_task(placements[i], special_tokens=self._special_tokens) for i in pending]
            answers = self._generator.generate(
                [task.prompt for task in tasks], [task.schema for task in tasks], attempt=attempt
            )
            for i, answer in zip(pending, answers, strict=True):
                generations[i].append(answer)
                explained[i] = conclude(placements[i], generations[i], generator=self._name)
            pending = [i for i in pending if explained[i].fallback]
            if not pending:
                break
        return [explained[i] for i in range(len(placements))]


def conclude(placement: Placement, generations: Sequence[Generation], *, generator: str) -> Explanation:
    """Return the explanation that the last of the answers gives: the template's if it is not grounded.

    After a grounded text, templates say the rank, and what the answer cites by effect.
    """
    answer = parse_answer(generations[-1].text)
    problems = [
        *answer.problems,
        *check_grounding(answer.sentences, evidence=placement.evidence, document=placement.document),
    ]
    if problems:
        return _fallback(placement, problems, generations=generations, generator=generator)
    text = " ".join(
        [answer.text, _rank_sentence("placed", placement), *_effect_sentences(placement, answer.citations)]
    )
    return _explanation(placement, text, answer.citations, generations=generations, generator=generator)


def conclude_failure(placement: Placement, reason: str, *, generator: str) -> Explanation:
    """Return the template's explanation for a placement on which the generator failed."""
    return _fallback(placement, [f"generator_failed: {reason}"], generations=(), generator=generator)


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


def _rank_sentence(template: str, placement: Placement) -> str:
    slots = {"rank": str(placement.rank), "num_candidates": str(placement.num_candidates)}
    contrast = placement.evidence.contrast if placement.evidence else None
    if contrast is None:
        return render(load_template(template), slots)
    slots |= {"other_rank": str(contrast.rank), "margin": f"{contrast.margin:.2f}"}
    return render(load_template(f"{template}_above"), slots)


def _effect_sentences(placement: Placement, citations: Sequence[Citation]) -> list[str]:
    sentences = []
    for effect in asked_words(placement):
        cited = [citation.word for citation in citations if citation.effect == effect]
        if cited:
            sentences.append(render(load_template(effect), {"words": _enumerated(cited)}))
    return sentences


def _enumerated(found: Sequence[str]) -> str:
    """Return `"a", "b" and "c"`."""
    quoted = [f'"{word}"' for word in found]
    return " and ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)


def _fallback(
    placement: Placement, problems: Sequence[str], *, generations: Sequence[Generation], generator: str
) -> Explanation:
    if placement.evidence is None:
        shared = shared_words(placement.query.text, placement.document.content)
        citations = tuple(Citation(word) for word in shared)
        sentences = [
            render(load_template("shared"), {"words": _enumerated(shared)})
            if shared
            else load_template("shared_none")
        ]
    else:
        citations = tuple(
            Citation(word, effect)
            for effect, found in asked_words(placement).items()
            for word in found[:MAX_CITED]
        )
        sentences = _effect_sentences(placement, citations)
    return _explanation(
        placement,
        " ".join([_rank_sentence("fallback", placement), *sentences]),
        citations,
        generations=generations,
        generator=generator,
        problems=tuple(problems),
    )


def _explanation(  # noqa: PLR0913 - one argument per part of the record
    placement: Placement,
    text: str,
    citations: Sequence[Citation],
    *,
    generations: Sequence[Generation],
    generator: str,
    problems: tuple[str, ...] = (),
) -> Explanation:
    return Explanation(
        query_id=placement.query.query_id,
        doc_id=placement.document.doc_id,
        text=text,
        cited=tuple(citation.word for citation in citations),
        effects=tuple(citation.effect or "" for citation in citations),
        grounded=not check_citations(citations, placement.evidence, document=placement.document),
        problems=problems,
        with_attribution=placement.evidence is not None,
        fallback=bool(problems),
        prompt_tokens=sum(generation.prompt_tokens for generation in generations),
        generated_tokens=sum(generation.generated_tokens for generation in generations),
        generator=generator,
        template=placement.template,
        num_attempts=len(generations),
        asked_digest=placement.digest,
    )
