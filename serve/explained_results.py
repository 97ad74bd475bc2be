"""What was found out about results, as the API shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from serve.explanations import Degraded, TextFound, WordsDrafted, WordsFound, explained_places, rival_of
from serve.schemas import (
    AttributionObject,
    DraftEvent,
    ExplanationObject,
    MarginObject,
    OrderFlipObject,
    RankFlipObject,
    TextEvent,
    TextObject,
    UnitObject,
    WordsEvent,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import BaseModel

    from rerank_core.attribution.rank_flip import RankFlip
    from rerank_core.records import Attribution, Explanation, Unit
    from serve.explanations import Asked, Event, RankedList
    from serve.schemas import RerankResponse


def with_explanations(
    response: RerankResponse, ranked: RankedList, asked: Asked, events: Sequence[Event]
) -> RerankResponse:
    """Return a response whose first results hold what the last event of each kind says of them."""
    shown = {index: ExplanationObject() for _, index in explained_places(ranked, asked)}
    order_flip = None
    for event in events:
        if isinstance(event, WordsFound):
            shown |= explanations_of(event, ranked, asked)
            order_flip = order_flip_of(event, asked)
        elif isinstance(event, TextFound):
            text = text_object(event.explanation)
            shown[event.index] = shown[event.index].model_copy(update={"text": text})
    results = [
        result.model_copy(update={"explanation": shown.get(result.index)}) for result in response.results
    ]
    degraded = [event.part for event in events if isinstance(event, Degraded)]
    return response.model_copy(
        update={"results": results, "order_flip": order_flip, "degraded": degraded or None}
    )


def event_object(
    event: WordsFound | WordsDrafted | TextFound, ranked: RankedList, asked: Asked
) -> tuple[str, BaseModel]:
    """Return the name of an event and what it says."""
    if isinstance(event, WordsFound):
        return "attributions", WordsEvent(
            is_refined=event.is_refined,
            explanations=explanations_of(event, ranked, asked),
            order_flip=order_flip_of(event, asked),
        )
    if isinstance(event, WordsDrafted):
        return "draft", DraftEvent(index=event.index, text=event.text)
    return "explanation", TextEvent(index=event.index, text=text_object(event.explanation))


def explanations_of(found: WordsFound, ranked: RankedList, asked: Asked) -> dict[int, ExplanationObject]:
    """Return by position what was found of the explained results, and of those that they are set against."""
    shown = {}
    flips = found.rank_flips if asked.with_flips and found.rank_flips is not None else {}
    for rank, index in explained_places(ranked, asked):
        lower = rival_of(rank, ranked, asked)
        shown[index] = ExplanationObject(
            attribution=attribution_object(found.by_index[index], is_refined=found.is_refined),
            above=None
            if lower is None
            else MarginObject(
                index=lower,
                margin=ranked.scores[index] - ranked.scores[lower],
                attribution=attribution_object(found.by_index[lower], is_refined=found.is_refined),
            ),
            rank_flip=rank_flip_object(flips[index], found.by_index[index], rank=rank)
            if index in flips
            else None,
        )
    return shown


def rank_flip_object(flip: RankFlip | None, attribution: Attribution, *, rank: int) -> RankFlipObject:
    """Return what was found of the words that hold a result at its rank as the API shows it."""
    if flip is None:
        return RankFlipObject(units=[], rank=rank)
    return RankFlipObject(
        units=[unit_object(attribution.units[place], attribution.values[place]) for place in flip.places],
        rank=flip.rank,
        flipped_rank=flip.flipped_rank,
        score=flip.score,
    )


def order_flip_of(found: WordsFound, asked: Asked) -> OrderFlipObject | None:
    """Return the rank flip of the fewest words, the higher rank first, where the list's is asked for."""
    if not asked.with_order_flip:
        return None
    flips = [(index, flip) for index, flip in (found.rank_flips or {}).items() if flip is not None]
    if not flips:
        return None
    index, flip = min(flips, key=lambda one: (len(one[1].places), one[1].rank))
    flipped = rank_flip_object(flip, found.by_index[index], rank=flip.rank)
    return OrderFlipObject(index=index, rank_flip=flipped)


def attribution_object(attribution: Attribution, *, is_refined: bool) -> AttributionObject:
    """Return an attribution of a document as the API shows it."""
    return AttributionObject(
        score=attribution.score,
        base_value=attribution.base_value,
        units=[
            unit_object(unit, value)
            for unit, value in zip(attribution.units, attribution.values, strict=True)
        ],
        residual=attribution.residual,
        method=attribution.method,
        num_evals=attribution.num_evals,
        error=attribution.error,
        seed=attribution.seed,
        is_truncated=attribution.is_truncated,
        is_refined=is_refined,
    )


def unit_object(unit: Unit, value: float) -> UnitObject:
    """Return a unit of a document with its value as the API shows it."""
    assert unit.field != "query", "documents alone are attributed here"
    return UnitObject(text=unit.text, start=unit.start, end=unit.end, field=unit.field, value=value)


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
