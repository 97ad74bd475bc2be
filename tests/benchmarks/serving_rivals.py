"""How fast the same model is behind other servers: sentence-transformers under FastAPI, and vLLM.

    python tests/benchmarks/serving_rivals.py                # about 5 minutes on two cores
    python tests/benchmarks/serving_rivals.py --without-vllm

The model is SmolLM2-135M cut to four layers under one neuron with seeded weights, saved as our artefact and
as `LlamaForSequenceClassification`. Every server reads the same tokens on one thread of the model, is asked
the same requests in turns on loopback, and has to give the same logits. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import uvicorn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.serving import NUM_DOCUMENTS, QUERY, documents_of
from tests.listeners import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NUM_LAYERS = 4
MAX_LENGTH = 256
TEMPLATE = "{query}\n{document}"
"""A text that a tokenizer cuts alike whether it comes in two parts or whole."""

LIST_SIZES = (10, 100)
CLIENTS = (8, 32)
TOLERANCE = 1e-4
START_S = 180.0
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_HOST_IP": "127.0.0.1"} | {
    name: "1" for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "VLLM_NO_USAGE_STATS", "DO_NOT_TRACK")
}
VLLM_SETTINGS = {
    "runner": "pooling",
    "dtype": "float32",
    "max-model-len": str(MAX_LENGTH),
    "kv-cache-memory-bytes": str(2**30),
    "served-model-name": "rival",
}


@dataclass(frozen=True, slots=True)
class Rival:
    """A server of `/v1/rerank`, and what it wants besides query and documents."""

    name: str
    address: str
    query_end: str  # what joins a query to a document, where the server does not put it there
    settings: dict[str, object]

    def body(self, query: str, documents: Sequence[str]) -> dict[str, object]:
        """Return a request."""
        return {"query": query + self.query_end, "documents": list(documents), **self.settings}


def save_models(folder: Path) -> None:
    """Write the model as `folder/ours`, an artefact, and as `folder/theirs`, for transformers."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from rerank_core.models.artefact import save_artefact
    from rerank_core.models.build import build_model, load_tokenizer
    from rerank_core.models.pretrained import resolve_model
    from rerank_core.models.scorer import LanguageModelScorer, PairEncoder, PromptFormat
    from rerank_core.records import Document, Query

    pretrained = resolve_model("smollm2")
    tokenizer = load_tokenizer(pretrained)
    neuron = build_model(pretrained, head="linear", num_layers=NUM_LAYERS, seed=0)
    form = PromptFormat(template=TEMPLATE, max_length=MAX_LENGTH, max_query_length=MAX_LENGTH // 2)
    golden = [(Query("golden", QUERY), Document("golden", text)) for text in documents_of(1)]
    scorer = LanguageModelScorer(neuron, PairEncoder(tokenizer, form), digest="")
    save_artefact(scorer, folder / "ours", head="linear", golden=golden, provenance={})
    config = neuron.config
    config.num_labels = 1
    config.pad_token_id = tokenizer.pad_token_id
    theirs = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    theirs.base_model.load_state_dict(neuron.backbone.state_dict())
    with torch.no_grad():
        theirs.score.weight.copy_(neuron.head.weight)
    theirs.save_pretrained(folder / "theirs")
    tokenizer.chat_template = None  # else CrossEncoder would make a conversation of a pair
    tokenizer.save_pretrained(folder / "theirs")


def serve_cross_encoder(model: Path, port: int) -> None:
    """Serve sentence-transformers' CrossEncoder as people do: FastAPI, one `predict` per request."""
    import torch
    from fastapi import FastAPI
    from sentence_transformers import CrossEncoder

    encoder = CrossEncoder(
        str(model),
        device="cpu",
        max_length=MAX_LENGTH,
        activation_fn=torch.nn.Identity(),
        local_files_only=True,
    )
    at_a_time = threading.Lock()  # FastAPI runs requests in forty threads, which would share two cores
    api = FastAPI()

    @api.post("/v1/rerank")
    def rerank(body: dict[str, Any]) -> dict[str, Any]:
        with at_a_time:
            scores = encoder.predict(
                [(body["query"], text) for text in body["documents"]], show_progress_bar=False
            ).tolist()
        order = sorted(range(len(scores)), key=lambda index: -scores[index])
        return {"results": [{"index": index, "relevance_score": scores[index]} for index in order]}

    @api.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    uvicorn.run(api, host="127.0.0.1", port=port, log_level="error")


@contextmanager
def running(command: list[str], *, port: int, log: Path) -> Iterator[str]:
    """Run a server in a process of its own, and end it."""
    with log.open("w") as stream:
        server = subprocess.Popen(
            command, env=os.environ | ENVIRONMENT, stdout=stream, stderr=subprocess.STDOUT
        )
        address = f"http://127.0.0.1:{port}"
        try:
            wait_until_healthy(server, address, log=log)
            yield address
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def wait_until_healthy(server: subprocess.Popen[bytes], address: str, *, log: Path) -> None:
    """Return once a server's /health answers 200."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if httpx.get(f"{address}/health", trust_env=False, timeout=5).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise RuntimeError(f"{address} is not ready:\n{log.read_text()[-3000:]}")


@contextmanager
def ours(artefact: Path, *, port: int) -> Iterator[str]:
    """Serve our artefact on a Ray of this process."""
    from jobs.ray_session import ray_session
    from serve.app import wired
    from serve.args import ReplicaArgs, ServeArgs
    from serve.start import served

    one = ReplicaArgs(num_cpus=1.0)  # Ray gives as many threads to torch
    args = ServeArgs(artefact=artefact, auth=False, requests_per_minute=10**9, reranker=one, attributor=one)
    with (
        ray_session(address=None),
        served(wired(args, engine=None, text_server=None), args, host="127.0.0.1", port=port),
    ):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def rivals_of(folder: Path, *, with_vllm: bool) -> Iterator[list[Rival]]:
    """Start every server, one after the other."""
    theirs = folder / "theirs"
    with ExitStack() as stack:
        found = [
            Rival(
                "whyrank",
                stack.enter_context(ours(folder / "ours", port=free_port())),
                "",
                {"scale": "logit"},
            )
        ]
        port = free_port()
        command = [sys.executable, __file__, "--cross-encoder", str(theirs), "--port", str(port)]
        address = stack.enter_context(running(command, port=port, log=folder / "cross_encoder.log"))
        found.append(Rival("cross_encoder", address, "\n", {}))
        if with_vllm:
            port = free_port()
            program = [
                sys.executable,
                "-m",
                "vllm.entrypoints.openai.api_server",
            ]  # `vllm serve` is vllm's alone
            options = [text for name, value in VLLM_SETTINGS.items() for text in (f"--{name}", value)]
            command = [*program, "--model", str(theirs), "--host", "127.0.0.1", "--port", str(port)]
            command += ["--enforce-eager", *options]
            address = stack.enter_context(running(command, port=port, log=folder / "vllm.log"))
            found.append(Rival("vllm", address, "\n", {"model": "rival", "use_activation": False}))
        yield found


def scores_of(client: httpx.Client, rival: Rival, documents: Sequence[str]) -> list[float]:
    """Return a server's logits, in the order of the documents."""
    answer = client.post(f"{rival.address}/v1/rerank", json=rival.body(QUERY, documents)).raise_for_status()
    score_by_index: dict[int, float] = {
        one["index"]: one["relevance_score"] for one in answer.json()["results"]
    }
    return [score_by_index[index] for index in range(len(documents))]


def largest_difference(rivals: Sequence[Rival]) -> float:
    """Return how far the servers' logits lie apart, after every server has been warmed up."""
    documents = documents_of(3, num_documents=max(LIST_SIZES))
    with httpx.Client(trust_env=False, timeout=120) as client:
        found = [scores_of(client, rival, documents) for rival in rivals]
    differences: list[float] = [max(scores) - min(scores) for scores in zip(*found, strict=True)]
    return max(differences)


def latencies_ms(rivals: Sequence[Rival], *, num_documents: int, num_requests: int) -> dict[str, float]:
    """Return the median latencies of one client that asks the servers in turns."""
    times: dict[str, list[float]] = {rival.name: [] for rival in rivals}
    with httpx.Client(trust_env=False, timeout=120) as client:
        for number in range(num_requests):
            documents = documents_of(number, num_documents=num_documents)
            for rival in rivals:
                body = rival.body(f"{QUERY} {number}", documents)
                started = time.perf_counter()
                client.post(f"{rival.address}/v1/rerank", json=body).raise_for_status()
                times[rival.name].append((time.perf_counter() - started) * 1000)
    return {name: statistics.median(found) for name, found in times.items()}


async def documents_per_second(rival: Rival, *, num_clients: int, seconds: float) -> float:
    """Return the documents of lists of ten that clients have scored, over the time until the last answer."""
    num_answers = 0
    started = time.perf_counter()
    limits = httpx.Limits(max_connections=num_clients)
    async with httpx.AsyncClient(trust_env=False, timeout=120, limits=limits) as client:

        async def ask(number: int) -> None:
            nonlocal num_answers
            turn = number
            while time.perf_counter() - started < seconds:
                body = rival.body(f"{QUERY} {turn}", documents_of(turn))
                (await client.post(f"{rival.address}/v1/rerank", json=body)).raise_for_status()
                num_answers += 1
                turn += num_clients

        await asyncio.gather(*(ask(number) for number in range(num_clients)))
    return num_answers * NUM_DOCUMENTS / (time.perf_counter() - started)


def measure(rivals: Sequence[Rival], *, seconds: float, rounds: int) -> dict[str, dict[str, float]]:
    """Return every figure of every server, measured in turns."""
    found: dict[str, dict[str, float]] = {rival.name: {} for rival in rivals}
    for size, num_requests in zip(LIST_SIZES, (20, 5), strict=True):
        medians = latencies_ms(rivals, num_documents=size, num_requests=num_requests)
        for name, median in medians.items():
            found[name][f"p50_ms_{size}_documents"] = median
    for num_clients in CLIENTS:
        rates: dict[str, list[float]] = {rival.name: [] for rival in rivals}
        for _ in range(rounds):
            for rival in rivals:
                rates[rival.name].append(
                    asyncio.run(
                        documents_per_second(rival, num_clients=num_clients, seconds=seconds / rounds)
                    )
                )
        for name, own in rates.items():
            found[name][f"documents_per_s_{num_clients}_clients"] = statistics.median(own)
    return found


def main() -> None:
    """Measure, or be one of the servers."""
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    reader.add_argument(
        "--seconds", type=float, default=12.0, help="of load, per server and number of clients"
    )
    reader.add_argument("--rounds", type=int, default=3)
    reader.add_argument("--without-vllm", action="store_true")
    reader.add_argument("--cross-encoder", type=Path, help=argparse.SUPPRESS)
    reader.add_argument("--port", type=int, help=argparse.SUPPRESS)
    given = reader.parse_args()
    if given.cross_encoder:
        serve_cross_encoder(given.cross_encoder, given.port)
        return
    with tempfile.TemporaryDirectory() as folder:
        save_models(Path(folder))
        with rivals_of(Path(folder), with_vllm=not given.without_vllm) as rivals:
            difference = largest_difference(rivals)
            print(f"largest difference between logits of {max(LIST_SIZES)} documents: {difference:.1e}")  # noqa: T201
            assert difference <= TOLERANCE, "the servers do not serve the same model"
            found = measure(rivals, seconds=given.seconds, rounds=given.rounds)
    rounded = {name: {what: round(value, 1) for what, value in own.items()} for name, own in found.items()}
    print(json.dumps(rounded))  # noqa: T201


if __name__ == "__main__":
    main()
