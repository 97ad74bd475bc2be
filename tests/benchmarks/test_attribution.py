"""The goals of attributions, as the benchmark measures them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).with_name("attribution.py")
LEAST = {"p1_m64": 4.0, "p1_m32": 6.0, "p1_encoder_m64": 0.95, "p2_m64": 8.0}
MAX_OVERHEAD_MS = 15.0
MAX_DIFFERENCE = 1e-4


@pytest.mark.bench
def test_the_same_values_and_the_same_error_cost_a_fraction_of_what_shap_costs() -> None:
    command = [sys.executable, str(BENCHMARK), "--rounds", "2", "--texts", "3", "--study", "6"]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(result.stdout.splitlines()[-1])
    for name, least in LEAST.items():
        assert found[name] >= least, result.stdout
    assert found["overhead_ms"] <= MAX_OVERHEAD_MS, result.stdout
    assert found["max_rel_diff"] <= MAX_DIFFERENCE, result.stdout
