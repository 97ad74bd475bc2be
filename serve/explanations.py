"""Why the first results stand where they do: words first, refined words next, then texts, as they come."""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from rerank_core.explanation.evidence import contrast_evidence, select_evidence
from rerank_core.explanation.task import Placement, read_document
from serve.attributor import AttributionTask, Standing
from serve.deadlines import until
from serve.errors import ApiError, InvalidRequestError, UnavailableError
from serve.explainer import Draft

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    from rerank_core.attribution.build import Method
    from rerank_core.attribution.leaves import Leaf
    from rerank_core.attribution.rank_flip import RankFlip
    from rerank_core.records import Attribution, Document, Explanation, Query
    from serve.attributor import Attributed
    from serve.explainer import Explained

Part = Literal["attributor", "explainer"]

LARGEST_DIFFERENCE = 1e-3
"""How far the attributor's score of a document may lie from the reranker's, in logits."""

CLEAR_DIFFERENCE = 1e-4
"""How far a document has to fall below another one to stand lower, in logits: the scores of one text differ
by less from batch to batch."""


class Attributors(Protocol):
    """An attributor, in this process or behind a handle."""

    def attribute(self, task: AttributionTask) -> AsyncGenerator[Attributed, None]:
        """Yield coarse attributions, and refined ones if there is time."""
        ...


class Explainers(Protocol):
    """Whoever writes texts about placements."""

    def explain(self, placement: Placement) -> AsyncIterator[Draft | Explained]:
        """Yield drafts, and at last the explanation."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What of the first results is to be explained."""

    skip: int  # results before the first that is explained
    num_results: int
    with_text: bool
    num_words: int
    contrast: bool
    with_next: bool  # each result is set against the next one, which is attributed too
    over: int | None  # or against the document at this position
    with_flips: bool  # the few words without which each result would stand lower are searched
    with_order_flip: bool  # and the fewest among them are told of the list
    method: Method
    leaf: Leaf
    max_evals: int
    seed: int
    deadline_s: float


@dataclass(frozen=True, slots=True)
class RankedList:
    """A query's documents with their scores, as logits; `order` are their positions, best first."""

    query: Query
    documents: tuple[Document, ...]
    scores: tuple[float, ...]
    order: tuple[int, ...]
    digest: str


@dataclass(frozen=True, slots=True)
class WordsFound:
    """Attributions by position, of the explained results and of those that they are set against.

    `rank_flips` are those of the explained results, once they were searched.
    """

    by_index: dict[int, Attribution]
    is_refined: bool
    rank_flips: dict[int, RankFlip | None] | None = None


