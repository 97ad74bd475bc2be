"""A real Ray Serve that is asked for more than it can do: what it takes it answers, the rest it refuses."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import httpx
import pytest
from ray import serve

from serve.app import wired
from serve.args import ReplicaArgs
from tests.scripted_serve import QUERY, TEXTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from serve.args import ServeArgs

pytestmark = pytest.mark.ray

NAME = "short"
BODY = {"query": QUERY, "documents": TEXTS * 10}
NUM_QUEUED = 4
NUM_CLIENTS = 5 * NUM_QUEUED
NUM_TURNS = 15


@pytest.fixture
def short_queue(client: httpx.Client, server_args: ServeArgs) -> Iterator[int]:
    """The bound on the tokens of a second application, under a path of its own: four requests' worth."""
    bound = NUM_QUEUED * int(client.post("/v1/rerank", json=BODY).json()["usage"]["total_tokens"])
    args = server_args.model_copy(update={"max_pending_tokens": bound, "reranker": ReplicaArgs(num_cpus=0.1)})
    serve.run(wired(args, engine=None, text_server=None), name=NAME, route_prefix=f"/{NAME}")
    yield bound
    serve.delete(NAME)


def pending_tokens(answer: httpx.Response) -> float:
    (line,) = [one for one in answer.text.splitlines() if one.startswith("whyrank_pending_tokens ")]
    return float(line.split()[1])


async def flood(client: httpx.AsyncClient) -> tuple[list[httpx.Response], list[float]]:
    """Return the answers to five times as many clients as may wait, and the pending tokens meanwhile."""
    answers: list[httpx.Response] = []
    pending: list[float] = []

    async def ask() -> None:
        for _ in range(NUM_TURNS):
            answer = await client.post(f"/{NAME}/v1/rerank", json=BODY)
            answers.append(answer)
            await asyncio.sleep(0.1 if answer.status_code == 429 else 0)

    async def watch() -> None:
        while len(answers) < NUM_CLIENTS * NUM_TURNS:
            pending.append(pending_tokens(await client.get(f"/{NAME}/metrics")))
            await asyncio.sleep(0.1)

    await asyncio.gather(watch(), *(ask() for _ in range(NUM_CLIENTS)))
    return answers, pending


def test_an_overloaded_server_refuses_what_it_cannot_queue_and_answers_the_rest(
    client: httpx.Client, server: tuple[str, str], short_queue: int
) -> None:
    address, key = server
    headers = {"Authorization": f"Bearer {key}"}
    expected = client.post("/v1/rerank", json=BODY).json()["results"]

    async def overload() -> tuple[list[httpx.Response], list[float]]:
        limits = httpx.Limits(max_connections=NUM_CLIENTS + 1)
        async with httpx.AsyncClient(
            base_url=address, headers=headers, timeout=60, trust_env=False, limits=limits
        ) as flooding:
            return await flood(flooding)

    answers, pending = asyncio.run(overload())
    accepted = [answer for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(accepted) + len(refused) == len(answers)
    assert len(accepted) > NUM_CLIENTS
    assert len(refused) > NUM_CLIENTS
    for answer in accepted:
        scores = {one["index"]: one["relevance_score"] for one in answer.json()["results"]}
        assert scores == pytest.approx({one["index"]: one["relevance_score"] for one in expected}, abs=1e-5)
    for answer in refused:
        assert answer.headers["Retry-After"] == "1"
        assert answer.json()["error"]["code"] == "overloaded"
    assert 0 < max(pending) <= short_queue
    assert pending_tokens(client.get(f"/{NAME}/metrics")) == 0  # nothing is kept of what was refused
    assert client.post(f"/{NAME}/v1/rerank", json=BODY).status_code == 200
