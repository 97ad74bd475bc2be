"""Services behind Ray Serve's handles: a call that a dying replica took with it is made once more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from serve.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ray.serve.handle import DeploymentHandle

    from serve.reranker import ModelCard, Scored, ScoringTask

Answer = TypeVar("Answer")

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
    except (RayActorError, DeploymentUnavailableError, BackPressureError) as error:
        raise UnavailableError(
            f"no replica took the call ({type(error).__name__})",
            code="no_replica",
            remedy="send the request again after the time in Retry-After",
            retry_after_s=RETRY_AFTER_S,
        ) from error
