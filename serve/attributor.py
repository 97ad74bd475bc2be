"""The attributor as a service: coarse values first, refined ones when there is time."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from rerank_core.attribution.contract import check_residual
from rerank_core.errors import ConfigError, DataError
from serve.errors import InvalidRequestError, ServerFaultError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from rerank_core.attribution.build import Method
    from rerank_core.attribution.leaves import Leaf
    from rerank_core.protocols import Attributor
    from rerank_core.records import Attribution, Document, Query

MAX_EXACT_EVALS = 2**16
"""Evaluations that `exact` may make for a document: its largest texts have 16 words."""

COARSE_EVALS = 64
"""Evaluations of a first answer; `pruned` states the error that it has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributionTask:
    """Documents of one query whose scores are to be shared out, and how."""

    query: Query
    documents: tuple[Document, ...]
    method: Method
    leaf: Leaf
    max_evals: int
    seed: int
    deadline_s: float  # for the refined values; the coarse ones are always waited for


@dataclass(frozen=True, slots=True)
class Attributed:
    """A task's attributions, in the order of its documents, and the artefact that they are of."""

    attributions: tuple[Attribution, ...]
    digest: str
    is_refined: bool  # with all the evaluations that were asked for


class BuildAttributor(Protocol):
    """Makes the attributor for one task."""

    def __call__(
        self, method: Method, *, leaf: Leaf, max_evals: int, before_call: Callable[[], None]
    ) -> Attributor:
        """Return an attributor that calls `before_call` before it scores masked texts."""
        ...


class _EndedError(Exception):
    """Nobody waits for the values any more."""


class AttributorService:
    """Attributes what many requests ask for, one task at a time, in a thread of its own."""

    def __init__(self, build: BuildAttributor, *, digest: str) -> None:
        self._build = build
        self._digest = digest
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="attribute")

    async def attribute(self, task: AttributionTask) -> AsyncGenerator[Attributed, None]:
        """Yield coarse attributions, and refined ones if they are there before the task's deadline.

        Where so few evaluations are asked for that there is nothing coarser, or the method knows no budget,
        refined ones come alone. When the caller goes, the work ends before its next call of the model.

        Raises:
            InvalidRequestError: the method cannot deal with the documents, or with the kind of unit.
            ServerFaultError: values do not add up to the score, or a score is not a number.
        """
        has_budget = task.method != "exact"
        if not has_budget or task.max_evals <= COARSE_EVALS:
            yield await self._attributed(task, max_evals=task.max_evals, is_refined=True)
            return
        yield await self._attributed(task, max_evals=COARSE_EVALS, is_refined=False)
        try:
            async with asyncio.timeout(task.deadline_s):
                refined = await self._attributed(task, max_evals=task.max_evals, is_refined=True)
        except TimeoutError:
            return
        yield refined

    async def _attributed(self, task: AttributionTask, *, max_evals: int, is_refined: bool) -> Attributed:
        ended = threading.Event()
        work = asyncio.get_running_loop().run_in_executor(
            self._thread, self._attribute_now, task, max_evals, ended
        )
        try:
            attributions = await asyncio.shield(work)
        except asyncio.CancelledError:
            ended.set()
            work.add_done_callback(_look_away)
            raise
        return Attributed(attributions, self._digest, is_refined)

    def _attribute_now(
        self, task: AttributionTask, max_evals: int, ended: threading.Event
    ) -> tuple[Attribution, ...]:
        def end_if_nobody_waits() -> None:
            if ended.is_set():
                raise _EndedError

        end_if_nobody_waits()
        try:
            attributor = self._build(
                task.method, leaf=task.leaf, max_evals=max_evals, before_call=end_if_nobody_waits
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


def _look_away(work: asyncio.Future[tuple[Attribution, ...]]) -> None:
    """Take the exception of work that nobody waits for, so that nobody is told that it was never taken."""
    if not work.cancelled():
        work.exception()


def _fault(error: DataError) -> ServerFaultError:
    return ServerFaultError(
        f"the values do not explain the score ({error})",
        code="attribution_failed",
        remedy="the artefact is broken for this text; tell the operator",
    )
