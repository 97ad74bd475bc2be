"""Services behind Ray Serve's handles: a call that a dying replica took with it is made once more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from serve.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from ray.serve.handle import DeploymentHandle

    from rerank_core.explanation.engine import EngineConfig
    from serve.attributor import Attributed, AttributionTask
    from serve.reranker import ModelCard, Scored, ScoringTask

Answer = TypeVar("Answer")

NO_REPLICA = (RayActorError, DeploymentUnavailableError, BackPressureError)

RETRY_AFTER_S = 2


class RerankerHandle:
    """A `RerankerService` whose replicas run elsewhere."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    async def describe(self) -> ModelCard:
        """Return what is served."""
        return await twice(lambda: self._handle.describe.remote())

    async def score(self, task: ScoringTask) -> Scored:
        """Return the scores of a task's documents."""
        return await twice(lambda: self._handle.score.remote(task))


class AttributorHandle:
    """An attributor whose replicas run elsewhere."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle: Any = handle.options(stream=True)

    def attribute(self, task: AttributionTask) -> AsyncIterator[Attributed]:
        """Yield coarse attributions, and refined ones if there is time."""
        return streamed_twice(lambda: self._handle.attribute.remote(task))


class WriterHandle:
    """A `Writer` whose language model runs elsewhere."""

    def __init__(self, handle: DeploymentHandle[Any], engine: EngineConfig) -> None:
        self._handle: Any = handle.options(stream=True)
        self._engine = engine

    async def write(self, prompt: str, schema: Mapping[str, Any], *, attempt: int) -> AsyncIterator[str]:
        """Yield the pieces of one text.

        Raises:
            UnavailableError: the engine failed, or no replica of it took the call.
        """
        try:
            pieces = streamed_twice(
                lambda: self._handle.write.remote(prompt, dict(schema), self._engine, attempt)
            )
            async for piece in pieces:
                yield piece
        except RayTaskError as error:  # whatever it is, the explainer has a template for it
            raise UnavailableError(
                f"the engine failed ({type(error.cause).__name__})",
                code="explainer_failed",
                remedy="the answer holds the template's text; the server's log has the cause",
            ) from error


async def twice(call: Callable[[], Awaitable[Answer]]) -> Answer:
    """Return the answer to a call that changes nothing, made again where its replica died under it.

    Raises:
        UnavailableError: the second replica died too, or none takes a call.
    """
    try:
        try:
            return await call()
        except RayActorError:
            return await call()
    except NO_REPLICA as error:
        raise _unavailable(error) from error


async def streamed_twice(call: Callable[[], AsyncIterator[Answer]]) -> AsyncIterator[Answer]:
    """Yield the answers to a call, made again where its replica died before the first one.

    Raises:
        UnavailableError: a replica died later, the second one died too, or none takes a call.
    """
    num_answers = 0
    try:
        try:
            async for answer in call():
                num_answers += 1
                yield answer
        except RayActorError:
            if num_answers:
                raise
            async for answer in call():
                yield answer
    except NO_REPLICA as error:
        raise _unavailable(error) from error


def _unavailable(error: Exception) -> UnavailableError:
    return UnavailableError(
        f"no replica took the call ({type(error).__name__})",
        code="no_replica",
        remedy="send the request again after the time in Retry-After",
        retry_after_s=RETRY_AFTER_S,
    )
