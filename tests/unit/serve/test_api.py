"""What clients get: rankings, scores, and errors that say what to do."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from starlette.testclient import TestClient

from rerank_core.records import Calibration
from rerank_core.testing import OverlapScorer
from serve.app import build_http
from serve.args import ServeArgs
from serve.attributor import AttributorService
from serve.auth import add_key
from serve.reranker import ModelCard, Reranker, Scored, ScoringTask
from serve.routes import RERANK_PATHS, SCORE_PATHS
from tests.fake_services import build_overlap_attributor, open_overlap_deletion

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from starlette.types import Message

BODY = {"query": "sea ice", "documents": ["sand", "sea ice", "ice", "dust"]}


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


# --- rankings


@pytest.mark.parametrize("path", RERANK_PATHS)
def test_documents_come_back_best_first_and_equal_ones_in_their_order(
    connect: Callable[..., TestClient], path: str
) -> None:
    answer = connect().post(path, json=BODY).json()
    assert [result["index"] for result in answer["results"]] == [1, 2, 0, 3]
    assert [result["relevance_score"] for result in answer["results"]] == pytest.approx(
        [sigmoid(2), sigmoid(1), 0.5, 0.5]
    )
    assert answer["model"] == "tiny"
    assert answer["meta"]["scale"] == "sigmoid"
    assert answer["meta"]["model_digest"] == "ab" * 32
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0
    assert not any("document" in result for result in answer["results"])


@pytest.mark.parametrize(("top_n", "num_results"), [(None, 4), (0, 4), (1, 1), (3, 3), (9, 4)])
def test_top_n_limits_the_results(
    connect: Callable[..., TestClient], top_n: int | None, num_results: int
) -> None:
    answer = connect().post("/rerank", json={**BODY, "top_n": top_n}).json()
    assert [result["index"] for result in answer["results"]] == [1, 2, 0, 3][:num_results]


def test_documents_are_echoed_as_they_were_sent_when_asked_for(connect: Callable[..., TestClient]) -> None:
    documents = ["sand", {"text": "ice", "id": 7, "lang": "en"}, {"text": "sea", "title": "ice"}]
    body = {"query": "sea ice", "documents": documents, "return_documents": True}
    results = connect().post("/v1/rerank", json=body).json()["results"]
    assert [result["document"] for result in results] == [documents[2], documents[1], {"text": "sand"}]


def test_one_bare_text_is_one_document(connect: Callable[..., TestClient]) -> None:
    answer = connect().post("/rerank", json={"query": "ice", "documents": "ice"}).json()
    assert [result["index"] for result in answer["results"]] == [0]


def test_fields_that_other_servers_know_are_ignored(connect: Callable[..., TestClient]) -> None:
    extra = {"user": "u", "priority": 3, "max_chunks_per_doc": 5, "rank_fields": ["text"]}
    assert connect().post("/v1/rerank", json={**BODY, **extra}).status_code == 200


@pytest.mark.parametrize(
    ("asked", "scale", "best"),
    [
        ({}, "calibrated", sigmoid(3 * 2 - 1)),
        ({"scale": "sigmoid"}, "sigmoid", sigmoid(2)),
        ({"scale": "logit"}, "logit", 2.0),
        ({"raw_scores": True}, "logit", 2.0),
        ({"use_activation": False}, "logit", 2.0),
    ],
)
def test_the_scale_is_the_one_asked_for_and_always_stated(
    connect: Callable[..., TestClient], card: ModelCard, asked: dict[str, object], scale: str, best: float
) -> None:
    calibrated = replace(card, calibration=Calibration(3.0, -1.0))
    client = connect(Reranker(OverlapScorer(), calibrated, max_tokens_per_batch=512))
    answer = client.post("/rerank", json={**BODY, **asked}).json()
    assert answer["meta"]["scale"] == scale
    assert answer["results"][0]["relevance_score"] == pytest.approx(best)
    assert client.get("/v1/models").json()["data"][0]["scales"] == ["logit", "sigmoid", "calibrated"]


def test_calibrated_scores_of_an_uncalibrated_artefact_are_refused(
    connect: Callable[..., TestClient],
) -> None:
    refused = connect().post("/rerank", json={**BODY, "scale": "calibrated"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "not_calibrated")


def test_a_long_list_is_scored_in_parts_that_give_the_same_ranking(
    connect: Callable[..., TestClient], card: ModelCard
) -> None:
    documents = [f"sea {'ice ' * (n % 7 == 0)}{n}" for n in range(200)]
    whole = connect(max_tokens_per_batch=1_000_000).post(
        "/rerank", json={"query": "sea ice", "documents": documents}
    )
    tasks: list[ScoringTask] = []

    class Watched(Reranker):
        async def score(self, task: ScoringTask) -> Scored:
            tasks.append(task)
            return await super().score(task)

    client = connect(Watched(OverlapScorer(), card, max_tokens_per_batch=512), max_tokens_per_batch=512)
    parts = client.post("/rerank", json={"query": "sea ice", "documents": documents})
    assert parts.json()["results"] == whole.json()["results"]
    assert len(tasks) > 10
    assert all(task.num_tokens <= 512 for task in tasks)


def test_cut_documents_are_counted_in_the_answer(connect: Callable[..., TestClient]) -> None:
    body = {"query": "ice", "documents": ["ice " * 100, "sea ice"], "max_tokens_per_doc": 1}
    answer = connect().post("/rerank", json=body).json()
    assert answer["meta"]["warnings"] == ["2 documents were cut at the request's limit of tokens"]
    long = connect().post("/rerank", json={"query": "ice", "documents": ["ice " * 100]}).json()
    assert long["meta"]["warnings"] == ["1 documents were cut at the 48 tokens that the model reads"]


# --- scores


@pytest.mark.parametrize("path", SCORE_PATHS)
@pytest.mark.parametrize(
    "names", [("queries", "documents"), ("queries", "items"), ("text_1", "text_2"), ("data_1", "data_2")]
)
def test_pairs_are_scored_in_all_the_ways_that_they_are_spelled(
    connect: Callable[..., TestClient], path: str, names: tuple[str, str]
) -> None:
    client = connect()
    for left, right, logits in (
        ("sea ice", "sea ice", [2]),
        ("sea ice", ["sand", "sea"], [0, 1]),
        (["sea ice"], ["sand", "sea"], [0, 1]),
        (["sea", "ice"], ["sea", "sea"], [1, 0]),
    ):
        body = {names[0]: left, names[1]: right, "raw_scores": True}
        answer = client.post(path, json=body).json()
        assert [one["score"] for one in answer["data"]] == logits
        assert [one["index"] for one in answer["data"]] == list(range(len(logits)))


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "missing_pairs"),
        ({"queries": "a"}, "missing_pairs"),
        ({"queries": "a", "documents": ["b"], "text_1": "a", "text_2": ["b"]}, "ambiguous_pairs"),
        ({"queries": ["a", "b"], "documents": ["c", "d", "e"]}, "unequal_numbers"),
        ({"queries": ["a", "b"], "documents": []}, "unequal_numbers"),
        ({"queries": [], "documents": []}, "unequal_numbers"),
        ({"queries": "a", "documents": []}, "unequal_numbers"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(
    connect: Callable[..., TestClient], body: dict[str, object], code: str
) -> None:
    refused = connect().post("/v1/score", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, code)


def test_text_embeddings_inference_s_clients_get_a_bare_list(connect: Callable[..., TestClient]) -> None:
    client = connect()
    body = {"query": "sea ice", "texts": ["sand", "sea ice"], "raw_scores": True, "return_text": True}
    assert client.post("/tei/rerank", json=body).json() == [
        {"index": 1, "score": 2.0, "text": "sea ice"},
        {"index": 0, "score": 0.0, "text": "sand"},
    ]
    plain = client.post("/tei/rerank", json={"query": "sea", "texts": ["sea"]}).json()
    assert plain == [{"index": 0, "score": pytest.approx(sigmoid(1))}]


# --- refusals


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"query": " ", "documents": ["a"]}, 400, "empty_query"),
        ({"query": "a", "documents": []}, 400, "no_documents"),
        ({"query": "a", "documents": ["b"] * 1001}, 413, "too_many_documents"),
        ({"query": "a", "documents": ["b"], "model": "gpt"}, 404, "model_not_found"),
        ({"query": 1, "documents": ["b"]}, 422, "string_type"),
        ({"query": "a"}, 400, "no_corpus"),
        ({"documents": ["b"]}, 422, "missing"),
        ({"query": "a", "documents": [{"title": "b"}]}, 422, "string_type"),
        ({"query": "a", "documents": ["b"], "top_n": -1}, 422, "greater_than_equal"),
        ([], 422, "model_attributes_type"),
    ],
)
def test_a_wrong_request_is_refused_with_a_reason_and_a_remedy(
    connect: Callable[..., TestClient], body: object, status: int, code: str
) -> None:
    refused = connect().post("/v1/rerank", json=body)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (status, code)
    assert error["message"]
    assert error["remedy"]


def test_a_body_that_is_not_json_is_refused(connect: Callable[..., TestClient]) -> None:
    client = connect()
    for raw, code in ((b"{", "not_json"), (b'{"query": "a", "query": "b"}', "duplicate_key")):
        refused = client.post("/rerank", content=raw, headers={"Content-Type": "application/json"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, code)


def test_unknown_paths_and_methods_are_answered_in_the_same_shape(connect: Callable[..., TestClient]) -> None:
    client = connect()
    assert client.get("/nope").json()["error"]["code"] == "http_404"
    assert client.get("/rerank").json()["error"]["code"] == "http_405"


class Broken:
    """A reranker that answers as it is told."""

    def __init__(self, card: ModelCard, answers: list[Scored | Exception]) -> None:
        self._card = card
        self._answers = answers
        self.next_card = card

    async def describe(self) -> ModelCard:
        card, self._card = self._card, self.next_card
        return card

    async def score(self, task: ScoringTask) -> Scored:
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_never_leaves_the_server(
    connect: Callable[..., TestClient], card: ModelCard, score: float
) -> None:
    client = connect(Broken(card, [Scored((score, 0.0), card)]))
    refused = client.post("/rerank", json={"query": "a", "documents": ["b", "c"]})
    assert (refused.status_code, refused.json()["error"]["code"]) == (500, "score_not_finite")


def test_a_fault_of_the_server_is_answered_without_its_details(
    connect: Callable[..., TestClient], card: ModelCard
) -> None:
    client = connect(Broken(card, [RuntimeError("secret path")]))
    refused = client.post("/rerank", json={"query": "a", "documents": ["b"]})
    assert (refused.status_code, refused.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in refused.text


LONG_BODY = {"query": "a", "documents": ["b " * 30, "c " * 30]}
"""Two parts where a batch has 64 tokens."""


@pytest.fixture
def new_card(card: ModelCard) -> ModelCard:
    return replace(card, digest="cd" * 32, calibration=Calibration(3.0, 0.0))


def test_an_answer_of_two_models_is_asked_for_again_of_one_replica(
    connect: Callable[..., TestClient], card: ModelCard, new_card: ModelCard
) -> None:
    mixed = [Scored((0.0,), card), Scored((0.0,), new_card)]
    replaced = Broken(card, [*mixed, Scored((0.0, 1.0), new_card)])
    answer = connect(replaced, max_tokens_per_batch=64).post("/rerank", json=LONG_BODY).json()
    assert answer["meta"]["model_digest"] == new_card.digest
    assert answer["meta"]["scale"] == "calibrated"  # the new card's
    assert answer["results"][0]["relevance_score"] == pytest.approx(sigmoid(3))


def test_no_answer_mixes_two_models(
    connect: Callable[..., TestClient], card: ModelCard, new_card: ModelCard
) -> None:
    mixed = [Scored((0.0,), card), Scored((0.0,), new_card)]
    body = {"queries": ["a", "b"], "documents": ["c", "d"]}  # two lists, which two replicas may score
    refused = connect(Broken(card, [*mixed, *mixed])).post("/v1/score", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_changing")
    assert refused.headers["Retry-After"] == "2"


def test_texts_are_not_cut_by_one_model_s_tokenizer_and_scored_by_another_s(
    connect: Callable[..., TestClient], card: ModelCard, new_card: ModelCard
) -> None:
    other = replace(new_card, tokenizer_digest="ef" * 32)
    reranker = Broken(card, [Scored((0.0,), one) for one in (other, other, other, card)])
    reranker.next_card = other
    client = connect(reranker)
    body = {"query": "a", "documents": ["b"]}
    cut = {**body, "max_tokens_per_doc": 8}
    for _ in range(2):  # scored twice in vain; then, as the new model is known, not at all
        refused = client.post("/rerank", json=cut)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_changing")
    answer = client.post("/rerank", json=body)  # nothing is cut
    assert (answer.status_code, answer.json()["meta"]["model_digest"]) == (200, other.digest)
    reranker.next_card = card
    assert client.post("/rerank", json=cut).status_code == 503
    answer = client.post("/rerank", json=cut)  # an old replica is who takes it
    assert (answer.status_code, answer.json()["meta"]["model_digest"]) == (200, card.digest)


def test_an_answer_of_another_model_than_the_remembered_one_is_told_as_that_model_s(
    connect: Callable[..., TestClient], card: ModelCard, new_card: ModelCard
) -> None:
    replicas = Broken(card, [Scored((1.0,), one) for one in (card, new_card, card)])
    client = connect(replicas)
    answers = [client.post("/rerank", json={"query": "a", "documents": ["b"]}).json() for _ in range(3)]
    assert [one["meta"]["model_digest"] for one in answers] == [card.digest, new_card.digest, card.digest]
    assert [one["meta"]["scale"] for one in answers] == ["sigmoid", "calibrated", "sigmoid"]


def test_texts_that_another_model_would_have_read_otherwise_are_scored_again(
    connect: Callable[..., TestClient], card: ModelCard, new_card: ModelCard
) -> None:
    short = replace(new_card, max_query_length=2)
    replicas = Broken(card, [Scored((1.0,), short), Scored((2.0,), short)])
    body = {"query": "sea " * 12, "documents": ["ice " * 30], "truncate_prompt_tokens": 46, "scale": "logit"}
    answer = connect(replicas).post("/rerank", json=body).json()
    assert answer["results"][0]["relevance_score"] == 2.0


# --- the guard


OPEN = {"/health"}
"""What is answered without a key; the page and its files come with the page."""


def test_every_route_but_the_open_ones_asks_for_a_key(
    connect: Callable[..., TestClient], tmp_path: Path
) -> None:
    keys = tmp_path / "keys.json"
    key = add_key(keys, "a")
    client = connect(keys=keys)
    with_key = {"Authorization": f"Bearer {key}"}
    document = client.get("/openapi.json", headers=with_key).json()
    routes = [(path, method) for path, methods in document["paths"].items() for method in methods]
    assert len(routes) >= 9
    for path, method in [*routes, ("/openapi.json", "get"), ("/nope", "get")]:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {key}"}):
            answer = client.request(method, path, headers=headers)
            if path in OPEN:
                assert answer.status_code == 200
            else:
                assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert client.get(f"/v1/models?key={key}").status_code == 401  # not in an address, which is logged
    assert client.post("/rerank", json=BODY, headers=with_key).status_code == 200


def test_a_body_that_is_too_large_is_refused_before_it_is_read(connect: Callable[..., TestClient]) -> None:
    client = connect(max_body_bytes=2000)
    stated = client.post("/rerank", content=b"x" * 2001)
    assert (stated.status_code, stated.json()["error"]["code"]) == (413, "body_too_large")


def test_a_body_without_end_is_refused_once_it_is_too_large(artefact: Path, card: ModelCard) -> None:
    args = ServeArgs(artefact=artefact, auth=False, max_body_bytes=2000)
    reranker = Reranker(OverlapScorer(), card, max_tokens_per_batch=512)
    attributors = AttributorService(build_overlap_attributor, open_overlap_deletion, digest=card.digest)
    app = build_http(args, reranker=reranker, attributors=attributors)
    received: list[int] = []
    sent: list[Message] = []

    async def receive() -> Message:
        received.append(1000)
        return {"type": "http.request", "body": b"x" * 1000, "more_body": True}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/rerank", "headers": []}

    async def run() -> None:
        await app(scope, receive, send)

    asyncio.run(run())
    assert sent[0]["status"] == 413
    assert sum(received) == 3000


@pytest.mark.parametrize("path", ["/health", "/", "/page/page.js", "/favicon.ico"])
def test_open_paths_read_no_body(artefact: Path, card: ModelCard, path: str) -> None:
    args = ServeArgs(artefact=artefact, auth=False)
    reranker = Reranker(OverlapScorer(), card, max_tokens_per_batch=512)
    attributors = AttributorService(build_overlap_attributor, open_overlap_deletion, digest=card.digest)
    app = build_http(args, reranker=reranker, attributors=attributors)
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.sleep(30)
        raise AssertionError("nobody reads so long")

    async def send(message: Message) -> None:
        sent.append(message)

    async def run() -> None:
        async with asyncio.timeout(5):
            await app(
                {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": []},
                receive,
                send,
            )

    asyncio.run(run())
    assert sent[0]["status"] in (200, 404)


@pytest.mark.parametrize(
    ("host", "status"), [("127.0.0.1", 200), ("::1", 200), ("10.0.0.7", 401), ("a-name", 401), ("", 401)]
)
def test_without_keys_other_machines_are_refused(
    artefact: Path, card: ModelCard, host: str, status: int
) -> None:
    reranker = Reranker(OverlapScorer(), card, max_tokens_per_batch=512)
    attributors = AttributorService(build_overlap_attributor, open_overlap_deletion, digest=card.digest)
    app = build_http(ServeArgs(artefact=artefact, auth=False), reranker=reranker, attributors=attributors)
    with TestClient(app, client=(host, 50_000)) as client:
        assert client.get("/version").status_code == status


def test_a_fault_of_the_guard_itself_is_answered_too(
    connect: Callable[..., TestClient], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "keys.json"
    add_key(keys, "a")
    client = connect(keys=keys)
    monkeypatch.setattr("serve.auth.hmac.compare_digest", None)  # as where a library is broken
    refused = client.get("/version", headers={"Authorization": "Bearer x"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (500, "internal_error")


def test_a_request_with_very_many_values_is_refused_before_it_is_looked_at(
    connect: Callable[..., TestClient],
) -> None:
    refused = connect().post("/rerank", json={"query": "a", "documents": [1] * 50_000})
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "too_many_values")


def test_pairs_are_as_many_as_documents_may_be(connect: Callable[..., TestClient]) -> None:
    body = {"queries": ["a"] * 30, "documents": ["b"] * 30}
    refused = connect(max_documents=20).post("/v1/score", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "too_many_documents")


def test_a_remembered_model_that_was_not_calibrated_is_looked_up_again(
    connect: Callable[..., TestClient], card: ModelCard
) -> None:
    new = replace(card, digest="cd" * 32, calibration=Calibration(3.0, 0.0))
    served = Broken(card, [Scored((0.0,), card), Scored((1.0,), new)])
    served.next_card = new
    client = connect(served)
    body = {"query": "a", "documents": ["b"]}
    assert client.post("/rerank", json=body).json()["meta"]["scale"] == "sigmoid"
    answer = client.post("/rerank", json={**body, "scale": "calibrated"}).json()
    assert answer["results"][0]["relevance_score"] == pytest.approx(sigmoid(3))


def test_an_answer_that_takes_too_long_is_refused_in_time(
    connect: Callable[..., TestClient], card: ModelCard
) -> None:
    class Slow(Broken):
        async def score(self, task: ScoringTask) -> Scored:
            await asyncio.sleep(30)
            raise AssertionError("nobody waits so long")

    limits = {"answer_timeout_s": 0.05, "attribution_timeout_s": 0.01, "explanation_timeout_s": 0.01}
    refused = connect(Slow(card, []), **limits).post("/rerank", json=BODY)
    assert (refused.status_code, refused.json()["error"]["code"]) == (408, "timeout")


def test_a_key_that_sends_too_much_is_told_when_to_come_back(connect: Callable[..., TestClient]) -> None:
    client = connect(requests_per_minute=2)
    assert [client.get("/version").status_code for _ in range(3)] == [200, 200, 429]
    assert int(client.get("/version").headers["Retry-After"]) > 0


def test_metrics_have_a_label_per_route_and_hold_no_text(connect: Callable[..., TestClient]) -> None:
    client = connect()
    client.post("/rerank", json={"query": "confidential", "documents": ["matter"]})
    for number in range(20):
        client.get(f"/made-up-{number}")
    told = client.get("/metrics").text
    assert 'whyrank_requests_total{route="/rerank",status="200"} 1.0' in told
    assert 'whyrank_requests_total{route="other",status="404"} 20.0' in told
    assert "made-up" not in told
    assert "confidential" not in told


def test_the_openapi_document_has_examples_and_every_error(connect: Callable[..., TestClient]) -> None:
    client = connect()
    document = client.get("/openapi.json").json()
    for path in (*RERANK_PATHS, *SCORE_PATHS, "/tei/rerank", "/v1/attribute", "/v1/explain"):
        operation = document["paths"][path]["post"]
        examples = operation["requestBody"]["content"]["application/json"]["examples"]
        assert examples
        for example in examples.values():
            assert client.post(path, json=example["value"]).status_code == 200
        assert {"200", "400", "401", "404", "408", "413", "422", "429", "500", "503"} <= {
            *operation["responses"]
        }
        assert operation["summary"]
    assert json.dumps(document)
