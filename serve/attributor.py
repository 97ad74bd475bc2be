"""The attributor as a service: coarse values first, refined ones and rank flips when there is time."""

from __future__ import annotations

import asyncio
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from rerank_core.attribution.contract import check_residual
from rerank_core.attribution.rank_flip import find_rank_flip
from rerank_core.errors import ConfigError, DataError
from serve.errors import InvalidRequestError, ServerFaultError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from rerank_core.attribution.build import Method
    from rerank_core.attribution.deletion import Deletion, Worths
    from rerank_core.attribution.leaves import Leaf
    from rerank_core.attribution.rank_flip import RankFlip
    from rerank_core.protocols import Attributor
    from rerank_core.records import Attribution, Document, Query

MAX_EXACT_EVALS = 2**16
"""Evaluations that `exact` may make for a document: its largest texts have 16 words."""

COARSE_EVALS = 64
"""Evaluations of a first answer; `pruned` states the error that it has."""

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Standing:
    """A document's score in its list, and the scores of the other documents there, as logits."""

    score: float
    rivals: tuple[float, ...]

    def read_as(self, score: float) -> Standing:
        """Return the standing, at the same rank, of a document whose score is read as another number here.

        All scores are shifted by the difference, so that what is read here falls by what a deletion does to
        it, not by how far two processes read the same text apart.
        """
        shift = score - self.score
        least = math.nextafter(score, math.inf)
        return Standing(
            score,
            tuple(
                max(rival + shift, least) if rival > self.score else min(rival + shift, score)
                for rival in self.rivals
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributionTask:
    """Documents of one query whose scores are to be shared out, and how."""

    query: Query
    documents: tuple[Document, ...]
    method: Method
    leaf: Leaf
    max_evals: int
    seed: int
    deadline_s: float  # for all but the coarse values, which are always waited for
    standings: tuple[Standing, ...] = ()  # of the first documents: those whose rank flips are asked for


@dataclass(frozen=True, slots=True)
class Attributed:
    """A task's attributions, in the order of its documents, and the artefact that they are of.

    `rank_flips` are those of the task's standings, once they were searched.
    """

    attributions: tuple[Attribution, ...]
    digest: str
    is_refined: bool  # with all the evaluations that were asked for
    rank_flips: tuple[RankFlip | None, ...] | None = None


class BuildAttributor(Protocol):
    """Makes the attributor for one task."""

    def __call__(
        self, method: Method, *, leaf: Leaf, max_evals: int, before_call: Callable[[], None]
    ) -> Attributor:
        """Return an attributor that calls `before_call` before it scores masked texts."""
        ...


class OpenDeletion(Protocol):
    """Makes what scores a document without some of its attributed words."""

    def __call__(
        self,
        attribution: Attribution,
        *,
        query: Query,
        document: Document,
        rivals: Sequence[float],
        before_call: Callable[[], None],
    ) -> tuple[Deletion, Worths]:
        """Return the document as one whose words can be deleted, and its scores without some of them.

        `before_call` is called before what else is read of the document is scored.
        """
        ...


class _EndedError(Exception):
    """Nobody waits for the values any more."""


class AttributorService:
    """Attributes what many requests ask for, one task at a time, in a thread of its own."""

    def __init__(self, build: BuildAttributor, open_deletion: OpenDeletion, *, digest: str) -> None:
        self._build = build
        self._open_deletion = open_deletion
        self._digest = digest
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="attribute")

    async def attribute(self, task: AttributionTask) -> AsyncGenerator[Attributed, None]:
        """Yield coarse attributions; refined ones, and these once more with their rank flips, in time.

        Where so few evaluations are asked for that there is nothing coarser, or the method knows no budget,
        refined ones are the first. What is not there before the task's deadline does not come. When the
        caller goes, the work ends before its next call of the model.

        Raises:
            InvalidRequestError: the method cannot deal with the documents, or with the kind of unit.
            ServerFaultError: values do not add up to the score, or a score is not a number.
        """
        loop = asyncio.get_running_loop()
        refined = None
        if task.method == "exact" or task.max_evals <= COARSE_EVALS:
            refined = await self._attributed(task, max_evals=task.max_evals, is_refined=True)
        else:
            yield await self._attributed(task, max_evals=COARSE_EVALS, is_refined=False)
        deadline = loop.time() + task.deadline_s
        try:
            if refined is None:
                async with asyncio.timeout_at(deadline):
                    refined = await self._attributed(task, max_evals=task.max_evals, is_refined=True)
            yield refined
            if task.standings:
                async with asyncio.timeout_at(deadline):
                    flips = await self._in_thread(partial(self._flips_now, task, refined.attributions))
                yield replace(refined, rank_flips=flips)
        except TimeoutError:
            return

    async def _attributed(self, task: AttributionTask, *, max_evals: int, is_refined: bool) -> Attributed:
        attributions = await self._in_thread(partial(self._attribute_now, task, max_evals))
        return Attributed(attributions, self._digest, is_refined)

    async def _in_thread(self, work: Callable[[Callable[[], None]], Found]) -> Found:
        """Return what work finds; it is given what to call before it asks the model: that ends it in time."""
        ended = threading.Event()

        def end_if_nobody_waits() -> None:
            if ended.is_set():
                raise _EndedError

        def begin() -> Found:
            end_if_nobody_waits()
            return work(end_if_nobody_waits)

        running = asyncio.get_running_loop().run_in_executor(self._thread, begin)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            ended.set()
            running.add_done_callback(_look_away)
            raise

    def _attribute_now(
        self, task: AttributionTask, max_evals: int, before_call: Callable[[], None]
    ) -> tuple[Attribution, ...]:
        try:
            attributor = self._build(
                task.method, leaf=task.leaf, max_evals=max_evals, before_call=before_call
            )
            found = attributor.attribute(task.query, task.documents, seed=task.seed)
        except ConfigError as error:
            raise InvalidRequestError(
                str(error), code="cannot_attribute", remedy="ask for another method, granularity or budget"
            ) from error
        except DataError as error:
            raise _fault(error) from error
        for attribution in found:
            try:
                check_residual(attribution)
            except DataError as error:
                raise _fault(error) from error
        return tuple(found)

    def _flips_now(
        self, task: AttributionTask, attributions: Sequence[Attribution], before_call: Callable[[], None]
    ) -> tuple[RankFlip | None, ...]:
        found = zip(task.documents, attributions, task.standings, strict=False)  # the first ones alone
        try:
            return tuple(
                self._flip(task.query, document, attribution, standing=standing, before_call=before_call)
                for document, attribution, standing in found
            )
        except DataError as error:
            raise _fault(error) from error

    def _flip(
        self,
        query: Query,
        document: Document,
        attribution: Attribution,
        *,
        standing: Standing,
        before_call: Callable[[], None],
    ) -> RankFlip | None:
        before_call()
        rivals = standing.read_as(attribution.score).rivals
        deletion, worths = self._open_deletion(
            attribution, query=query, document=document, rivals=rivals, before_call=before_call
        )

        def watched(coalitions: Sequence[int]) -> Sequence[float]:
            before_call()
            return worths(coalitions)

        return find_rank_flip(deletion, attribution.values, watched)


def _look_away(work: asyncio.Future[Any]) -> None:
    """Take the exception of work that nobody waits for, so that nobody is told that it was never taken."""
    if not work.cancelled():
        work.exception()


def _fault(error: DataError) -> ServerFaultError:
    return ServerFaultError(
        f"the values do not explain the score ({error})",
        code="attribution_failed",
        remedy="the artefact is broken for this text; tell the operator",
    )
