"""From a request to its answer: costed, admitted, scored in parts, ranked."""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from rerank_core.attribution.rank_flip import MAX_FLIP_EVALS
from rerank_core.errors import DataError
from rerank_core.ranking.contract import rank
from rerank_core.records import Document, Query
from serve.attributor import COARSE_EVALS, MAX_EXACT_EVALS
from serve.errors import (
    ServerFaultError,
    TooLargeError,
    TooManyRequestsError,
    UnavailableError,
    UnknownModelError,
)
from serve.explained_results import event_object, with_explanations
from serve.explanations import (
    Asked,
    Degraded,
    RankedList,
    attributed_indices,
    explained,
    searched_places,
)
from serve.lists import FEW_CHARACTERS, CostedList, TokenLimits
from serve.requests import (
    chosen_scale,
    documents_of,
    margin_over,
    pairs_of,
    require_document,
    require_documents,
    require_query,
    require_words,
    shown_scores,
    token_limits,
)
from serve.schemas import (
    AttributionSettings,
    DoneEvent,
    ExplainRequest,
    Health,
    Meta,
    ModelObject,
    RerankResponse,
    RerankResult,
    ScoreResponse,
    ScoreResult,
    TeiResult,
    Usage,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Sequence

    from pydantic import BaseModel

    from serve.admission import TokenAdmission
    from serve.explanations import Attributors, Event, Explainers, Part
    from serve.first_stage import FirstStage, FirstStageList
    from serve.lists import TokenCounter
    from serve.reranker import ModelCard, Scored, ScoringTask
    from serve.schemas import RerankRequest, Scale, ScoredRequest, ScoreRequest, TeiRerankRequest

ANY_NUMBER = sys.maxsize


class RerankerService(Protocol):
    """A reranker, in this process or behind a handle."""

    async def describe(self) -> ModelCard:
        """Return what is served."""
        ...

    async def score(self, task: ScoringTask) -> Scored:
        """Return the scores of a task's documents."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayLimits:
    """What one request may ask for."""

    max_documents: int
    max_tokens_per_task: int  # a longer list is scored in parts


@dataclass(frozen=True, slots=True, kw_only=True)
class Explaining:
    """Who explains, and how much of it one request may ask for."""

    attributors: Attributors
    explainers: Explainers
    admission: TokenAdmission  # of attribution, apart from that of scoring
    max_results: int
    max_evals: int  # of one document
    deadline_s: float  # for refined attributions


@dataclass(frozen=True, slots=True)
class _Answered:
    """What a rerank request was answered with, before anything is explained."""

    response: RerankResponse
    ranked: RankedList
    costs: tuple[int, ...]
    max_length: int  # tokens that the model reads at a time


class Gateway:
    """Answers what clients ask, with a reranker that may run elsewhere."""

    def __init__(  # noqa: PLR0913 - one argument per part
        self,
        reranker: RerankerService,
        *,
        name: str,
        counter: TokenCounter,
        admission: TokenAdmission,
        limits: GatewayLimits,
        explaining: Explaining,
        first_stage: FirstStage,
    ) -> None:
        self._reranker = reranker
        self._name = name
        self._counter = counter
        self._admission = admission
        self._limits = limits
        self._explaining = explaining
        self._first_stage = first_stage
        self._card: ModelCard | None = None
        self._created = int(time.time())

    async def rerank(self, request: RerankRequest) -> RerankResponse:
        """Return the documents of a request in the order of their scores, explained where asked for."""
        asked, answered = await self._asked_and_answered(request)
        if asked is None:
            return answered.response
        events = [event async for event in self._explained(answered, asked)]
        return with_explanations(answered.response, answered.ranked, asked, events)

    async def rerank_events(self, request: RerankRequest) -> AsyncIterator[tuple[str, BaseModel]]:
        """Yield what a rerank request is answered with as it becomes known, each with the name of its kind.

        First the ranking; then, where something is to be explained, words, drafts and texts; at last `done`.
        """
        asked, answered = await self._asked_and_answered(request)
        yield "ranking", answered.response
        degraded: list[Part] = []
        if asked is not None:
            async for event in self._explained(answered, asked):
                if isinstance(event, Degraded):
                    degraded.append(event.part)
                else:
                    yield event_object(event, answered.ranked, asked)
        yield "done", DoneEvent(degraded=degraded)

    async def _explained(self, answered: _Answered, asked: Asked) -> AsyncIterator[Event]:
        """Yield what is found out; where too much is being attributed already, nothing is, and it says so."""
        who = self._explaining
        with ExitStack() as work:
            try:
                cost = explaining_cost(answered.ranked, answered.costs, asked, max_length=answered.max_length)
                work.enter_context(who.admission.work_of(cost))
            except TooManyRequestsError:
                yield Degraded("attributor")
                return
            async for event in explained(
                answered.ranked, asked, attributors=who.attributors, explainers=who.explainers
            ):
                yield event

    async def _asked_and_answered(self, request: RerankRequest) -> tuple[Asked | None, _Answered]:
        """Return what is to be explained, checked before documents are retrieved or scored, and the ranking.

        Where nothing was found a margin over any position is one over nothing, and no mistake.
        """
        self._require_served(request.model)
        asked = self._asked(request)
        first_stage = await self._first_stage.list_of(request)
        if asked is not None and asked.over is not None and first_stage.documents:
            require_document(asked.over, num_documents=len(first_stage.documents))
        return asked, await self._answered(request, first_stage)

    async def _answered(self, request: RerankRequest, first_stage: FirstStageList) -> _Answered:
        card, (found,) = await self._ranked([(request.query, first_stage.documents)], request=request)
        scale = chosen_scale(request, card)
        costed, ranked = found
        shown = shown_scores(ranked.scores, scale=scale, card=card)
        response = RerankResponse(
            id=f"rerank-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=self._name,
            results=[
                RerankResult(
                    index=index,
                    relevance_score=shown[index],
                    document=first_stage.shown[index],
                    first_stage=first_stage.places[index],
                )
                for index in ranked.order[: request.top_n or None]
            ],
            usage=_usage([costed]),
            meta=_meta([costed], scale=scale, card=card, digest=ranked.digest, warnings=first_stage.warnings),
        )
        return _Answered(response, ranked, costed.costs, card.max_length)

    def _asked(self, request: RerankRequest) -> Asked | None:
        """Return what is to be explained, or None.

        Raises:
            TooLargeError: more evaluations are asked for than the server allows.
            InvalidRequestError: rank flips are asked for among other parts than words.
        """
        options, limits = request.explain, self._explaining
        if options is None or not (options.attributions or options.text):
            return None
        settings = request if isinstance(request, ExplainRequest) else AttributionSettings()
        budget = settings.budget or limits.max_evals
        if budget > limits.max_evals:
            raise TooLargeError(
                f"a budget of {budget} evaluations is more than {limits.max_evals}",
                code="budget_too_large",
                remedy=f"ask for {limits.max_evals} evaluations or fewer",
                param="budget",
            )
        with_flips = settings.target in ("rank", "listwise")
        if with_flips:
            require_words(settings.granularity)
        shown = request.top_n or self._limits.max_documents
        return Asked(
            skip=options.skip,
            num_results=min(options.top_k, limits.max_results, max(shown - options.skip, 0)),
            with_text=options.text,
            num_words=options.top_k_words,
            contrast=options.contrast,
            with_next=options.contrast or settings.target == "margin",
            over=margin_over(settings.target),
            with_flips=with_flips,
            with_order_flip=settings.target == "listwise",
            method=settings.method,
            leaf=settings.granularity,
            max_evals=budget,
            seed=settings.seed,
            deadline_s=limits.deadline_s,
        )

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """Return the scores of a request's pairs, in its order."""
        self._require_served(request.model)
        card, found = await self._ranked(pairs_of(request), request=request)
        scale = chosen_scale(request, card)
        costed = [one for one, _ in found]
        scores = [score for _, one in found for score in shown_scores(one.scores, scale=scale, card=card)]
        return ScoreResponse(
            id=f"score-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=self._name,
            data=[ScoreResult(index=index, score=score) for index, score in enumerate(scores)],
            usage=_usage(costed),
            meta=_meta(costed, scale=scale, card=card, digest=found[0][1].digest),
        )

    async def rerank_tei(self, request: TeiRerankRequest) -> list[TeiResult]:
        """Return the texts of a request in the order of their scores, as text-embeddings-inference does."""
        require_documents(request.texts)
        lists = [(request.query, documents_of(request.texts))]
        card, ((_, found),) = await self._ranked(lists, request=None)
        scale: Scale = "logit" if request.raw_scores else "sigmoid"
        shown = shown_scores(found.scores, scale=scale, card=card)
        return [
            TeiResult(
                index=index, score=shown[index], text=request.texts[index] if request.return_text else None
            )
            for index in found.order
        ]

    async def describe(self) -> ModelObject:
        """Return what is served."""
        card = await self._reranker.describe()
        scales: list[Scale] = ["logit", "sigmoid"]
        if card.calibration is not None:
            scales.append("calibrated")
        return ModelObject(
            id=self._name,
            created=self._created,
            digest=card.digest,
            max_length=card.max_length,
            scales=scales,
            long_documents=card.long_documents,
            has_corpus=self._first_stage.has_corpus,
        )

    async def health(self) -> Health:
        """Return once a replica answers; it scored its golden pairs again before it was ready."""
        await self._reranker.describe()
        return Health()

    def _require_served(self, model: str | None) -> None:
        if model is not None and model != self._name:
            raise UnknownModelError(
                f"no model is called {model[:200]!r} here",
                code="model_not_found",
                remedy=f"ask for {self._name!r}, or leave `model` out",
                param="model",
            )

    async def _ranked(
        self, lists: Sequence[tuple[str, Sequence[Document]]], *, request: ScoredRequest | None
    ) -> tuple[ModelCard, list[tuple[CostedList, RankedList]]]:
        """Return the lists with their scores, all of the one artefact that the card is of.

        The card is remembered until scores come with another one. Where they come with two, the model is
        being replaced, and each list is asked for once more, whole, of one replica. A list that was cut by
        another tokenizer than the model's is refused: this gateway has no other.
        """
        _require_texts(lists, max_documents=self._limits.max_documents)
        limits = token_limits(request) if request else TokenLimits()
        card = await self._card_for(request)
        for max_tokens in (self._limits.max_tokens_per_task, ANY_NUMBER):
            costed = await self._costed(lists, card, limits)
            with self._admission.work_of(sum(one.num_tokens for one in costed)):
                scored = await self._scored(costed, max_tokens=max_tokens)
            before, card = card, scored[0][0].card
            self._card = card
            if any(part.card.digest != card.digest for own in scored for part in own):
                continue
            if self._would_cut_otherwise(card, limits):
                continue
            if card.digest != before.digest:
                sent, costed = costed, await self._costed(lists, card, limits)
                if [one.documents for one in sent] != [one.documents for one in costed]:
                    continue  # this model's texts would have been cut elsewhere
            return card, [(one, _rank(one, own)) for one, own in zip(costed, scored, strict=True)]
        raise _model_changing()

    def _would_cut_otherwise(self, card: ModelCard, limits: TokenLimits) -> bool:
        """Return whether texts have to be cut, and this gateway's tokenizer is not the model's."""
        return limits != TokenLimits() and card.tokenizer_digest != self._counter.digest

    async def _card_for(self, request: ScoredRequest | None) -> ModelCard:
        """Return the remembered card, or a new one where that does not state what is asked for."""
        remembered = self._card
        card = remembered or await self._reranker.describe()
        if remembered and request is not None and self._would_cut_otherwise(card, token_limits(request)):
            card = await self._reranker.describe()
            if self._would_cut_otherwise(card, token_limits(request)):
                raise _model_changing()  # before anything is scored in vain
        if request is not None and request.scale == "calibrated" and card.calibration is None:
            card = await self._reranker.describe() if remembered else card
            chosen_scale(request, card)
        self._card = card
        return card

    async def _costed(
        self, lists: Sequence[tuple[str, Sequence[Document]]], card: ModelCard, limits: TokenLimits
    ) -> list[CostedList]:
        def costed() -> list[CostedList]:
            return [
                self._counter.costed(Query("", query), documents, card=card, limits=limits)
                for query, documents in lists
            ]

        texts = [text for query, documents in lists for text in (query, *(one.content for one in documents))]
        num_characters = sum(map(len, texts))
        return costed() if num_characters <= FEW_CHARACTERS else await asyncio.to_thread(costed)

    async def _scored(self, lists: Sequence[CostedList], *, max_tokens: int) -> list[list[Scored]]:
        """Return the scores of each list's parts, which have at most so many tokens."""
        parts = [list(one.tasks(max_tokens)) for one in lists]
        found = iter(await _together([self._reranker.score(task) for own in parts for task in own]))
        return [[next(found) for _ in own] for own in parts]


def _model_changing() -> UnavailableError:
    return UnavailableError(
        "the model is being replaced, and the answer would have been of two versions of it",
        code="model_changing",
        remedy="send the request again after the time in Retry-After",
        retry_after_s=2,
    )


def _rank(costed: CostedList, parts: Sequence[Scored]) -> RankedList:
    scores = tuple(score for part in parts for score in part.scores)
    names = [str(index) for index in range(len(scores))]
    try:
        ranking = rank("", names, scores=scores, first_stage_ranks=range(1, len(scores) + 1))
    except DataError as error:  # NaN or infinite: JSON has no such number, and no order has a place for it
        raise ServerFaultError(
            f"the model gave no number ({error})",
            code="score_not_finite",
            remedy="the artefact is broken for this text; tell the operator",
        ) from error
    order = tuple(int(name) for name in ranking.doc_ids)
    return RankedList(costed.query, costed.documents, scores, order, parts[0].card.digest)


async def _together(calls: Sequence[Awaitable[Scored]]) -> list[Scored]:
    """Return the answers of calls in their order; when one fails, or the caller goes, the others end."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_awaited(call)) for call in calls]
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


async def _awaited(call: Awaitable[Scored]) -> Scored:
    return await call


def _require_texts(lists: Sequence[tuple[str, Sequence[Document]]], *, max_documents: int) -> None:
    for query, _ in lists:
        require_query(query)
    num_documents = sum(len(documents) for _, documents in lists)
    if num_documents > max_documents:
        raise TooLargeError(
            f"{num_documents} documents are more than {max_documents}",
            code="too_many_documents",
            remedy=f"send at most {max_documents} documents in a request",
            param="documents",
        )


def explaining_cost(ranked: RankedList, costs: Sequence[int], asked: Asked, *, max_length: int) -> int:
    """Return about how many tokens the model reads to explain.

    A masked text has half of a text's tokens. A text without a few words has nearly all of them, of a long
    document those of one chunk; what else is read of it is scored once.
    """
    num_evals = MAX_EXACT_EVALS if asked.method == "exact" else asked.max_evals + COARSE_EVALS
    values = sum(costs[index] for index in attributed_indices(ranked, asked)) * num_evals // 2
    searched = [costs[index] for _, index in searched_places(ranked, asked)]
    return values + sum(min(cost, max_length) * MAX_FLIP_EVALS + cost for cost in searched)


def _usage(lists: Sequence[CostedList]) -> Usage:
    tokens = sum(one.num_tokens for one in lists)
    return Usage(prompt_tokens=tokens, total_tokens=tokens)


def _meta(
    lists: Sequence[CostedList],
    *,
    scale: Scale,
    card: ModelCard,
    digest: str,
    warnings: Sequence[str] = (),
) -> Meta:
    """Return what an answer says of itself; `warnings` come before those of the texts' lengths."""
    num_cut = sum(one.num_cut for one in lists)
    num_long = sum(one.num_long for one in lists)
    told = list(warnings)
    if num_cut:
        told.append(f"{num_cut} documents were cut at the request's limit of tokens")
    if num_long and card.long_documents == "truncate":
        told.append(f"{num_long} documents were cut at the {card.max_length} tokens that the model reads")
    elif num_long:
        told.append(f"{num_long} long documents have the score of their best chunk")
    return Meta(scale=scale, model_digest=digest, warnings=told)
