"""What serving costs: the gateway over a bare Serve application, throughput over the offline engine, tails.

    python tests/benchmarks/serving.py --artefact runs/minilm/dpo             # about 4 minutes on two cores
    python tests/benchmarks/serving.py --artefact runs/minilm/dpo --haproxy   # HAProxy for Ray's own proxy
    python tests/benchmarks/serving.py                                        # an untrained tiny model

Everything is on loopback and bounded. Rivals are asked in turns by one client process; the answers are
compared with the offline scores in the same run. The last line is one JSON object with `gateway_p50_ms`,
`throughput_ratio_32`, `p99_over_p50`, `stream_list_ratio` and `ready_s`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import uvicorn
from ray import serve
from ray.serve.config import HTTPOptions
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from jobs.ray_session import ray_session
from rerank_core.models.artefact import load_artefact
from rerank_core.records import Document, Query
from serve.app import GatewayReplica, wired
from serve.args import ServeArgs
from serve.haproxy import haproxy_environment
from serve.reranker import ModelCard, Scored
from serve.start import let_replicas_use_all_cores, served
from tests.untrained import save_untrained_artefact

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from ray.serve import Application
    from starlette.requests import Request

    from rerank_core.models.scorer import LanguageModelScorer
    from serve.reranker import ScoringTask

QUERY = "sea ice thickness from radar"
WORDS = (
    "sea",
    "ice",
    "thickness",
    "from",
    "radar",
    "river",
    "dates",
    "sand",
    "dunes",
    "lakes",
    "and",
    "seas",
)
NUM_DOCUMENTS = 10
NUM_CLIENTS = 32
ROUNDS = 5
ANSWER_S = 30.0


class BareChild:
    """Answers with one number per document, and does nothing for it."""

    async def score(self, documents: list[str]) -> list[float]:
        return [0.0] * len(documents)


def bare_api(score: Callable[[list[str]], Awaitable[list[float]]]) -> Starlette:
    """An API without logic: JSON in, one call, JSON out."""

    async def rerank(request: Request) -> JSONResponse:
        body = await request.json()
        return JSONResponse({"results": await score(body["documents"])})

    async def health(_: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    return Starlette(routes=[Route("/rerank", rerank, methods=["POST"]), Route("/health", health)])


class FreeReranker:
    """A reranker whose model costs nothing: what is left is the gateway."""

    def __init__(self, card: ModelCard) -> None:
        self._card = card

    async def describe(self) -> ModelCard:
        return self._card

    async def score(self, task: ScoringTask) -> Scored:
        return Scored((0.0,) * len(task.documents), self._card)


class BareIngress:
    """The same shape as our application: an ingress that asks one child."""

    def __init__(self, child: Any) -> None:
        self._child = child

    def __serve_build_asgi_app__(self) -> Starlette:
        async def score(documents: list[str]) -> list[float]:
            found: list[float] = await self._child.score.remote(documents)
            return found

        return bare_api(score)


def documents_of(seed: int, *, num_documents: int = NUM_DOCUMENTS) -> list[str]:
    """Return documents of 20 to 60 words, the same for a seed."""
    return [
        " ".join(WORDS[(seed * 7 + n * 5 + k * 3) % len(WORDS)] for k in range(20 + (seed + n * 11) % 41))
        for n in range(num_documents)
    ]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which a share of the values lies."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def seconds_of(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def wait_until_answered(address: str) -> None:
    """Return once an address answers 200; HAProxy looks at new replicas before it sends them anything."""
    deadline = time.perf_counter() + ANSWER_S
    while not httpx.get(address, trust_env=False, timeout=ANSWER_S).is_success:
        assert time.perf_counter() < deadline, address
        time.sleep(0.05)


@contextmanager
def uvicorn_server(app: Starlette) -> Iterator[str]:
    """Serve an ASGI application by uvicorn alone, in a thread."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        running = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not running.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        running.should_exit = True
        thread.join()


def latencies_ms(address: str, *, num_requests: int) -> dict[str, float]:
    """Return the median latencies of ours, of ours over a free model, and of the two bare applications."""
    body = {"query": "ice", "documents": ["ice"] * NUM_DOCUMENTS}

    async def score(documents: list[str]) -> list[float]:
        return [0.0] * len(documents)

    with (
        uvicorn_server(bare_api(score)) as plain,
        httpx.Client(base_url=address, trust_env=False, timeout=30) as client,
        httpx.Client(base_url=plain, trust_env=False) as bare,
    ):
        calls = {
            "ours": lambda: client.post("/v1/rerank", json=body).raise_for_status(),
            "ours_free_model": lambda: client.post("/free/v1/rerank", json=body).raise_for_status(),
            "bare_serve": lambda: client.post("/bare/rerank", json=body).raise_for_status(),
            "bare_uvicorn": lambda: bare.post("/rerank", json=body).raise_for_status(),
        }
        for call in calls.values():
            for _ in range(20):
                call()
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(num_requests):
            for name, call in calls.items():
                times[name].append(seconds_of(call) * 1000)
    return {name: statistics.median(found) for name, found in times.items()}


