"""Requests made from the OpenAPI document, and bodies made of anything: answered, or refused by name."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rerank_core.records import Document
from rerank_core.retrieval.bm25 import Bm25Retriever
from serve.retriever import RetrieverService
from tests.any_request import BODIES, PATHS, check_body, check_document_s_requests
from tests.fake_services import TEXTS, ScriptedChat

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.testclient import TestClient

NUM_CASES = int(os.environ.get("WHYRANK_FUZZ_CASES", "1000"))
"""Of all routes together; `make long` asks for ten times as many."""


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
    assert 200 in check_document_s_requests(client, num_cases=NUM_CASES // 2)


@settings(max_examples=NUM_CASES // 2, suppress_health_check=list(HealthCheck))
@given(path=st.sampled_from(PATHS), body=BODIES)
def test_no_body_breaks_the_server(client: TestClient, path: str, body: Any) -> None:
    check_body(client, path, body)
