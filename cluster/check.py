"""Compare a running Ray cluster with ray_config.yaml.

    python -m cluster.check --address 10.0.0.5:6379

Exit code 0: every node that the file asks for is there; 1: some are missing, one line each; 2: not checked.
"""

from __future__ import annotations

import logging
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rerank_core.errors import ConfigError, ResourceError, WhyrankError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HEAD_MARK = "node:__internal_head__"
"""The resource by which Ray marks the head node."""

CONNECT_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class NodeType:
    """So many nodes that each have at least these resources."""

    name: str
    num_nodes: int
    resources: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckSettings:
    """Say which nodes of the cluster file a running cluster lacks."""

    address: str = "auto"
    """Address of the cluster (host:port); `auto` is the one that this machine belongs to."""
    config: Path = Path("ray_config.yaml")
    """The cluster file."""


def check_cluster(address: str, config: Path) -> list[str]:
    """Return one line per node type of which the cluster has too few nodes; empty when nothing is missing.

    Raises:
        ConfigError: the cluster file is missing or broken.
        ResourceError: no cluster answers at the address.
    """
    wanted = load_node_types(config)
    return missing_nodes(wanted, running_nodes(address))


def load_node_types(config: Path) -> list[NodeType]:
    """Return what a cluster file asks for at least: its head once, every other type `min_workers` times.

    Raises:
        ConfigError: the file is missing or broken; names file and key.
    """
    cluster = _load_yaml(config)
    for key in ("head_node_type", "available_node_types"):
        if key not in cluster:
            raise ConfigError(f"{config} lacks the key {key!r}; it is no cluster file of `ray up`")
    head, types = cluster["head_node_type"], cluster["available_node_types"]
    if head not in types:
        raise ConfigError(f"{config}: head_node_type {head!r} is not one of available_node_types")
    for name, node_type in types.items():
        if "resources" not in node_type:
            raise ConfigError(
                f"{config}: node type {name!r} lacks the key 'resources', so there is nothing to compare"
            )
    return [
        NodeType(
            name,
            num_nodes=1 if name == head else node_type.get("min_workers", 0),
            resources={**node_type["resources"], HEAD_MARK: 1} if name == head else node_type["resources"],
        )
        for name, node_type in types.items()
    ]


def _load_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} is missing; name the cluster file with --config") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds no keys; it is no cluster file of `ray up`")
    return value


def running_nodes(address: str) -> list[dict[str, Any]]:
    """Return the cluster's nodes as Ray describes them; a connection that this process has already is used.

    Raises:
        ResourceError: no cluster answers at the address.
    """
    import ray

    if ray.is_initialized():
        return list(ray.nodes())
    try:
        _require_listener(address)
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except OSError as error:
        raise ResourceError(
            f"no Ray cluster answers at {address!r} ({error}); start one with `ray up ray_config.yaml`"
        ) from error
    try:
        return list(ray.nodes())
    finally:
        ray.shutdown()


def _require_listener(address: str) -> None:
    """Raise OSError where nothing listens: Ray itself would go on trying for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()


def missing_nodes(wanted: Sequence[NodeType], nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return one line per node type of which there are too few among `nodes` (as `ray.nodes()` gives them).

    A node stands for one type only and needs at least that type's resources; dead nodes stand for none. The
    types that ask for most choose first, each the smallest nodes that will do, so that no node with a GPU is
    spent on a type that asks for CPUs alone.
    """
    free = sorted((node["Resources"] for node in nodes if node["Alive"]), key=_size)
    problems = {}
    for node_type in sorted(wanted, key=lambda node_type: _size(node_type.resources), reverse=True):
        taken = [i for i, node in enumerate(free) if _covers(node, node_type.resources)][
            : node_type.num_nodes
        ]
        free = [node for i, node in enumerate(free) if i not in taken]
        if len(taken) < node_type.num_nodes:
            problems[node_type.name] = _problem(node_type, num_found=len(taken))
    return [problems[node_type.name] for node_type in wanted if node_type.name in problems]


def _size(resources: Mapping[str, float]) -> tuple[bool, float, float]:
    return HEAD_MARK in resources, resources.get("GPU", 0), resources.get("CPU", 0)


def _covers(resources: Mapping[str, float], wanted: Mapping[str, float]) -> bool:
    return all(resources.get(name, 0) >= amount for name, amount in wanted.items())


def _problem(node_type: NodeType, *, num_found: int) -> str:
    shown = {name: amount for name, amount in node_type.resources.items() if name != HEAD_MARK and amount}
    amounts = [f"{amount:g} {name}" for name, amount in shown.items()]
    each = f" with at least {' and '.join(amounts)}" if amounts else ""
    return f"{node_type.name}: {num_found} of {node_type.num_nodes} nodes{each} found"


def main() -> int:
    """Check a cluster from the command line; return the exit code."""
    import tyro
    from rich.console import Console

    settings = tyro.cli(CheckSettings, prog="python -m cluster.check")
    try:
        problems = check_cluster(settings.address, settings.config)
    except WhyrankError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, soft_wrap=True)
        return 2
    lines = problems or [f"the cluster has every node that {settings.config} asks for"]
    for line in lines:
        Console().print(line, markup=False, highlight=False, soft_wrap=True)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
