"""Requests without documents: the corpus gives them candidates, which are ranked as any list."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from ray.exceptions import RayActorError

from rerank_core.errors import DataError
from rerank_core.records import Candidate, Document, Query
from rerank_core.retrieval.bm25 import Bm25Retriever
from serve.args import ServeCommand
from serve.first_stage import MAX_QUERY_CHARS
from serve.handles import RetrieverHandle
from serve.retriever import RetrieverService
from serve.start import run_serve

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from pathlib import Path

    from starlette.testclient import TestClient

LONG = "the sea and its ice, seen from far above by radar through clouds and night"
DOCUMENTS = (
    Document("dust", "dust in the air"),
    Document("lakes", "ice on lakes", title="Lakes", url="https://example.org/lakes"),
    Document("sea", LONG),
    Document("sand", "sea sand, sea sand"),
)
STREAM = {"Accept": "text/event-stream"}


@pytest.fixture
def retrievers() -> RetrieverService:
    return RetrieverService(Bm25Retriever(DOCUMENTS))


@pytest.fixture
def client(connect: Callable[..., TestClient], retrievers: RetrieverService) -> TestClient:
    return connect(retrievers=retrievers)


def test_candidates_are_reranked_and_told_with_the_place_that_the_first_stage_gave_them(
    client: TestClient,
) -> None:
    first = Bm25Retriever(DOCUMENTS).retrieve(Query("", "sea ice"), k=3)
    assert [candidate.document.doc_id for candidate in first] == ["sand", "sea", "lakes"]
    results = client.post("/v1/rerank", json={"query": "sea ice"}).json()["results"]
    assert [result["document"]["id"] for result in results] == ["sea", "sand", "lakes"]  # two words, one, one
    assert [result["index"] for result in results] == [1, 0, 2]
    for result in results:
        candidate = first[result["index"]]
        assert result["first_stage"] == {
            "rank": candidate.first_stage_rank,
            "score": pytest.approx(candidate.first_stage_score),
        }
    assert results[2]["document"] == {
        "id": "lakes",
        "title": "Lakes",
        "text": "ice on lakes",
        "url": "https://example.org/lakes",
    }
    assert results[0]["document"] == {"id": "sea", "text": LONG}


def test_scores_are_those_of_the_same_documents_when_they_are_sent(client: TestClient) -> None:
    found = client.post("/v1/rerank", json={"query": "sea ice", "scale": "logit"}).json()
    by_place = sorted(found["results"], key=lambda result: result["index"])
    sent = [result["document"] for result in by_place]
    again = client.post("/v1/rerank", json={"query": "sea ice", "documents": sent, "scale": "logit"}).json()
    for one, other in zip(found["results"], again["results"], strict=True):
        assert (one["index"], one["relevance_score"]) == (other["index"], other["relevance_score"])
    assert found["usage"] == again["usage"]
    assert not any("first_stage" in result for result in again["results"])


@pytest.mark.parametrize(("num_candidates", "names"), [(1, ["sand"]), (2, ["sea", "sand"]), (None, 3)])
def test_as_many_candidates_are_ranked_as_were_asked_for(
    client: TestClient, num_candidates: int | None, names: list[str] | int
) -> None:
    answer = client.post("/rerank", json={"query": "sea ice", "num_candidates": num_candidates}).json()
    found = [result["document"]["id"] for result in answer["results"]]
    assert (len(found) if isinstance(names, int) else found) == names


def test_top_n_limits_what_is_told_of_the_candidates(client: TestClient) -> None:
    answer = client.post("/rerank", json={"query": "sea ice", "top_n": 1}).json()
    assert [result["document"]["id"] for result in answer["results"]] == ["sea"]


@pytest.mark.parametrize("path", ["/v1/rerank", "/v1/attribute", "/v1/explain"])
def test_a_query_that_no_document_shares_a_word_with_has_no_results_and_says_so(
    client: TestClient, path: str
) -> None:
    for query in ("zebra", "the", "!?"):
        answer = client.post(path, json={"query": query, "explain": {"text": True}})
        assert answer.status_code == 200
        assert answer.json()["results"] == []
        assert answer.json()["meta"]["warnings"] == ["no document of the corpus shares a word with the query"]
        assert answer.json()["meta"]["model_digest"] == "ab" * 32
        assert "degraded" not in answer.json()


def test_the_words_of_a_candidate_lie_in_the_document_that_its_result_holds(client: TestClient) -> None:
    body = {"query": "lakes", "explain": {"top_k": 1, "contrast": True}}
    (result,) = client.post("/v1/attribute", json=body).json()["results"]
    units = result["explanation"]["attribution"]["units"]
    assert {unit["field"] for unit in units} == {"title", "text"}
    for unit in units:
        assert result["document"][unit["field"]][unit["start"] : unit["end"]] == unit["text"]


def test_a_margin_is_over_a_place_of_the_first_stage_s_list(client: TestClient) -> None:
    body = {"query": "sea ice", "target": "margin:2", "explain": {"top_k": 1}}
    (result,) = client.post("/v1/attribute", json=body).json()["results"][:1]
    assert result["document"]["id"] == "sea"
    assert result["explanation"]["above"]["index"] == 2
    refused = client.post("/v1/attribute", json={**body, "target": "margin:3"})  # three documents were found
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "no_such_document")


def test_a_margin_where_nothing_was_found_is_no_mistake(client: TestClient) -> None:
    answer = client.post("/v1/attribute", json={"query": "zebra", "target": "margin:0"})
    assert (answer.status_code, answer.json()["results"]) == (200, [])
    assert answer.json()["meta"]["warnings"] == ["no document of the corpus shares a word with the query"]


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"budget": 301}, "budget_too_large"),
        ({"target": "rank", "granularity": "field"}, "rank_flips_of_words"),
    ],
)
def test_what_cannot_be_explained_is_refused_before_anything_is_retrieved(
    connect: Callable[..., TestClient], settings: dict[str, Any], code: str
) -> None:
    handle: Any = ScriptedHandle([])
    client = connect(retrievers=RetrieverHandle(handle))
    refused = client.post("/v1/attribute", json={"query": "sea ice", **settings})
    assert refused.json()["error"]["code"] == code


def test_a_stream_begins_with_the_candidates_that_were_ranked(client: TestClient) -> None:
    told = client.post("/v1/explain", json={"query": "sea ice"}, headers=STREAM).text
    name, data = told.split("\n\n")[0].split("\n")
    assert name == "event: ranking"
    results = json.loads(data.removeprefix("data: "))["results"]
    assert [result["document"]["id"] for result in results] == ["sea", "sand", "lakes"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"query": " "}, 400, "empty_query"),
        ({"query": "sea", "documents": []}, 400, "no_documents"),  # a list that came out empty is no search
        ({"query": "sea", "num_candidates": 0}, 422, "greater_than_equal"),
        ({"query": "sea", "num_candidates": 1001}, 413, "too_many_candidates"),
        ({"query": "s" * (MAX_QUERY_CHARS + 1)}, 413, "query_too_long"),
    ],
)
def test_a_search_that_cannot_be_meant_is_refused(
    client: TestClient, body: dict[str, Any], status: int, code: str
) -> None:
    refused = client.post("/v1/rerank", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (status, code)
    assert refused.json()["error"]["remedy"]


def test_the_number_of_candidates_is_bounded_by_that_of_documents(
    connect: Callable[..., TestClient], retrievers: RetrieverService
) -> None:
    client = connect(retrievers=retrievers, max_documents=2)
    assert len(client.post("/rerank", json={"query": "sea ice"}).json()["results"]) == 2
    refused = client.post("/rerank", json={"query": "sea ice", "num_candidates": 3})
    assert (refused.status_code, refused.json()["error"]["param"]) == (413, "num_candidates")


def test_candidates_are_no_longer_together_than_documents_that_could_be_sent(
    connect: Callable[..., TestClient],
) -> None:
    lengths = {"a": 600, "b": 400, "c": 24, "d": 1}
    found = tuple(
        Candidate(Document(name, "ice ".ljust(length, ".")), rank, 9.0 - rank)
        for rank, (name, length) in enumerate(lengths.items(), start=1)
    )
    handle: Any = ScriptedHandle([found, found[:3], found[3:] + found])
    client = connect(retrievers=RetrieverHandle(handle), max_body_bytes=1024)
    cut, whole, shifted = (client.post("/rerank", json={"query": "ice"}).json() for _ in range(3))
    for answer, names in ((cut, "abc"), (whole, "abc"), (shifted, "dab")):
        by_place = sorted(answer["results"], key=lambda result: result["index"])
        assert "".join(result["document"]["id"] for result in by_place) == names
    assert not any("candidates" in warning for warning in whole["meta"]["warnings"])
    (warning, *_) = cut["meta"]["warnings"]
    assert "the first 3 of 4 candidates" in warning
    assert "1024 characters" in warning


def test_the_models_say_whether_a_corpus_is_served(
    connect: Callable[..., TestClient], client: TestClient
) -> None:
    assert client.get("/v1/models").json()["data"][0]["has_corpus"] is True
    assert connect().get("/v1/models").json()["data"][0]["has_corpus"] is False


def test_a_slow_search_leaves_the_replica_to_answer_others() -> None:
    ended = threading.Event()

    class Slow:
        def retrieve(self, query: Query, *, k: int) -> list[Candidate]:
            ended.wait(5)
            return []

    async def both() -> float:
        service = RetrieverService(Slow())
        search = asyncio.create_task(service.retrieve(Query("", "sea"), k=1))
        started = time.monotonic()
        await asyncio.sleep(0.01)
        waited = time.monotonic() - started
        ended.set()
        assert await search == ()
        return waited

    assert asyncio.run(both()) < 1.0


def test_a_corpus_with_a_wrong_row_is_refused_before_anything_starts(artefact: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text('{"doc_id": "a", "text": "ice"}\n{"doc_id": "b"}\n')
    with pytest.raises(DataError, match=r"corpus\.jsonl, row 2: column 'text' is missing"):
        run_serve(ServeCommand(artefact=artefact, auth=False, corpus=tmp_path))


# --- behind a handle


class ScriptedHandle:
    """What stands for Ray Serve's handle: each call fails or answers as it is told."""

    def __init__(self, answers: Sequence[Exception | tuple[Candidate, ...]]) -> None:
        self._answers = list(answers)
        self.retrieve = self

    def remote(self, query: Query, *, k: int) -> Coroutine[Any, Any, tuple[Candidate, ...]]:
        async def answer() -> tuple[Candidate, ...]:
            told = self._answers.pop(0)
            if isinstance(told, Exception):
                raise told
            return told[:k]

        return answer()


FOUND = (Candidate(DOCUMENTS[2], 1, 1.5), Candidate(DOCUMENTS[1], 2, 1.0))


def test_a_search_that_its_replica_died_under_is_made_once_more(connect: Callable[..., TestClient]) -> None:
    handle: Any = ScriptedHandle([RayActorError(), FOUND])
    client = connect(retrievers=RetrieverHandle(handle))
    answer = client.post("/rerank", json={"query": "sea ice", "num_candidates": 1}).json()
    assert [result["document"]["id"] for result in answer["results"]] == ["sea"]


def test_a_retriever_that_fails_is_answered_with_when_to_come_back(
    connect: Callable[..., TestClient],
) -> None:
    handle: Any = ScriptedHandle([RayActorError(), RayActorError()])
    client = connect(retrievers=RetrieverHandle(handle))
    refused = client.post("/rerank", json={"query": "sea ice"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_replica")
    assert refused.headers["Retry-After"] == "2"
    body = {"query": "sea ice", "documents": ["sea"]}
    assert client.post("/rerank", json=body).status_code == 200  # who brings documents needs no retriever
