"""What a request costs, as the benchmark measures it on an untrained artefact.

Of a tiny model all other figures say nothing of a real one; those are in `docs/benchmarks`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.listeners import free_port

BENCHMARK = Path(__file__).with_name("serving.py")
GATEWAY_P50_MS = 3.0
TOLD = {"gateway_p50_ms", "throughput_ratio_32", "p99_over_p50", "stream_list_ratio", "ready_s"}


@pytest.mark.bench
@pytest.mark.parametrize("proxy", [(), ("--haproxy",)], ids=["ray-proxy", "haproxy"])
def test_the_gateway_costs_little(proxy: tuple[str, ...]) -> None:
    command = [sys.executable, str(BENCHMARK), "--seconds", "4", "--port", str(free_port()), *proxy]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(result.stdout.splitlines()[-1])
    assert found.keys() >= TOLD
    assert found["gateway_p50_ms"] <= GATEWAY_P50_MS, result.stdout
