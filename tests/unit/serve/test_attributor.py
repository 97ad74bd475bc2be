"""Coarse values first; refined ones in time; and no work for those who have gone."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_core.records import Document, Query
from serve.attributor import COARSE_EVALS, AttributionTask, AttributorService, Standing
from serve.errors import ServerFaultError
from tests.fake_services import build_overlap_attributor, open_overlap_deletion

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rerank_core.attribution.attributor import SearchAttributor
    from rerank_core.attribution.build import Method
    from rerank_core.attribution.deletion import Deletion, Worths
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
    coarse, refined = asyncio.run(
        collected(AttributorService(build_overlap_attributor, open_overlap_deletion, digest="d"), TASK)
    )
    assert (coarse.is_refined, refined.is_refined) == (False, True)
    assert coarse.attributions[0].num_evals <= COARSE_EVALS + 1
    assert coarse.attributions[0].score == refined.attributions[0].score


def test_a_small_budget_has_nothing_coarser() -> None:
    task = replace(TASK, max_evals=COARSE_EVALS)
    (found,) = asyncio.run(
        collected(AttributorService(build_overlap_attributor, open_overlap_deletion, digest="d"), task)
    )
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
        found = await collected(
            AttributorService(slow, open_overlap_deletion, digest="d"), replace(TASK, deadline_s=0.05)
        )
        assert await asyncio.to_thread(slow.ended.wait, 1.0)
        return found

    (coarse,) = asyncio.run(run())
    assert not coarse.is_refined


def test_the_work_of_a_caller_who_has_gone_ends_within_a_second() -> None:
    slow = Slow()

    async def run() -> None:
        service = AttributorService(slow, open_overlap_deletion, digest="d")
        call = asyncio.create_task(collected(service, TASK))
        await asyncio.sleep(0.3)
        call.cancel()
        assert await asyncio.to_thread(slow.ended.wait, 1.0)
        small = replace(TASK, max_evals=COARSE_EVALS)
        assert len(await collected(service, small)) == 1  # the thread is free again

    asyncio.run(run())


FLIPPED = replace(
    TASK, documents=TASK.documents * 20, max_evals=COARSE_EVALS, standings=(Standing(2.0, (1.5,)),) * 20
)


class SlowDeletion:
    """Takes its time for every call of the model, and counts them."""

    def __init__(self) -> None:
        self.num_calls = 0

    def __call__(self, attribution: Attribution, **of_document: Any) -> tuple[Deletion, Worths]:
        deletion, worths = open_overlap_deletion(attribution, **of_document)

        def slow(coalitions: Sequence[int]) -> Sequence[float]:
            self.num_calls += 1
            time.sleep(0.1)
            return worths(coalitions)

        return deletion, slow


def test_rank_flips_of_the_first_documents_come_once_more_with_the_refined_values() -> None:
    task = replace(TASK, documents=TASK.documents * 2, standings=(Standing(2.0, (3.0, 1.5, 1.5, 0.5)),))
    service = AttributorService(build_overlap_attributor, open_overlap_deletion, digest="d")
    coarse, refined, flipped = asyncio.run(collected(service, task))
    assert (coarse.rank_flips, refined.rank_flips) == (None, None)
    assert flipped.attributions is refined.attributions
    assert flipped.rank_flips is not None
    (flip,) = flipped.rank_flips
    assert flip is not None
    assert [refined.attributions[0].units[place].text for place in flip.places] in (["sea"], ["ice"])
    assert (flip.rank, flip.flipped_rank, flip.score) == (2, 4, 1.0)


@pytest.mark.parametrize("difference", [5e-4, 0.0, -5e-4])
def test_no_rank_flip_comes_of_a_score_that_the_reranker_read_a_little_higher(difference: float) -> None:
    score = 1.0 + difference
    above = math.nextafter(score, math.inf)
    task = replace(
        FLIPPED,
        documents=(Document("", "sea sea lakes"),),  # without one of them nothing changes
        standings=(Standing(score, (above, score - 2e-4, score - 0.5)),),
    )
    service = AttributorService(build_overlap_attributor, open_overlap_deletion, digest="d")
    *_, flipped = asyncio.run(collected(service, task))
    assert flipped.rank_flips is not None
    (flip,) = flipped.rank_flips
    assert flip is not None
    units = flipped.attributions[0].units
    assert [units[place].text for place in flip.places] == ["sea", "sea"]
    assert (flip.rank, flip.flipped_rank, flip.score) == (2, 4, 0.0)


@given(st.floats(-20, 20), st.floats(-1e-3, 1e-3), st.lists(st.floats(-20, 20) | st.just(0.0), max_size=5))
def test_a_standing_keeps_its_rank_where_its_score_is_read_a_little_apart(
    score: float, difference: float, others: list[float]
) -> None:
    standing = Standing(score, (*others, math.nextafter(score, math.inf), score))
    read = standing.read_as(score + difference)
    assert [rival > read.score for rival in read.rivals] == [rival > score for rival in standing.rivals]
    assert read.rivals == pytest.approx([rival + difference for rival in standing.rivals])
    assert standing.read_as(score) == standing


def test_a_deadline_leaves_the_values_without_rank_flips_and_ends_the_search() -> None:
    slow = SlowDeletion()
    service = AttributorService(build_overlap_attributor, slow, digest="d")
    (found,) = asyncio.run(collected(service, replace(FLIPPED, deadline_s=0.25)))
    assert found.is_refined
    assert found.rank_flips is None
    assert has_ended(slow)


def test_the_search_for_a_caller_who_has_gone_ends_before_its_next_call() -> None:
    slow = SlowDeletion()
    service = AttributorService(build_overlap_attributor, slow, digest="d")

    async def run() -> None:
        call = asyncio.create_task(collected(service, FLIPPED))
        while not slow.num_calls:
            await asyncio.sleep(0.01)
        call.cancel()

    asyncio.run(run())
    assert has_ended(slow)


def has_ended(slow: SlowDeletion) -> bool:
    time.sleep(0.15)  # one call may still be under way
    num_calls = slow.num_calls
    time.sleep(0.3)
    return 0 < num_calls == slow.num_calls < 20


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

    service = AttributorService(build, open_overlap_deletion, digest="d")
    with pytest.raises(ServerFaultError) as refused:
        asyncio.run(collected(service, replace(TASK, max_evals=10)))
    assert refused.value.code == "attribution_failed"
