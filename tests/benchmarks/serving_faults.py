"""What a server does under faults: five times its capacity, replicas that are killed, parts that fail.

    python tests/benchmarks/serving_faults.py --artefact runs/minilm/dpo
    python tests/benchmarks/serving_faults.py                  # MiniLM with an untrained neuron

Everything is on loopback, and bounded in time and number. Requests are sent at a fixed rate, whether or not
earlier ones were answered. The last line is one JSON object; `docs/benchmarks` says what each number is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
from ray import serve

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from jobs.ray_session import ray_session
from rerank_core.models.artefact import save_artefact
from rerank_core.models.build import build_encoder, build_model, load_tokenizer
from rerank_core.models.pretrained import resolve_model
from rerank_core.models.scorer import LanguageModelScorer
from rerank_core.records import Document, Query
from serve.app import wired
from serve.args import ReplicaArgs, ServeArgs
from serve.start import APP_NAME, let_replicas_use_all_cores, served
from tests.benchmarks.serving import QUERY, documents_of, percentile
from tests.listeners import free_port
from tests.scripted_serve import scripted_app

if TYPE_CHECKING:
    from collections.abc import Callable

NUM_QUEUED = 12
"""Requests that the overloaded gateway lets wait or be worked on."""

OVERLOAD = 5
MAX_OUTSTANDING = 1000
KILL_EVERY_S = 5.0
NUM_FAILURES = 2
"""Of the explainer in a row: fewer than those after which the gateway does without it for a while."""

RECOVERY_S = 60.0
ENGINE_S = 120.0
"""How long an engine that was killed may take to write again."""

MAX_EVALS = 20_000
SMALL = "small"


@dataclass(frozen=True, slots=True)
class Answer:
    """One request's answer: when it was sent, how long it took, and what came."""

    sent: float
    seconds: float
    status: int  # 0: none came
    retry_after: str | None


def body_of(number: int) -> dict[str, Any]:
    """Return the same ten documents, in another order of their words, for each number."""
    return {"query": QUERY, "documents": documents_of(number)}


async def load(address: str, path: str, *, per_second: float, seconds: float) -> list[Answer]:
    """Return the answers to requests that are sent at a fixed rate for some seconds."""
    answers: list[Answer] = []
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=address, trust_env=False, timeout=60, limits=limits) as client:

        async def ask(number: int) -> None:
            sent = time.perf_counter()
            try:
                answer = await client.post(path, json=body_of(number))
                status, retry_after = answer.status_code, answer.headers.get("retry-after")
            except httpx.HTTPError:
                status, retry_after = 0, None
            answers.append(Answer(sent, time.perf_counter() - sent, status, retry_after))

        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in range(int(per_second * seconds)):
                await asyncio.sleep(max(started + number / per_second - time.perf_counter(), 0))
                if number - len(answers) < MAX_OUTSTANDING:
                    group.create_task(ask(number))
    return answers


async def capacity(address: str, path: str, *, num_clients: int, seconds: float) -> float:
    """Return the requests per second of clients that ask again as soon as they are answered."""
    num_answered = 0
    ends = time.perf_counter() + seconds
    async with httpx.AsyncClient(base_url=address, trust_env=False, timeout=60) as client:

        async def ask(number: int) -> None:
            nonlocal num_answered
            while time.perf_counter() < ends:
                (await client.post(path, json=body_of(number))).raise_for_status()
                num_answered += 1

        started = time.perf_counter()
        await asyncio.gather(*(ask(number) for number in range(num_clients)))
    return num_answered / (time.perf_counter() - started)


async def first_answer(address: str, path: str, *, after_s: float, within_s: float) -> float:
    """Return when a request is first answered with 200, asked from some seconds on again and again.

    Raises:
        TimeoutError: none is in time.
    """
    await asyncio.sleep(after_s)
    async with asyncio.timeout(within_s), httpx.AsyncClient(base_url=address, trust_env=False) as client:
        while (await client.post(path, json=body_of(0), timeout=within_s)).status_code != 200:
            await asyncio.sleep(0.02)
    return time.perf_counter()


async def load_and_recovery(
    address: str, path: str, *, per_second: float, seconds: float
) -> tuple[list[Answer], float]:
    """Return the answers to a load, and how long after its last request another one is answered with 200."""
    answers, answered = await asyncio.gather(
        load(address, path, per_second=per_second, seconds=seconds),
        first_answer(address, path, after_s=seconds, within_s=RECOVERY_S),
    )
    return answers, answered - max(one.sent for one in answers)


