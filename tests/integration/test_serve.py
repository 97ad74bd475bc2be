"""The application on a real local Ray Serve: other people's clients, scores, keys, lost replicas."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import cohere
import httpx
import psutil
import pytest
from ray import serve

from rerank_core.errors import ResourceError
from rerank_core.explanation.engine import EngineConfig
from rerank_core.models.artefact import load_artefact
from rerank_core.records import Calibration, Document, Query
from rerank_core.retrieval.bm25 import Bm25Retriever
from rerank_core.testing import grounded_answer
from serve.app import build_app, wired
from serve.args import ReplicaArgs, ServeArgs
from serve.auth import add_key
from serve.chat import ChatCost, ChatPiece, ChatTask
from serve.errors import InvalidRequestError
from serve.start import served
from tests.untrained import save_untrained_artefact

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping
    from pathlib import Path

pytestmark = pytest.mark.ray

QUERY = "sea ice thickness"
TEXTS = [f"{subject} {number}" for number in range(6) for subject in ("sea ice", "river ice", "sand dunes")]
READY_S = 60.0


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "tiny"
    save_untrained_artefact(folder, texts=[QUERY, *TEXTS], calibration=Calibration(2.0, -1.0))
    return folder


class ScriptedTextServer:
    """What stands for a vLLM engine: honest, unless a word of the prompt tells it to fail in some way."""

    async def write(
        self, prompt: str, schema: Mapping[str, Any], engine: EngineConfig, attempt: int
    ) -> AsyncIterator[str]:
        if "please crash" in prompt:
            os._exit(1)
        if "please raise" in prompt:
            raise ValueError("the engine is out of memory")
        if "please sleep" in prompt:
            await asyncio.sleep(60)
        text = "no JSON" if "please babble" in prompt else grounded_answer(prompt, schema)
        for start in range(0, len(text), 9):
            yield text[start : start + 9]

    async def converse(self, task: ChatTask, engine: EngineConfig) -> AsyncIterator[ChatPiece | ChatCost]:
        _, text = task.messages[-1]
        if "please raise" in text:
            raise RuntimeError("the engine is out of memory")
        if "please refuse" in text:
            raise InvalidRequestError("no", code="conversation_refused", remedy="reorder")
        for word in text.split():
            yield ChatPiece(f"{word} ", None)
        yield ChatPiece("", "stop")
        yield ChatCost(4, 3)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def server(
    ray_instance: None, artefact: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """The address of a server with two rerankers and a corpus, and a key to it."""
    corpus = tmp_path_factory.mktemp("corpus")
    rows = [{"doc_id": f"d{number}", "text": text} for number, text in enumerate(TEXTS)]
    (corpus / "corpus.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    keys = tmp_path_factory.mktemp("keys") / "keys.json"
    key = add_key(keys, "tests")
    port = free_port()
    small = ReplicaArgs(num_cpus=0.1)
    args = ServeArgs(
        artefact=artefact,
        keys=keys,
        max_tokens_per_batch=256,
        explanation_timeout_s=5,
        max_evals=2000,
        gateway=small,
        reranker=ReplicaArgs(num_cpus=0.1, min_replicas=2, max_replicas=2),
        attributor=small,
        corpus=corpus,
        retriever=small,
        explainer="scripted",
        chat=True,
    )
    engine = EngineConfig(model=artefact, max_model_tokens=2048, max_new_tokens=160, temperature=0.0, seed=0)
    scripted = serve.deployment(name="text_server", ray_actor_options={"num_cpus": 0.1})(ScriptedTextServer)
    application = wired(args, engine=engine, text_server=scripted.bind())
    with served(application, args, host="127.0.0.1", port=port):
        yield f"http://127.0.0.1:{port}", key


@pytest.fixture
def client(server: tuple[str, str]) -> Iterator[httpx.Client]:
    address, key = server
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=address, headers=headers, timeout=30, trust_env=False) as connected:
        yield connected


def test_scores_online_are_the_scores_offline(client: httpx.Client, artefact: Path) -> None:
    offline = load_artefact(artefact, long_documents="max_chunk")
    documents = [*TEXTS, "sea ice " * 80]
    body = {"query": QUERY, "documents": documents, "scale": "logit"}
    answer = client.post("/v1/rerank", json=body).json()
    online = {result["index"]: result["relevance_score"] for result in answer["results"]}
    expected = offline.score(Query("q", QUERY), [Document("d", text) for text in documents])
    assert [online[index] for index in range(len(documents))] == pytest.approx(expected, abs=1e-5)
    assert [result["index"] for result in answer["results"]] == sorted(online, key=lambda i: -online[i])
    assert answer["meta"]["model_digest"] == offline.digest


def test_a_query_alone_is_answered_from_the_corpus(client: httpx.Client, artefact: Path) -> None:
    documents = [Document(f"d{number}", text) for number, text in enumerate(TEXTS)]
    expected = Bm25Retriever(documents).retrieve(Query("q", "river ice"), k=7)
    scores = load_artefact(artefact).score(Query("q", "river ice"), [one.document for one in expected])
    body = {"query": "river ice", "num_candidates": 7, "scale": "logit", "explain": {"top_k": 1}}
    answer = client.post("/v1/rerank", json=body).json()
    found = {result["first_stage"]["rank"]: result for result in answer["results"]}
    assert [found[one.first_stage_rank]["document"]["text"] for one in expected] == [
        one.document.text for one in expected
    ]
    online = [found[one.first_stage_rank]["relevance_score"] for one in expected]
    assert online == pytest.approx(scores, abs=1e-5)
    assert answer["results"][0]["explanation"]["attribution"]["units"]
    nothing = client.post("/v1/rerank", json={"query": "zebra"})
    assert (nothing.status_code, nothing.json()["results"]) == (200, [])


def replicas(deployment: str) -> list[psutil.Process]:
    """Return the processes of a deployment's replicas."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it may just have ended
            if f"ServeReplica:whyrank:{deployment}" in " ".join(process.cmdline()):
                found.append(process)
    return found


