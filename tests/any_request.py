"""Requests made from an OpenAPI document, and bodies made of anything, with what every answer keeps to."""

from __future__ import annotations

import json
from math import ceil
from typing import TYPE_CHECKING, Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error, response_schema_conformance, status_code_conformance

if TYPE_CHECKING:
    import httpx
    from starlette.testclient import TestClient

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=9), inner, max_size=5),
    max_leaves=15,
)
FIELDS = (
    *("query", "documents", "num_candidates", "top_n", "model", "explain", "queries", "text_1", "text_2"),
    *("texts", "scale", "messages", "target", "granularity", "budget", "max_tokens", "stream"),
)
BODIES = JSON_VALUES | st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES, max_size=6)
PATHS = ("/v1/rerank", "/v1/score", "/tei/rerank", "/v1/attribute", "/v1/explain", "/v1/chat/completions")


def check_document_s_requests(client: httpx.Client | TestClient, *, num_cases: int) -> set[int]:
    """Send so many requests or more made from the server's OpenAPI document; return the answers' statuses.

    They are shared out among the operations that take a body: of the others there is one request each.

    No answer is a server error, and each has a status and a body that the document names. The client keeps
    its own key.
    """
    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    operations = [result.ok() for result in schema.get_all_operations()]  # type: ignore[union-attr]
    each = ceil(num_cases / sum(bool(operation.body) for operation in operations))
    statuses: list[int] = []
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
                sent["url"].removeprefix("http://gateway"),
                json=sent.get("json"),
                params=sent.get("params"),
                headers={
                    name: value for name, value in sent["headers"].items() if name.lower() != "authorization"
                },
            )
            statuses.append(answer.status_code)
            case.validate_response(
                answer, checks=[not_a_server_error, response_schema_conformance, status_code_conformance]
            )

        one()
    assert len(statuses) >= num_cases
    return set(statuses)


def check_body(client: httpx.Client | TestClient, path: str, body: Any) -> None:
    """Send a body of any kind: it is answered, or refused with a code and a remedy."""
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
