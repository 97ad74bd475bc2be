"""Services behind Ray Serve's handles: a call that a dying replica took with it is made once more."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from serve.errors import ApiError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    from ray.serve.handle import DeploymentHandle

    from rerank_core.explanation.engine import EngineConfig
    from rerank_core.records import Candidate, Query
    from serve.attributor import Attributed, AttributionTask
    from serve.chat import ChatCost, ChatPiece, ChatTask
    from serve.reranker import ModelCard, Scored, ScoringTask

RETRY_AFTER_S = 2


class RerankerHandle:
    """A `RerankerService` whose replicas run elsewhere."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    async def describe(self) -> ModelCard:
        """Return what is served."""
        card: ModelCard = await twice(lambda: self._handle.describe.remote())
        return card

    async def score(self, task: ScoringTask) -> Scored:
        """Return the scores of a task's documents."""
        scored: Scored = await twice(lambda: self._handle.score.remote(task))
        return scored


class AttributorHandle:
    """An attributor whose replicas run elsewhere."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle: Any = handle.options(stream=True)

    async def attribute(self, task: AttributionTask) -> AsyncGenerator[Attributed, None]:
        """Yield coarse attributions, and refined ones if there is time.

        Raises:
            ApiError: what the replica raised on purpose.
            UnavailableError: it failed, or no replica took the call.
        """
        async with aclosing(streamed_twice(lambda: self._handle.attribute.remote(task))) as answers:
            async for found in answers:
                yield found


class RetrieverHandle:
    """A retriever whose replicas run elsewhere."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    async def retrieve(self, query: Query, *, k: int) -> tuple[Candidate, ...]:
        """Return a query's candidates.

        Raises:
            UnavailableError: it failed, or no replica took the call.
        """
        found: tuple[Candidate, ...] = await twice(lambda: self._handle.retrieve.remote(query, k=k))
        return found


class WriterHandle:
    """A `Writer` whose language model runs elsewhere."""

    def __init__(self, handle: DeploymentHandle[Any], engine: EngineConfig) -> None:
        self._handle: Any = handle.options(stream=True)
        self._engine = engine

    async def write(
        self, prompt: str, schema: Mapping[str, Any], *, attempt: int
    ) -> AsyncGenerator[str, None]:
        """Yield the pieces of one text.

        Raises:
            UnavailableError: the engine failed, or no replica of it took the call.
        """
        asked = (prompt, dict(schema), self._engine, attempt)
        async with aclosing(streamed_twice(lambda: self._handle.write.remote(*asked))) as pieces:
            async for piece in pieces:
                yield piece


class ChatHandle:
    """A `ChatModel` that runs elsewhere."""

    def __init__(self, handle: DeploymentHandle[Any], engine: EngineConfig) -> None:
        self._handle: Any = handle.options(stream=True)
        self._engine = engine

    async def converse(self, task: ChatTask) -> AsyncGenerator[ChatPiece | ChatCost, None]:
        """Yield the pieces of one reply, and at last its cost.

        Raises:
            ApiError: the engine's chat format has no place for such messages.
            UnavailableError: the engine failed, or no replica of it took the call.
        """
        call = streamed_twice(lambda: self._handle.converse.remote(task, self._engine))
        async with aclosing(call) as pieces:
            async for piece in pieces:
                yield piece


async def twice(call: Callable[[], Any]) -> Any:
    """Return the answer to a call that changes nothing, made again where its replica died under it.

    Whoever stops waiting for the answer ends the call.

    Raises:
        ApiError: what the replica raised on purpose.
        UnavailableError: it failed, the second replica died too, or none takes a call.
    """
    try:
        try:
            return await _answer(call())
        except RayActorError:
            return await _answer(call())
    except (RayError, RayServeException) as error:
        raise _told(error) from error


async def _answer(response: Any) -> Any:
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise


async def streamed_twice(call: Callable[[], Any]) -> AsyncGenerator[Any, None]:
    """Yield the answers to a call, made again where its replica died before the first one.

    Whoever stops waiting for more ends the call.

    Raises:
        ApiError: what the replica raised on purpose.
        UnavailableError: it failed, a replica died later, the second one died too, or none takes a call.
    """
    num_answers = 0
    try:
        try:
            async for answer in _answers(call()):
                num_answers += 1
                yield answer
        except RayActorError:
            if num_answers:
                raise
            async for answer in _answers(call()):
                yield answer
    except (RayError, RayServeException) as error:
        raise _told(error) from error


async def _answers(response: Any) -> AsyncGenerator[Any, None]:
    try:
        async for answer in response:
            yield answer
    except (asyncio.CancelledError, GeneratorExit):
        response.cancel()
        raise


def _told(error: Exception) -> ApiError:
    """Return what a failed call means for the request."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, ApiError):
        return cause
    return _unavailable(cause)


def _unavailable(error: Exception) -> UnavailableError:
    return UnavailableError(
        f"no replica answered the call ({type(error).__name__})",
        code="no_replica",
        remedy="send the request again after the time in Retry-After",
        retry_after_s=RETRY_AFTER_S,
    )