def test_a_retriever_loads_no_torch(client: httpx.Client) -> None:
    def has_torch(process: psutil.Process) -> bool:
        return any("libtorch" in mapped.path for mapped in process.memory_maps())

    (retriever,) = replicas("retriever")
    assert not has_torch(retriever)
    assert all(has_torch(reranker) for reranker in replicas("reranker"))


def test_coheres_client_works_unmodified(server: tuple[str, str], client: httpx.Client) -> None:
    address, key = server
    expected = client.post("/v2/rerank", json={"query": QUERY, "documents": TEXTS, "top_n": 3}).json()
    with httpx.Client(trust_env=False) as transport:
        second = cohere.ClientV2(key, base_url=address, httpx_client=transport)
        found = second.rerank(model="tiny", query=QUERY, documents=TEXTS, top_n=3)
        first = cohere.Client(key, base_url=address, httpx_client=transport).rerank(
            model="tiny", query=QUERY, documents=[{"text": text} for text in TEXTS], return_documents=True
        )
    assert [(one.index, one.relevance_score) for one in found.results] == [
        (one["index"], one["relevance_score"]) for one in expected["results"]
    ]
    assert [one.document.text for one in first.results if one.document] == [
        TEXTS[one.index] for one in first.results
    ]


def test_litellms_client_works_unmodified(
    server: tuple[str, str], client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it asks the internet while it is loaded
    litellm = pytest.importorskip("litellm")
    address, key = server
    expected = client.post("/v1/rerank", json={"query": QUERY, "documents": TEXTS, "top_n": 3}).json()
    for provider in ("cohere", "hosted_vllm", "jina_ai"):
        found = litellm.rerank(
            model=f"{provider}/tiny", query=QUERY, documents=TEXTS, top_n=3, api_base=address, api_key=key
        )
        assert [(one["index"], one["relevance_score"]) for one in found.results] == [
            (one["index"], one["relevance_score"]) for one in expected["results"]
        ]


def test_a_wrong_key_is_refused_over_the_network(server: tuple[str, str]) -> None:
    address, _ = server
    with httpx.Client(base_url=address, trust_env=False) as stranger:
        assert stranger.get("/health").json() == {"status": "ready"}
        for path in ("/v1/models", "/metrics", "/openapi.json"):
            assert stranger.get(path).status_code == 401


def wait_for_rerankers(number: int, *, other_than: set[int]) -> list[psutil.Process]:
    """Wait until so many rerankers run that are not among some killed ones."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        found = [process for process in replicas("reranker") if process.pid not in other_than]
        if len(found) == number:
            return found
        time.sleep(0.2)
    raise AssertionError(f"{number} rerankers were not ready within {READY_S} s")


def test_a_killed_replica_costs_no_client_its_answer(client: httpx.Client) -> None:
    wait_for_rerankers(2, other_than=set())
    body = {"query": QUERY, "documents": TEXTS}
    expected = client.post("/v1/rerank", json=body).json()["results"]
    statuses: list[int] = []
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            answer = client.post("/v1/rerank", json=body)
            statuses.append(answer.status_code)
            if answer.status_code == 200:
                assert [one["index"] for one in answer.json()["results"]] == [
                    one["index"] for one in expected
                ]

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    killed: set[int] = set()
    for _ in range(2):
        time.sleep(1.0)
        victim = wait_for_rerankers(2, other_than=killed)[0]
        killed.add(victim.pid)
        os.kill(victim.pid, signal.SIGKILL)
    wait_for_rerankers(2, other_than=killed)
    time.sleep(1.0)
    ended.set()
    for thread in threads:
        thread.join()
    assert len(statuses) > 20
    assert set(statuses) == {200}


EXPLAIN = {"query": QUERY, "documents": ["sea ice of the sea", "sand"], "explain": {"top_k": 1}}


def test_words_and_a_verified_text_come_with_the_ranking(client: httpx.Client) -> None:
    answer = client.post("/v1/explain", json=EXPLAIN).json()
    assert "degraded" not in answer, answer
    explanation = answer["results"][0]["explanation"]
    attribution = explanation["attribution"]
    total = attribution["base_value"] + sum(unit["value"] for unit in attribution["units"])
    assert total + attribution["residual"] == pytest.approx(attribution["score"], abs=1e-4)
    assert explanation["text"]["is_fallback"] is False


def test_a_stream_s_events_arrive_as_they_are_known(client: httpx.Client) -> None:
    names = []
    with client.stream(
        "POST", "/v1/explain", json=EXPLAIN, headers={"Accept": "text/event-stream"}
    ) as answer:
        for line in answer.iter_lines():
            if line.startswith("event: "):
                names.append(line.removeprefix("event: "))
    assert (names[0], names[1], names[-1]) == ("ranking", "attributions", "done")
    assert {"draft", "explanation"} <= set(names)


def chat(client: httpx.Client, text: str, *, stream: bool = False) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": text}], "stream": stream}
    return client.post("/v1/chat/completions", json=body)


def test_a_conversation_comes_whole_and_as_it_is_written(client: httpx.Client) -> None:
    whole = chat(client, "sea ice floats").json()
    assert whole["model"] == "scripted"
    assert whole["choices"][0]["message"]["content"] == "sea ice floats "
    assert whole["usage"]["total_tokens"] == 7
    *chunks, done = chat(client, "sea ice floats", stream=True).text.strip().split("\n\n")
    assert done == "data: [DONE]"
    deltas = [json.loads(chunk.removeprefix("data: "))["choices"][0]["delta"] for chunk in chunks]
    assert [delta["content"] for delta in deltas] == ["sea ", "ice ", "floats ", ""]


@pytest.mark.parametrize(
    ("text", "status", "code"),
    [("please raise", 503, "no_replica"), ("please refuse", 400, "conversation_refused")],
)
@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_fails_is_told_from_one_that_refuses(
    client: httpx.Client, text: str, status: int, code: str, stream: bool
) -> None:
    answer = chat(client, text, stream=stream)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize("fault", ["raise", "sleep", "babble", "crash"])
def test_an_explainer_that_fails_costs_the_text_alone(client: httpx.Client, fault: str) -> None:
    body = {**EXPLAIN, "query": f"{QUERY} please {fault}"}
    answer = client.post("/v1/explain", json=body)
    assert answer.status_code == 200
    explanation = answer.json()["results"][0]["explanation"]
    assert explanation["attribution"]["units"]
    assert explanation["text"]["is_fallback"] is True
    if fault != "babble":  # which is a text, though not one that is kept
        assert answer.json()["degraded"] == ["explainer"]


def pending_tokens(client: httpx.Client) -> float:
    (line,) = [
        line
        for line in client.get("/metrics").text.splitlines()
        if line.startswith("whyrank_pending_attribution_tokens ")
    ]
    return float(line.split()[1])


def test_the_work_of_a_client_who_has_gone_ends_within_a_second(client: httpx.Client) -> None:
    long = " ".join(f"{word}{number}" for number in range(12) for word in ("sea", "ice", "sand"))
    body = {"query": QUERY, "documents": [long] * 10, "budget": 2000, "explain": {"top_k": 10}}
    headers = {"Accept": "text/event-stream"}
    with client.stream("POST", "/v1/attribute", json=body, headers=headers) as answer:
        lines = answer.iter_lines()
        assert next(lines) == "event: ranking"
        assert pending_tokens(client) > 0
    gone = time.monotonic()
    while pending_tokens(client) > 0:
        assert time.monotonic() - gone < 1.0
        time.sleep(0.02)
    small = {**body, "documents": ["sea"], "budget": 10, "explain": {"top_k": 1}}
    answer = client.post("/v1/attribute", json=small).json()
    assert "degraded" not in answer
    assert time.monotonic() - gone < 1.5  # the attributor's one thread was free again


def test_an_altered_artefact_is_never_served(ray_instance: None, tmp_path: Path) -> None:
    """The last test of this module: it ends the server of the others."""
    folder = tmp_path / "altered"
    save_untrained_artefact(folder, texts=[QUERY, *TEXTS])
    weights = folder / "head.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 0x40
    weights.write_bytes(raw)
    args = ServeArgs(artefact=folder, auth=False, reranker=ReplicaArgs(num_cpus=0.1))
    with pytest.raises(ResourceError, match=r"golden\.jsonl:1: the pair now scores"):  # noqa: SIM117
        with served(build_app(args), args, host="127.0.0.1", port=free_port()):
            raise AssertionError("an altered artefact was served")