def model_ms(scorer: LanguageModelScorer, *, num_requests: int) -> float:
    """Return the median time of the model itself for the request of `latencies_ms`, in this process."""
    query, documents = Query("", "ice"), [Document("", "ice")] * NUM_DOCUMENTS
    scorer.score(query, documents)
    return statistics.median(
        seconds_of(lambda: scorer.score(query, documents)) * 1000 for _ in range(num_requests)
    )


async def throughput(address: str, *, seconds: float) -> tuple[float, list[float]]:
    """Return documents per second of `NUM_CLIENTS` clients, and the latencies in seconds."""
    latencies: list[float] = []
    ends = time.perf_counter() + seconds
    limits = httpx.Limits(max_connections=NUM_CLIENTS)
    async with httpx.AsyncClient(base_url=address, trust_env=False, timeout=60, limits=limits) as client:

        async def ask(number: int) -> None:
            turn = number
            while time.perf_counter() < ends:
                started = time.perf_counter()
                body = {"query": f"{QUERY} {number}", "documents": documents_of(turn)}
                answer = await client.post("/v1/rerank", json=body)
                answer.raise_for_status()
                latencies.append(time.perf_counter() - started)
                turn += NUM_CLIENTS

        started = time.perf_counter()
        await asyncio.gather(*(ask(number) for number in range(NUM_CLIENTS)))
        spent = time.perf_counter() - started
    return len(latencies) * NUM_DOCUMENTS / spent, latencies


def offline_rate(scorer: LanguageModelScorer, *, seconds: float) -> float:
    """Return documents per second of a warm scorer in this process, in batches as large as the server's."""
    lists = [
        [(Query("", f"{QUERY} {n}"), Document("", text)) for text in documents_of(n)]
        for n in range(NUM_CLIENTS)
    ]
    pairs = [pair for one in lists for pair in one]
    num_pairs = 0
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        scorer.score_pairs(pairs)
        num_pairs += len(pairs)
    return num_pairs / (time.perf_counter() - started)


def latency_below_saturation(address: str, *, num_requests: int) -> list[float]:
    """Return latencies of one client that waits as long as an answer took before it asks again."""
    found = []
    with httpx.Client(base_url=address, trust_env=False, timeout=60) as client:
        for number in range(num_requests):
            body = {"query": QUERY, "documents": documents_of(number)}
            found.append(seconds_of(lambda body=body: client.post("/v1/rerank", json=body)))  # type: ignore[misc]
            time.sleep(found[-1])
    return found


def stream_ratio(address: str, *, num_requests: int) -> float:
    """Return the median time to a streamed list over that of a plain rerank, asked in turns."""
    plain, streamed = [], []
    headers = {"Accept": "text/event-stream"}
    with httpx.Client(base_url=address, trust_env=False, timeout=60) as client:
        for number in range(num_requests):
            body = {"query": QUERY, "documents": documents_of(number)}
            plain.append(seconds_of(lambda body=body: client.post("/v1/rerank", json=body)))  # type: ignore[misc]
            explained = {**body, "explain": {"top_k": 1}}
            started = time.perf_counter()
            with client.stream("POST", "/v1/rerank", json=explained, headers=headers) as answer:
                lines = answer.iter_lines()
                next(line for line in lines if line.startswith("data: "))
                streamed.append(time.perf_counter() - started)
                for _ in lines:  # so that the next request meets an idle server
                    pass
    return statistics.median(streamed) / statistics.median(plain)


def largest_difference(address: str, scorer: LanguageModelScorer) -> float:
    """Return how far the served scores lie from the offline ones, as logits."""
    texts = documents_of(3, num_documents=60)
    with httpx.Client(base_url=address, trust_env=False, timeout=60) as client:
        body = {"query": QUERY, "documents": texts, "scale": "logit"}
        results = client.post("/v1/rerank", json=body).json()["results"]
    offline = scorer.score(Query("", QUERY), [Document("", text) for text in texts])
    differences = [abs(offline[one["index"]] - one["relevance_score"]) for one in results]
    return float(max(differences))


