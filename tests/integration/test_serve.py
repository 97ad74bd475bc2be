"""The application on a real local Ray Serve: other people's clients, scores, keys, lost replicas."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import cohere
import httpx
import psutil
import pytest

from rerank_core.models.artefact import load_artefact
from rerank_core.records import Document, Query
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


def rerankers() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it may just have ended
            if "ServeReplica:whyrank:reranker" in " ".join(process.cmdline()):
                found.append(process)
    return found


def wait_for_rerankers(number: int, *, other_than: set[int]) -> list[psutil.Process]:
    """Wait until so many rerankers run that are not among some killed ones."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        found = [process for process in rerankers() if process.pid not in other_than]
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
