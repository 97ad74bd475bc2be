"""Tasks of many requests in, batches of a bounded number of tokens out, one model call at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Task = TypeVar("Task")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[Task, Answer]):
    task: Task
    num_tokens: int
    answer: asyncio.Future[Answer]


class TokenBatcher(Generic[Task, Answer]):
    """Runs `run(tasks)` on batches of what has been submitted, in the order of submission.

    A batch holds at most `max_tokens` tokens; a task that is larger runs alone. While one batch runs, in a
    thread of its own, the next one gathers, so that batches grow with the load and nobody waits for company.
    A task whose caller has gone is dropped before it runs. Where a batch of several tasks fails, each of them
    runs alone, so that one bad task fails one caller.

    Ray's `serve.batch` puts a task that does not fit behind all others, runs tasks whose callers have gone,
    and fails a whole batch at once (ADR 0010).
    """

    def __init__(self, run: Callable[[Sequence[Task]], Sequence[Answer]], *, max_tokens: int) -> None:
        self._run = run
        self._max_tokens = max_tokens
        self._queue: deque[_Waiting[Task, Answer]] = deque()
        self._has_work = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batch")

    async def submit(self, task: Task, *, num_tokens: int) -> Answer:
        """Return the answer to a task, or raise what `run` raised for it."""
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        waiting: _Waiting[Task, Answer] = _Waiting(
            task, num_tokens, asyncio.get_running_loop().create_future()
        )
        self._queue.append(waiting)
        self._has_work.set()
        return await waiting.answer

    async def _work(self) -> None:
        while True:
            await self._has_work.wait()
            batch = self._next_batch()
            if not batch:
                self._has_work.clear()
                continue
            await self._answer(batch)

    def _next_batch(self) -> list[_Waiting[Task, Answer]]:
        batch: list[_Waiting[Task, Answer]] = []
        num_tokens = 0
        while self._queue:
            waiting = self._queue[0]
            if waiting.answer.done():  # its caller has gone
                self._queue.popleft()
                continue
            if batch and num_tokens + waiting.num_tokens > self._max_tokens:
                break
            batch.append(self._queue.popleft())
            num_tokens += waiting.num_tokens
        return batch

    async def _answer(self, batch: Sequence[_Waiting[Task, Answer]]) -> None:
        try:
            answers = await self._in_thread(batch)
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to the callers
            if len(batch) > 1:
                for waiting in batch:
                    await self._answer([waiting])
            elif not batch[0].answer.done():
                batch[0].answer.set_exception(error)
            return
        for waiting, answer in zip(batch, answers, strict=True):
            if not waiting.answer.done():
                waiting.answer.set_result(answer)

    async def _in_thread(self, batch: Sequence[_Waiting[Task, Answer]]) -> Sequence[Answer]:
        tasks = [waiting.task for waiting in batch]
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._run, tasks)