def over_free_model(args: ServeArgs) -> Application:
    """Return our gateway over a reranker that costs nothing."""
    card = ModelCard(
        digest="free",
        tokenizer_digest="free",
        max_length=256,
        max_query_length=64,
        long_documents="max_chunk",
        calibration=None,
    )
    free = serve.deployment(name="free_reranker", max_ongoing_requests=1024)(FreeReranker).bind(card)
    ingress = serve.deployment(name="free_gateway", max_ongoing_requests=1024)(
        serve.ingress()(GatewayReplica)
    )
    return ingress.bind(args, None, free, free, None, None)


def measure(artefact: Path, *, seconds: float, port: int) -> dict[str, float]:
    """Print what is measured, and return what the last line says."""
    args = ServeArgs(artefact=artefact, auth=False, requests_per_minute=10**9)
    address = f"http://127.0.0.1:{port}"
    child = serve.deployment(max_ongoing_requests=1024)(BareChild).bind()
    bare = serve.deployment(max_ongoing_requests=1024)(serve.ingress()(BareIngress)).bind(child)
    serve.start(proxy_location="HeadOnly", http_options=HTTPOptions(host="127.0.0.1", port=port))
    scorer = load_artefact(artefact, long_documents="max_chunk")
    started = time.perf_counter()
    with served(wired(args, engine=None, text_server=None), args, host="127.0.0.1", port=port):
        wait_until_answered(f"{address}/health")
        ready_s = time.perf_counter() - started
        serve.run(over_free_model(args), name="free", route_prefix="/free")
        serve.run(bare, name="bare", route_prefix="/bare")
        wait_until_answered(f"{address}/free/health")
        wait_until_answered(f"{address}/bare/health")
        difference = largest_difference(address, scorer)
        print(f"ready after {ready_s:.1f} s; largest difference from offline scores {difference:.1e}")  # noqa: T201
        assert difference <= 1e-5, "the server scores otherwise than the offline engine"
        medians = latencies_ms(address, num_requests=200)
        medians["model"] = model_ms(scorer, num_requests=200)
        print("median ms:", {name: round(found, 2) for name, found in medians.items()})  # noqa: T201
        ratios, tails = [], []
        for _ in range(ROUNDS):
            rate, latencies = asyncio.run(throughput(address, seconds=seconds / ROUNDS))
            offline = offline_rate(scorer, seconds=seconds / ROUNDS)
            ratios.append(rate / offline)
            tails.append(percentile(latencies, 0.99) / percentile(latencies, 0.5))
            print(f"32 clients: {rate:.0f} documents/s, offline {offline:.0f}, p99/p50 {tails[-1]:.2f}")  # noqa: T201
        below = latency_below_saturation(address, num_requests=100)
        streamed = stream_ratio(address, num_requests=15)
    return {
        "gateway_p50_ms": medians["ours_free_model"] - medians["bare_serve"],
        "gateway_over_uvicorn_ms": medians["ours_free_model"] - medians["bare_uvicorn"],
        "reranker_over_model_ms": medians["ours"] - medians["ours_free_model"] - medians["model"],
        "throughput_ratio_32": statistics.median(ratios),
        "p99_over_p50": percentile(below, 0.99) / percentile(below, 0.5),
        "stream_list_ratio": streamed,
        "ready_s": ready_s,
    }


def main() -> None:
    """Measure an artefact, by default an untrained tiny one."""
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    reader.add_argument("--artefact", type=Path)
    reader.add_argument("--seconds", type=float, default=20.0, help="of load, and as many of offline scoring")
    reader.add_argument("--port", type=int, default=8230)
    reader.add_argument("--haproxy", action="store_true", help="in place of Ray's own proxy")
    given = reader.parse_args()
    if given.haproxy:
        with haproxy_environment():  # which Ray has read when this file's first line has run
            again = [argument for argument in sys.argv if argument != "--haproxy"]
            sys.exit(subprocess.run([sys.executable, *again], check=False).returncode)
    let_replicas_use_all_cores()
    with tempfile.TemporaryDirectory() as folder, ray_session(address=None):
        artefact = given.artefact or Path(folder) / "tiny"
        if given.artefact is None:
            save_untrained_artefact(artefact, texts=[QUERY, " ".join(WORDS)])
        found = measure(artefact, seconds=given.seconds, port=given.port)
    print(json.dumps({name: round(value, 4) for name, value in found.items()}))  # noqa: T201


if __name__ == "__main__":
    main()
