"""ray_config.yaml against Ray's own validator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("ray")
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

PATH = Path(__file__).resolve().parents[3] / "ray_config.yaml"


@pytest.fixture
def cluster() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(PATH.read_text(encoding="utf-8"))
    return config


def test_ray_accepts_the_file(cluster: dict[str, Any]) -> None:
    validate_config(prepare_config(cluster))


def test_ray_refuses_the_file_with_a_key_of_our_own(cluster: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="reranker"):
        validate_config(prepare_config(cluster | {"reranker": {}}))


def test_the_nodes_run_the_ray_that_is_pinned(cluster: dict[str, Any]) -> None:
    pins = (PATH.parent / "constraints.txt").read_text(encoding="utf-8").splitlines()
    version = next(pin.removeprefix("ray==") for pin in pins if pin.startswith("ray=="))
    images = [value for key, value in cluster["docker"].items() if key.endswith("image")]
    images += [
        kind["docker"]["worker_image"]
        for kind in cluster["available_node_types"].values()
        if "docker" in kind
    ]
    assert len(images) == 3
    assert all(image.startswith(f"rayproject/ray:{version}-") for image in images)


def test_no_script_stops_every_ray_of_a_machine(cluster: dict[str, Any]) -> None:
    commands = cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]
    assert not [command for command in commands if "ray stop" in command]