@dataclass(frozen=True, slots=True)
class WordsDrafted:
    """Further words of a text that is being written about a result."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class TextFound:
    """The text about a result."""

    index: int
    explanation: Explanation


@dataclass(frozen=True, slots=True)
class Degraded:
    """Who could not do all that was asked for."""

    part: Part


Event: TypeAlias = WordsFound | WordsDrafted | TextFound | Degraded


async def explained(
    ranked: RankedList, asked: Asked, *, attributors: Attributors, explainers: Explainers
) -> AsyncIterator[Event]:
    """Yield what is found out about the first results, in the order in which it is; faults become `Degraded`.

    Raises:
        InvalidRequestError: the settings of the attribution do not fit the documents.
    """
    words: dict[int, Attribution] = {}
    is_complete = False
    try:
        deadline = time.monotonic() + asked.deadline_s
        async for found in until(deadline, _attributed(ranked, asked, attributors)):
            words = found.by_index
            is_complete = found.is_refined and (found.rank_flips is not None or not asked.with_flips)
            yield found
    except InvalidRequestError:
        raise
    except (ApiError, TimeoutError):
        pass  # what came before stays; if nothing did, texts are written from the documents alone
    if not is_complete:
        yield Degraded("attributor")
    if asked.with_text:
        async for event in _written(ranked, asked, words, explainers):
            yield event


async def _attributed(
    ranked: RankedList, asked: Asked, attributors: Attributors
) -> AsyncGenerator[WordsFound, None]:
    chosen = attributed_indices(ranked, asked)
    if not chosen:
        yield WordsFound({}, is_refined=True, rank_flips={})
        return
    searched = searched_places(ranked, asked)
    task = AttributionTask(
        query=ranked.query,
        documents=tuple(ranked.documents[index] for index in chosen),
        method=asked.method,
        leaf=asked.leaf,
        max_evals=asked.max_evals,
        seed=asked.seed,
        deadline_s=asked.deadline_s,
        standings=tuple(standing_at(rank, ranked) for rank, _ in searched),
    )
    async with aclosing(attributors.attribute(task)) as answers:
        async for found in answers:
            _require_same_model(ranked, found, chosen)
            by_index = dict(zip(chosen, found.attributions, strict=True))
            is_searched = found.rank_flips is not None or (found.is_refined and not searched)
            flips: dict[int, RankFlip | None] | None = None
            if asked.with_flips and is_searched:
                flips = {index: None for _, index in explained_places(ranked, asked)}
                flips |= zip((index for _, index in searched), found.rank_flips or (), strict=True)
            yield WordsFound(by_index, found.is_refined, flips)


def _require_same_model(ranked: RankedList, found: Attributed, chosen: Sequence[int]) -> None:
    """Refuse values of another model than the one that ranked, or of other scores."""
    pairs = zip(chosen, found.attributions, strict=True)
    if found.digest == ranked.digest and all(
        abs(attribution.score - ranked.scores[index]) <= LARGEST_DIFFERENCE for index, attribution in pairs
    ):
        return
    raise UnavailableError(
        "the attributor has another version of the model than the reranker",
        code="model_changing",
        remedy="send the request again after the time in Retry-After",
        retry_after_s=2,
    )


async def _written(
    ranked: RankedList, asked: Asked, words: dict[int, Attribution], explainers: Explainers
) -> AsyncIterator[Event]:
    """Yield what is written about all results at the same time, and one `Degraded` if a text is missing."""
    events: asyncio.Queue[Event | None] = asyncio.Queue()

    async def write(index: int, placement: Placement) -> None:
        async for told in explainers.explain(placement):
            if isinstance(told, Draft):
                events.put_nowait(WordsDrafted(index, told.text))
                continue
            if told.has_failed:
                failed.add(index)
            events.put_nowait(TextFound(index, told.explanation))

    async def write_all() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for index, placement in placements(ranked, asked, words).items():
                    group.create_task(write(index, placement))
        finally:
            events.put_nowait(None)

    failed: set[int] = set()
    work = asyncio.create_task(write_all())
    try:
        while (event := await events.get()) is not None:
            yield event
        await work
    finally:
        work.cancel()
    if failed:
        yield Degraded("explainer")


def explained_places(ranked: RankedList, asked: Asked) -> list[tuple[int, int]]:
    """Return rank, from 1, and position of each result that is explained."""
    chosen = ranked.order[asked.skip : asked.skip + asked.num_results]
    return list(enumerate(chosen, start=asked.skip + 1))


def searched_places(ranked: RankedList, asked: Asked) -> list[tuple[int, int]]:
    """Return rank and position of each result whose rank flip is searched: the last one cannot fall."""
    if not asked.with_flips:
        return []
    return [(rank, index) for rank, index in explained_places(ranked, asked) if rank < len(ranked.order)]


def rival_of(rank: int, ranked: RankedList, asked: Asked) -> int | None:
    """Return the position of the document that the result at a rank is set against, if there is one."""
    if asked.over is not None:
        return asked.over if asked.over != ranked.order[rank - 1] else None
    return ranked.order[rank] if asked.with_next and rank < len(ranked.order) else None


def attributed_indices(ranked: RankedList, asked: Asked) -> tuple[int, ...]:
    """Return the positions of all documents that are attributed, those of the explained results first."""
    places = explained_places(ranked, asked)
    rivals = [rival_of(rank, ranked, asked) for rank, _ in places]
    return tuple(
        dict.fromkeys([*(index for _, index in places), *(one for one in rivals if one is not None)])
    )


def standing_at(rank: int, ranked: RankedList) -> Standing:
    """Return the standing of the result at a rank, such that its rank among its rivals is that one.

    As in the list, a result stands below those of an equal score that come before it in the request: these
    count as higher by the least that a number can be. And it falls by a clear difference alone: a result
    nearer below counts as that much lower.
    """
    own = ranked.order[rank - 1]
    score = ranked.scores[own]
    heights = [ranked.scores[index] for index in ranked.order[: rank - 1]]
    heights += [min(ranked.scores[index], score - CLEAR_DIFFERENCE) for index in ranked.order[rank:]]
    others = (index for index in ranked.order if index != own)
    return Standing(
        score,
        tuple(
            math.nextafter(height, math.inf) if index < own else height
            for index, height in zip(others, heights, strict=True)
        ),
    )


def placements(ranked: RankedList, asked: Asked, words: dict[int, Attribution]) -> dict[int, Placement]:
    """Return what to explain by position; without its words a result is told from its text alone."""
    found = {}
    for rank, index in explained_places(ranked, asked):
        attribution = words.get(index)
        document = ranked.documents[index]
        placement = Placement(
            query=ranked.query,
            document=read_document(attribution, document) if attribution else document,
            rank=rank,
            num_candidates=len(ranked.order),
            evidence=select_evidence(attribution, k=asked.num_words) if attribution else None,
        )
        lower = rival_of(rank, ranked, asked) if asked.contrast else None
        found[index] = _contrasted(placement, ranked, asked, words, lower) if lower is not None else placement
    return found


def _contrasted(
    placement: Placement, ranked: RankedList, asked: Asked, words: dict[int, Attribution], lower: int
) -> Placement:
    """Return a placement that asks why it is above another, if it is and something can tell them apart."""
    other = words.get(lower)
    own = words.get(ranked.order[placement.rank - 1])
    if own is None or other is None:
        return placement
    evidence = contrast_evidence(
        own,
        other,
        document=read_document(other, ranked.documents[lower]),
        rank=ranked.order.index(lower) + 1,
        k=asked.num_words,
    )
    assert evidence.contrast is not None
    return replace(placement, evidence=evidence) if round(evidence.contrast.margin, 2) > 0 else placement
