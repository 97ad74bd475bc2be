"""A Ray to run on: a local one for as long as the job lasts, or a cluster that has what the job needs."""

from __future__ import annotations

import logging
import os
import socket
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.environment import prepare_environment, shared_environment
from rerank_core.errors import ResourceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

MIN_LOGICAL_CPUS = 8
"""Ray Data's stages each hold a logical CPU; with fewer than this a two-core machine would wait for ever."""

LOCAL_TRAINING = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a stage is seen to end so much sooner than after 2 s
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process for nothing: no node can be taken away
}
"""What Ray Train reads from the environment, where the only node is this machine."""

OBJECT_STORE_BYTES = 512 * 1024**2
CONNECT_TIMEOUT_S = 5.0
PROBE_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a job needs at the same time: `num_workers` times (`cpus`, `gpus`)."""

    num_workers: int
    cpus: float = 1.0
    gpus: float = 0.0


@contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """Connect to Ray for as long as the context lasts.

    With an address, that cluster is used and left running. Without one, a Ray that this process already runs
    is used and left alone; else a local Ray is started and stopped again.
    """
    prepare_environment()  # before Ray is imported; a local Ray's workers inherit it
    import ray

    if ray.is_initialized():
        yield
        return
    if address is None:
        for name, value in LOCAL_TRAINING.items():
            os.environ.setdefault(name, value)
        ray.init(
            address="local",  # else Ray would join a cluster that RAY_ADDRESS or an earlier `ray start` names
            num_cpus=max(os.cpu_count() or 1, MIN_LOGICAL_CPUS),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _node_ip_address="127.0.0.1",
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    else:
        _connect(address)
    try:
        yield
    finally:
        ray.shutdown()


def _connect(address: str) -> None:
    import ray

    try:
        _require_listener(address)
        ray.init(
            address=address,
            runtime_env={"env_vars": shared_environment()},
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except (OSError, ValueError) as error:
        raise ResourceError(
            f"no Ray cluster answers at {address!r} ({str(error).splitlines()[0]}); check --address"
        ) from error


def _require_listener(address: str) -> None:
    """Raise OSError where nothing listens: Ray itself would go on trying for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()


def require_shared(folder: Path) -> None:
    """Check that the workers of the connected cluster see a folder as this process does.

    Raises:
        ResourceError: a worker does not find it: it is on no storage that the nodes share.
    """
    import ray

    path = str(folder.resolve())
    if not ray.get(ray.remote(os.path.isdir).options(num_cpus=0).remote(path), timeout=PROBE_TIMEOUT_S):
        raise ResourceError(
            f"the workers of the cluster do not find {path}; put inputs and outputs on storage that all nodes"
            " share, under the same path"
        )


def require(need: Need) -> None:
    """Check the connected cluster against what a job needs, before anything waits for it.

    Raises:
        ResourceError: says what is missing and what to do.
    """
    import ray

    check_need(need, ray.cluster_resources())


def check_need(need: Need, resources: Mapping[str, float]) -> None:
    """Check a need against a cluster's total resources, as `ray.cluster_resources()` gives them.

    Raises:
        ResourceError: says what is missing and what to do.
    """
    for name, each in (("CPU", need.cpus), ("GPU", need.gpus)):
        wanted, there = need.num_workers * each, resources.get(name, 0.0)
        if wanted > there:
            raise ResourceError(
                f"the job needs {wanted:g} {name} ({need.num_workers} workers with {each:g} each), but the"
                f" cluster has {there:g}; lower --num-workers or add nodes"
            )


def num_at_once(need: Need) -> int:
    """Return how many times a need fits into the connected cluster at the same time, at least once."""
    import ray

    resources = ray.cluster_resources()
    each = {"CPU": need.num_workers * need.cpus, "GPU": need.num_workers * need.gpus}
    return max(1, min(int(resources.get(name, 0.0) // wanted) for name, wanted in each.items() if wanted))


@dataclass(frozen=True, slots=True)
class DeviceShare:
    """What one actor of a pool takes."""

    cpus: float
    gpus: float


def device_share(num_workers: int) -> DeviceShare:
    """Return an actor's share: a GPU, a part of one where there are fewer GPUs than actors, else a CPU."""
    return DeviceShare(cpus=1.0, gpus=min(1.0, num_gpus() / num_workers))


def num_gpus() -> int:
    """Return the number of GPUs of the connected cluster."""
    import ray

    return int(ray.cluster_resources().get("GPU", 0))


def device_here() -> str:
    """Return the torch device of this process: its GPU where Ray gave it one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
