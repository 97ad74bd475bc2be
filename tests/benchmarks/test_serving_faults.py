"""What a server owes under faults, as the benchmark measures it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.benchmarks.serving_faults import first_answer

if TYPE_CHECKING:
    from collections.abc import Iterator

BENCHMARK = Path(__file__).with_name("serving_faults.py")
NONE = ("loss_errors", "overload_other", "overload_without_retry_after")
MOST = {
    "overload_accepted_p99_over_bound": 2.0,
    "overload_refused_p95_ms": 250.0,
    "overload_gateway_rss_growth": 0.05,
}
RECOVERY_S = 2.0
"""After an overload, beyond the time that the queue takes which was accepted in it."""


@contextmanager
def refusing(number: int) -> Iterator[str]:
    """Serve on loopback, and refuse so many requests before others are answered; give the address."""
    left = iter(range(number))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200 if next(left, None) is None else 429)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_request(self, *_: object) -> None:
            """Keep quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_the_first_answer_is_the_first_that_is_none_of_the_refusals() -> None:
    with refusing(3) as address:
        asked = time.perf_counter()
        answered = asyncio.run(first_answer(address, "/", after_s=0.1, within_s=20))
        assert answered >= asked + 0.1 + 3 * 0.02


def test_a_server_that_does_not_recover_is_not_waited_for_for_ever() -> None:
    with refusing(10**6) as address, pytest.raises(TimeoutError):
        asyncio.run(first_answer(address, "/", after_s=0, within_s=0.3))


@pytest.mark.bench
def test_faults_cost_no_answer_and_little_time() -> None:
    command = [sys.executable, str(BENCHMARK), "--seconds", "20"]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["loss_kills"] > 2
    for name in NONE:
        assert found[name] == 0, result.stdout
    for name, most in MOST.items():
        assert found[name] <= most, result.stdout
    assert found["overload_recovered_s"] <= found["overload_bound_s"] + RECOVERY_S, result.stdout
