"""What was found out about results, as the API shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from serve.explanations import Degraded, TextFound, WordsDrafted, WordsFound, explained_places
from serve.schemas import (
    AttributionObject,
    DraftEvent,
    ExplanationObject,
    MarginObject,
    TextEvent,
    TextObject,
    UnitObject,
    WordsEvent,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import BaseModel

    from rerank_core.records import Attribution, Explanation
    from serve.explanations import Asked, Event, RankedList
    from serve.schemas import RerankResponse


def with_explanations(
    response: RerankResponse, ranked: RankedList, asked: Asked, events: Sequence[Event]
) -> RerankResponse:
    """Return a response whose first results hold what the last event of each kind says of them."""
    shown = {index: ExplanationObject() for _, index in explained_places(ranked, asked)}
    for event in events:
        if isinstance(event, WordsFound):
            shown |= explanations_of(event, ranked, asked)
        elif isinstance(event, TextFound):
            text = text_object(event.explanation)
            shown[event.index] = shown[event.index].model_copy(update={"text": text})
    results = [
        result.model_copy(update={"explanation": shown.get(result.index)}) for result in response.results
    ]
    degraded = [event.part for event in events if isinstance(event, Degraded)]
    return response.model_copy(update={"results": results, "degraded": degraded or None})


def event_object(
    event: WordsFound | WordsDrafted | TextFound, ranked: RankedList, asked: Asked
) -> tuple[str, BaseModel]:
    """Return the name of an event and what it says."""
    if isinstance(event, WordsFound):
        return "attributions", WordsEvent(
            is_refined=event.is_refined, explanations=explanations_of(event, ranked, asked)
        )
    if isinstance(event, WordsDrafted):
        return "draft", DraftEvent(index=event.index, text=event.text)
    return "explanation", TextEvent(index=event.index, text=text_object(event.explanation))


def explanations_of(found: WordsFound, ranked: RankedList, asked: Asked) -> dict[int, ExplanationObject]:
    """Return by position the attributions of the explained results, and of those that they stand above."""
    shown = {}
    for rank, index in explained_places(ranked, asked):
        lower = ranked.order[rank] if asked.with_next and rank < len(ranked.order) else None
        shown[index] = ExplanationObject(
            attribution=attribution_object(found.by_index[index], is_refined=found.is_refined),
            above=None
            if lower is None
            else MarginObject(
                index=lower,
                margin=ranked.scores[index] - ranked.scores[lower],
                attribution=attribution_object(found.by_index[lower], is_refined=found.is_refined),
            ),
        )
    return shown


def attribution_object(attribution: Attribution, *, is_refined: bool) -> AttributionObject:
    """Return an attribution of a document as the API shows it."""
    units = []
    for unit, value in zip(attribution.units, attribution.values, strict=True):
        assert unit.field != "query", "documents alone are attributed here"
        units.append(
            UnitObject(text=unit.text, start=unit.start, end=unit.end, field=unit.field, value=value)
        )
    return AttributionObject(
        score=attribution.score,
        base_value=attribution.base_value,
        units=units,
        residual=attribution.residual,
        method=attribution.method,
        num_evals=attribution.num_evals,
        error=attribution.error,
        seed=attribution.seed,
        is_truncated=attribution.is_truncated,
        is_refined=is_refined,
    )


def text_object(explanation: Explanation) -> TextObject:
    """Return an explanation as the API shows it; of what was refused only the kinds of reasons are told."""
    return TextObject(
        text=explanation.text,
        cited=list(explanation.cited),
        effects=list(explanation.effects),
        is_fallback=explanation.fallback,
        problems=list(dict.fromkeys(problem.partition(":")[0] for problem in explanation.problems)),
        with_attribution=explanation.with_attribution,
        generator=explanation.generator,
    )
