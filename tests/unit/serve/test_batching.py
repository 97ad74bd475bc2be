"""Batches follow the order of submission, keep to their tokens, and lose nobody's answer."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from serve.batching import TokenBatcher

if TYPE_CHECKING:
    from collections.abc import Sequence


class Recorder:
    """Doubles numbers; waits at a gate, so that a test decides when a batch ends."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, tasks: Sequence[int]) -> list[int]:
        self.batches.append(list(tasks))
        assert self.gate.wait(10)
        if -1 in tasks:
            raise ValueError("poison")
        return [2 * task for task in tasks]


async def submitted(batcher: TokenBatcher[int, int], tasks: Sequence[tuple[int, int]]) -> list[object]:
    return await asyncio.gather(
        *(batcher.submit(task, num_tokens=tokens) for task, tokens in tasks), return_exceptions=True
    )


def test_every_task_gets_its_own_answer() -> None:
    recorder = Recorder()

    async def run() -> list[object]:
        return await submitted(TokenBatcher(recorder, max_tokens=30), [(n, 10) for n in range(10)])

    assert asyncio.run(run()) == [2 * n for n in range(10)]


def test_a_batch_holds_no_more_tokens_than_allowed_and_keeps_the_order() -> None:
    recorder = Recorder()
    tasks = [(1, 10), (2, 10), (3, 25), (4, 5), (5, 5)]
    asyncio.run(submitted(TokenBatcher(recorder, max_tokens=30), tasks))
    assert recorder.batches == [[1, 2], [3, 4], [5]]  # a task that does not fit is not overtaken


def test_a_task_larger_than_a_batch_runs_alone() -> None:
    recorder = Recorder()
    asyncio.run(submitted(TokenBatcher(recorder, max_tokens=30), [(1, 10), (2, 99), (3, 10)]))
    assert recorder.batches == [[1], [2], [3]]


def test_what_arrives_while_a_batch_runs_shares_the_next_one() -> None:
    recorder = Recorder()
    recorder.gate.clear()

    async def run() -> None:
        batcher = TokenBatcher(recorder, max_tokens=1000)
        first = asyncio.create_task(batcher.submit(1, num_tokens=1))
        while not recorder.batches:
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(batcher.submit(n, num_tokens=1)) for n in (2, 3, 4)]
        await asyncio.sleep(0)
        recorder.gate.set()
        await asyncio.gather(first, *others)

    asyncio.run(run())
    assert recorder.batches == [[1], [2, 3, 4]]


def test_a_task_whose_caller_has_gone_is_not_run() -> None:
    recorder = Recorder()
    recorder.gate.clear()

    async def run() -> int:
        batcher = TokenBatcher(recorder, max_tokens=1)
        first = asyncio.create_task(batcher.submit(1, num_tokens=1))
        while not recorder.batches:
            await asyncio.sleep(0.001)
        gone = asyncio.create_task(batcher.submit(2, num_tokens=1))
        last = asyncio.create_task(batcher.submit(3, num_tokens=1))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        recorder.gate.set()
        await first
        return await last

    assert asyncio.run(run()) == 6
    assert recorder.batches == [[1], [3]]


def test_a_bad_task_fails_its_own_caller_alone() -> None:
    recorder = Recorder()
    first, bad, last = asyncio.run(
        submitted(TokenBatcher(recorder, max_tokens=100), [(1, 1), (-1, 1), (3, 1)])
    )
    assert (first, last) == (2, 6)
    assert isinstance(bad, ValueError)


def test_a_batcher_goes_on_after_a_failure() -> None:
    async def run() -> int:
        batcher = TokenBatcher(Recorder(), max_tokens=100)
        with pytest.raises(ValueError, match="poison"):
            await batcher.submit(-1, num_tokens=1)
        return await batcher.submit(4, num_tokens=1)

    assert asyncio.run(run()) == 8
