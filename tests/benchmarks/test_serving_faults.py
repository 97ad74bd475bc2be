"""What a server owes under faults, as the benchmark measures it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).with_name("serving_faults.py")
NONE = ("loss_errors", "overload_other", "overload_without_retry_after")
MOST = {
    "overload_accepted_p99_over_bound": 2.0,
    "overload_refused_p95_ms": 250.0,
    "overload_gateway_rss_growth": 0.05,
    "overload_recovered_s": 2.0,
}


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
