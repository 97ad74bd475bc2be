"""Coarse values first; refined ones in time; and no work for those who have gone."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from rerank_core.records import Document, Query
from serve.attributor import COARSE_EVALS, AttributionTask, AttributorService
from serve.errors import ServerFaultError
from tests.fake_services import build_overlap_attributor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rerank_core.attribution.attributor import SearchAttributor
    from rerank_core.attribution.build import Method
    from rerank_core.attribution.leaves import Leaf
    from rerank_core.records import Attribution
    from serve.attributor import Attributed

TASK = AttributionTask(
    query=Query("", "sea ice"),
    documents=(Document("", "sea ice thickness from radar on lakes and seas of a desert"),),
    method="pruned",
    leaf="token",
    max_evals=200,
    seed=3,
    deadline_s=30,
)


async def collected(service: AttributorService, task: AttributionTask) -> list[Attributed]:
    return [found async for found in service.attribute(task)]


def test_refined_values_follow_coarse_ones() -> None:
    coarse, refined = asyncio.run(collected(AttributorService(build_overlap_attributor, digest="d"), TASK))
    assert (coarse.is_refined, refined.is_refined) == (False, True)
    assert coarse.attributions[0].num_evals <= COARSE_EVALS + 1
    assert coarse.attributions[0].score == refined.attributions[0].score


def test_a_small_budget_has_nothing_coarser() -> None:
    task = replace(TASK, max_evals=COARSE_EVALS)
    (found,) = asyncio.run(collected(AttributorService(build_overlap_attributor, digest="d"), task))
    assert found.is_refined


class Slow:
    """Builds attributors whose refined values take for ever, one short call of the model after another."""

    def __init__(self) -> None:
        self.ended = threading.Event()

    def __call__(
        self, method: Method, *, leaf: Leaf, max_evals: int, before_call: Callable[[], None]
    ) -> SearchAttributor:
        def wait() -> None:
            while max_evals > COARSE_EVALS:
                time.sleep(0.01)
                try:
                    before_call()
                except BaseException:
                    self.ended.set()
                    raise

        return build_overlap_attributor(method, leaf=leaf, max_evals=max_evals, before_call=wait)


def test_a_deadline_leaves_the_coarse_values_and_ends_the_work() -> None:
    slow = Slow()

    async def run() -> list[Attributed]:
        found = await collected(AttributorService(slow, digest="d"), replace(TASK, deadline_s=0.05))
        assert await asyncio.to_thread(slow.ended.wait, 1.0)
        return found

    (coarse,) = asyncio.run(run())
    assert not coarse.is_refined


def test_the_work_of_a_caller_who_has_gone_ends_within_a_second() -> None:
    slow = Slow()

    async def run() -> None:
        service = AttributorService(slow, digest="d")
        call = asyncio.create_task(collected(service, TASK))
        await asyncio.sleep(0.3)
        call.cancel()
        assert await asyncio.to_thread(slow.ended.wait, 1.0)
        small = replace(TASK, max_evals=COARSE_EVALS)
        assert len(await collected(service, small)) == 1  # the thread is free again

    asyncio.run(run())


@pytest.mark.parametrize("residual", [0.01, math.nan])
def test_values_that_do_not_add_up_are_never_shown(residual: float) -> None:
    class Wrong:
        def attribute(self, query: Query, documents: Sequence[Document], *, seed: int) -> list[Attribution]:
            right = build_overlap_attributor(
                "pruned", leaf="token", max_evals=20, before_call=lambda: None
            ).attribute(query, documents, seed=seed)
            return [replace(one, residual=residual) for one in right]

        attribute_query = attribute

    def build(*_: object, **__: object) -> Wrong:
        return Wrong()

    service = AttributorService(build, digest="d")
    with pytest.raises(ServerFaultError) as refused:
        asyncio.run(collected(service, replace(TASK, max_evals=10)))
    assert refused.value.code == "attribution_failed"
