"""Requests made of anything, sent to a real Ray Serve: answered, or refused by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.any_request import BODIES, PATHS, check_body, check_document_s_requests

if TYPE_CHECKING:
    import httpx

pytestmark = pytest.mark.ray

NUM_CASES = 200
"""Of all routes together."""


def test_no_request_of_the_openapi_document_breaks_the_server_or_its_schema(client: httpx.Client) -> None:
    assert 200 in check_document_s_requests(client, num_cases=NUM_CASES // 2)


@settings(max_examples=NUM_CASES // 2, suppress_health_check=list(HealthCheck))
@given(path=st.sampled_from(PATHS), body=BODIES)
def test_no_body_breaks_the_server(client: httpx.Client, path: str, body: Any) -> None:
    check_body(client, path, body)