def replicas(app: str, deployment: str) -> list[psutil.Process]:
    """Return the processes of a deployment's replicas."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if f"ServeReplica:{app}:{deployment}" in " ".join(process.cmdline()):
                found.append(process)
    return found


def seconds_of(answers: list[Answer], *statuses: int) -> list[float]:
    return [one.seconds for one in answers if one.status in statuses]


def overload(address: str, *, seconds: float) -> dict[str, float]:
    """Send five times what the server with a short queue can answer."""
    path = f"/{SMALL}/v1/rerank"
    rate = asyncio.run(capacity(address, path, num_clients=NUM_QUEUED // 2, seconds=8))
    (gateway,) = replicas(SMALL, "gateway")
    memory: list[int] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.5):
            memory.append(gateway.memory_info().rss)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        answers, recovered = asyncio.run(
            load_and_recovery(address, path, per_second=OVERLOAD * rate, seconds=seconds)
        )
    finally:
        ended.set()
        watching.join()
    accepted, refused = seconds_of(answers, 200), seconds_of(answers, 429, 503)
    third = max(len(memory) // 3, 1)
    return {
        "overload_capacity_per_s": rate,
        "overload_sent": len(answers),
        "overload_accepted": len(accepted),
        "overload_refused": len(refused),
        "overload_other": len(answers) - len(accepted) - len(refused),
        "overload_without_retry_after": sum(
            one.retry_after is None for one in answers if one.status in (429, 503)
        ),
        "overload_bound_s": NUM_QUEUED / rate,
        "overload_accepted_p99_over_bound": percentile(accepted, 0.99) * rate / NUM_QUEUED,
        "overload_refused_p50_ms": percentile(refused, 0.5) * 1000,
        "overload_refused_p95_ms": percentile(refused, 0.95) * 1000,
        "overload_gateway_rss_growth": statistics.mean(memory[-third:]) / statistics.mean(memory[:third]) - 1,
        "overload_recovered_s": recovered,
    }


def wait_until_both_are_ready(killed: set[int], *, until: float) -> list[psutil.Process]:
    """Return the two living rerankers once Serve, too, says that they run; none where time is up before."""
    while time.perf_counter() < until:
        states = serve.status().applications[APP_NAME].deployments["reranker"].replica_states
        found = [process for process in replicas(APP_NAME, "reranker") if process.pid not in killed]
        if len(found) == 2 and dict(states) == {"RUNNING": 2}:
            return found
        time.sleep(0.1)
    return []


def kill_now_and_then(*, seconds: float) -> int:
    """Kill one of two rerankers every few seconds, each time after both are ready; return how often."""
    ends = time.perf_counter() + seconds
    killed: set[int] = set()
    while found := wait_until_both_are_ready(killed, until=ends):
        os.kill(found[0].pid, signal.SIGKILL)
        killed.add(found[0].pid)
        time.sleep(max(min(KILL_EVERY_S, ends - time.perf_counter()), 0))
    return len(killed)


def losses(address: str, *, seconds: float) -> dict[str, float]:
    """Compare half of the capacity with and without replicas that are killed."""
    rate = asyncio.run(capacity(address, "/v1/rerank", num_clients=8, seconds=8)) / 2
    steady = asyncio.run(load(address, "/v1/rerank", per_second=rate, seconds=seconds / 4))
    num_killed: list[int] = []
    killing = threading.Thread(target=lambda: num_killed.append(kill_now_and_then(seconds=seconds)))
    killing.start()
    answers = asyncio.run(load(address, "/v1/rerank", per_second=rate, seconds=seconds))
    killing.join()
    before, under = seconds_of(steady, 200), seconds_of(answers, 200)
    return {
        "loss_requests_per_s": rate,
        "loss_kills": num_killed[0],
        "loss_sent": len(answers),
        "loss_errors": len(answers) - len(under) + len(steady) - len(before),
        "loss_p50_ms": percentile(under, 0.5) * 1000,
        "loss_p99_ms": percentile(under, 0.99) * 1000,
        "loss_p99_over_steady": percentile(under, 0.99) / percentile(before, 0.99),
    }


def degraded(address: str) -> dict[str, float]:
    """Time explained answers whose explainer or attributor fails; all of them are 200 and say so."""
    explained = {"query": QUERY, "documents": ["sea ice from radar"], "budget": 60, "explain": {"top_k": 1}}
    found: dict[str, float] = {}
    with httpx.Client(base_url=address, trust_env=False, timeout=60) as client:

        def timed(body: dict[str, Any]) -> tuple[float, dict[str, Any]]:
            started = time.perf_counter()
            answer: dict[str, Any] = client.post("/v1/explain", json=body).raise_for_status().json()
            return time.perf_counter() - started, answer

        def is_written(answer: dict[str, Any]) -> bool:
            explanation = answer["results"][0]["explanation"]
            assert explanation["attribution"]["units"]
            return not explanation["text"]["is_fallback"]

        for fault in ("none", "raise", "babble", "sleep", "crash"):
            body = explained if fault == "none" else explained | {"query": f"{QUERY} please {fault}"}
            answers = [timed(body) for _ in range(NUM_FAILURES)]
            for _, answer in answers:
                assert is_written(answer) == (fault == "none"), answer
                assert answer.get("degraded", []) == ([] if fault in ("none", "babble") else ["explainer"])
            found[f"explainer_{fault}_s"] = statistics.median(seconds for seconds, _ in answers)
            deadline = time.perf_counter() + ENGINE_S
            while not is_written(timed(explained)[1]):  # the engine is not back yet
                assert time.perf_counter() < deadline, f"no text {ENGINE_S:g} s after {fault}"
                time.sleep(5)
        long = {"documents": [" ".join(documents_of(1)[:5])], "budget": MAX_EVALS}
        seconds, answer = timed({**explained, **long})
        assert answer["degraded"] == ["attributor"], answer
        attribution = answer["results"][0]["explanation"]["attribution"]
        assert attribution["is_refined"] is False
    return {**found, "attributor_late_s": seconds, "attributor_late_states_error": "error" in attribution}


def save_untrained_minilm(folder: Path) -> None:
    """Write MiniLM with a neuron that has learnt nothing: it costs what a trained one costs."""
    model = resolve_model("minilm")
    neuron = build_model(model, head="linear", num_layers=None, seed=0)
    encoder = build_encoder(load_tokenizer(model), neuron.config, head="linear", max_length=256)
    golden = [(Query("golden", QUERY), Document("golden", text)) for text in documents_of(0)]
    scorer = LanguageModelScorer(neuron, encoder, digest="")
    save_artefact(scorer, folder, head="linear", golden=golden, provenance={})


def request_tokens(address: str) -> int:
    """Return the tokens by which one request is admitted, at most."""
    with httpx.Client(base_url=address, trust_env=False, timeout=60) as client:
        return max(
            int(client.post("/v1/rerank", json=body_of(number)).json()["usage"]["total_tokens"])
            for number in range(12)
        )


def measure(artefact: Path, *, seconds: float) -> dict[str, float]:
    """Return what the last line says."""
    one = ReplicaArgs(num_cpus=0.5)
    args = ServeArgs(
        artefact=artefact,
        auth=False,
        requests_per_minute=10**9,
        max_concurrent_requests=10**6,
        max_evals=MAX_EVALS,
        attribution_timeout_s=15,
        explanation_timeout_s=5,
        max_pending_attribution_tokens=10**9,
        reranker=ReplicaArgs(num_cpus=0.5, min_replicas=2, max_replicas=2),
        attributor=one,
    )
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    found: dict[str, float] = {}
    with served(scripted_app(args), args, host="127.0.0.1", port=port):
        parts: list[Callable[[], dict[str, float]]] = [
            lambda: losses(address, seconds=3 * seconds),
            lambda: short_queue_overloaded(address, args, seconds=seconds),
            lambda: degraded(address),
        ]
        for part in parts:
            found |= part()
            print(json.dumps({name: round(value, 4) for name, value in found.items()}), flush=True)  # noqa: T201
    return found


def short_queue_overloaded(address: str, args: ServeArgs, *, seconds: float) -> dict[str, float]:
    """Overload a second application, whose gateway lets `NUM_QUEUED` requests wait."""
    small = args.model_copy(
        update={
            "max_pending_tokens": NUM_QUEUED * request_tokens(address),
            "reranker": ReplicaArgs(num_cpus=0.5),
        }
    )
    serve.run(wired(small, engine=None, text_server=None), name=SMALL, route_prefix=f"/{SMALL}")
    return overload(address, seconds=seconds)


def main() -> None:
    """Measure an artefact, by default MiniLM with an untrained neuron."""
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    reader.add_argument("--artefact", type=Path)
    reader.add_argument(
        "--seconds", type=float, default=20.0, help="of overload; of losses, three times as many"
    )
    given = reader.parse_args()
    let_replicas_use_all_cores()
    with tempfile.TemporaryDirectory() as folder, ray_session(address=None):
        artefact = given.artefact or Path(folder) / "minilm"
        if given.artefact is None:
            save_untrained_minilm(artefact)
        found = measure(artefact, seconds=given.seconds)
    print(json.dumps({name: round(value, 4) for name, value in found.items()}))  # noqa: T201


if __name__ == "__main__":
    main()
