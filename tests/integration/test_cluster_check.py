"""The cluster check against a real Ray."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cluster.check import check_cluster

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_instance")
def test_a_running_ray_is_compared_with_the_file(tmp_path: Path) -> None:
    config = tmp_path / "cluster.yaml"
    config.write_text(
        "head_node_type: head\n"
        "available_node_types:\n"
        "  head: {resources: {CPU: 8}, node_config: {}}\n"
        "  worker: {resources: {CPU: 1000}, node_config: {}, min_workers: 2}\n"
    )
    assert check_cluster("auto", config) == ["worker: 0 of 2 nodes with at least 1000 CPU found"]


def test_no_cluster_at_the_address_is_an_error_without_traceback() -> None:
    command = [sys.executable, "-m", "cluster.check", "--address", "127.0.0.1:1"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 2
    assert "no Ray cluster answers at '127.0.0.1:1'" in result.stderr
    assert "Traceback" not in result.stderr
