"""Requests made from the OpenAPI document, and bodies made of anything: answered, or refused by name."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error, response_schema_conformance, status_code_conformance

from rerank_core.records import Document
from rerank_core.retrieval.bm25 import Bm25Retriever
from serve.retriever import RetrieverService
from tests.fake_services import TEXTS, ScriptedChat

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.testclient import TestClient

NUM_CASES = int(os.environ.get("WHYRANK_FUZZ_CASES", "1000"))
"""Of all routes together; `make long` asks for ten times as many."""

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=9), inner, max_size=5),
    max_leaves=15,
)
FIELDS = (
    "query",
    "documents",
    "num_candidates",
    "top_n",
    "model",
    "explain",
    "queries",
    "text_1",
    "text_2",
    "texts",
    "scale",
    "messages",
)
BODIES = JSON_VALUES | st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES, max_size=6)
PATHS = ("/v1/rerank", "/v1/score", "/tei/rerank", "/v1/attribute", "/v1/explain", "/v1/chat/completions")


@pytest.fixture
def client(connect: Callable[..., TestClient]) -> TestClient:
    corpus = RetrieverService(Bm25Retriever([Document(str(n), text) for n, text in enumerate(TEXTS)]))
    return connect(
        retrievers=corpus,
        chat_model=ScriptedChat(),
        max_documents=50,
        requests_per_minute=10_000_000,
        max_evals=20,
    )


def test_no_request_of_the_openapi_document_breaks_the_server_or_its_schema(client: TestClient) -> None:
    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    operations = [result.ok() for result in schema.get_all_operations()]  # type: ignore[union-attr]
    each = max(NUM_CASES // len(operations) // 2, 1)
    statuses: set[int] = set()
    for operation in operations:

        @given(case=operation.as_strategy())
        @settings(
            max_examples=each,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            deadline=None,
        )
        def one(case: schemathesis.Case[Any]) -> None:
            sent = case.as_transport_kwargs(base_url="http://gateway")
            answer = client.request(
                sent["method"],
                sent["url"],
                json=sent.get("json"),
                params=sent.get("params"),
                headers=sent.get("headers"),
            )
            statuses.add(answer.status_code)
            case.validate_response(
                answer, checks=[not_a_server_error, response_schema_conformance, status_code_conformance]
            )

        one()
    assert 200 in statuses


@settings(max_examples=NUM_CASES // 2, suppress_health_check=list(HealthCheck))
@given(path=st.sampled_from(PATHS), body=BODIES)
def test_no_body_breaks_the_server(client: TestClient, path: str, body: Any) -> None:
    answer = client.post(path, json=body) if _is_json(body) else client.post(path, content=repr(body))
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        error = answer.json()["error"]
        assert error["code"]
        assert error["remedy"]


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False).encode()
    except ValueError:
        return False
    return True
