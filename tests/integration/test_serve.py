"""The application on a real local Ray Serve: other people's clients, scores, keys, lost replicas."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import cohere
import httpx
import psutil
import pytest

from rerank_core.attribution.deletion import members_of
from rerank_core.attribution.masking import TokenMasker
from rerank_core.models.artefact import load_artefact
from rerank_core.records import Document, Query
from rerank_core.retrieval.bm25 import Bm25Retriever
from tests.scripted_serve import QUERY, TEXTS

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.ray

READY_S = 60.0


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


def test_rank_flips_are_what_the_model_says_of_the_text_without_the_words(
    client: httpx.Client, artefact: Path
) -> None:
    offline = load_artefact(artefact, long_documents="max_chunk")
    settings = {"target": "rank", "granularity": "word", "budget": 200, "scale": "logit"}
    body = {"query": QUERY, "documents": TEXTS, "explain": {"top_k": 10}, **settings}
    answer = client.post("/v1/attribute", json=body).json()
    assert "degraded" not in answer, answer
    scores = [result["relevance_score"] for result in answer["results"]]
    flips = 0
    for rank, result in enumerate(answer["results"][:10], start=1):
        flip, units = (
            result["explanation"]["rank_flip"],
            result["explanation"]["attribution"]["units"],
        )
        assert flip["rank"] == rank
        if not flip["units"]:
            continue
        flips += 1
        spans = [(unit["start"], unit["end"]) for unit in units]
        masked = TokenMasker(offline.tokenizer).masked(TEXTS[result["index"]], spans)
        left = masked.left(members_of([n for n, unit in enumerate(units) if unit not in flip["units"]]))
        assert flip["score"] == pytest.approx(
            offline.score(Query("q", QUERY), [Document("d", left)])[0], abs=1e-4
        )
        assert flip["flipped_rank"] > rank
        assert flip["score"] < scores[rank]  # that of the next result
    assert flips > 0


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


def cpu_s(process: psutil.Process) -> float:
    """Return the seconds that a process has computed."""
    times = process.cpu_times()
    return float(times.user + times.system)


def test_the_work_of_clients_who_have_gone_ends_within_a_second(client: httpx.Client) -> None:
    """Four leave at once when the attributor has begun with what would take it many seconds."""
    (attributor,) = replicas("attributor")
    words = " ".join(f"{word}{number}" for number in range(6) for word in ("sea", "ice", "sand"))
    documents = [f"{words} {number}" for number in range(20)]
    body = {"query": QUERY, "documents": documents, "budget": 2000, "explain": {"top_k": 20}}
    headers = {"Accept": "text/event-stream"}
    before, began = cpu_s(attributor), time.monotonic()
    with ExitStack() as streams:
        lines = []  # all kept: a client whose iterator over the lines is dropped has gone
        for _ in range(4):
            answer = streams.enter_context(client.stream("POST", "/v1/attribute", json=body, headers=headers))
            lines.append(answer.iter_lines())
            assert next(lines[-1]) == "event: ranking"
        while cpu_s(attributor) - before < 0.5:
            assert time.monotonic() - began < READY_S
            time.sleep(0.02)
        assert pending_tokens(client) > 0
    gone = time.monotonic()
    while pending_tokens(client) > 0:
        assert time.monotonic() - gone < 1.0
        time.sleep(0.02)
    time.sleep(max(gone + 1.0 - time.monotonic(), 0))
    before = cpu_s(attributor)
    time.sleep(2.0)
    assert cpu_s(attributor) - before < 0.1
    small = {**body, "documents": ["sea"], "budget": 10, "explain": {"top_k": 1}}
    assert "degraded" not in client.post("/v1/attribute", json=small).json()
