"""Who listens where among a process and all that it has started, and how they answer strangers."""

from __future__ import annotations

import socket
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

import grpc
import httpx
import psutil

if TYPE_CHECKING:
    from collections.abc import Iterable

LOOPBACK = ("127.0.0.1", "::1")

RAYS_OWN = {
    "whyrank": "the driver, for Ray's workers",
    "python": "the driver, where it is started by name; Ray's monitor and dashboard, for their metrics",
    "gcs_server": "Ray's control service",
    "raylet": "Ray's scheduler, and its object manager",
    "ray::DashboardAgent": "Ray's agent for logs and metrics",
    "ray::RuntimeEnvAgent": "Ray's agent for environments",
    "ray::TelemetryAgent": "Ray's agent for events",
    "ray::ServeController": "Ray Serve's controller, for Ray's workers",
    "ray::ServeReplica": "replicas, for Ray's workers",
    "ray::ProxyActor": "Ray Serve's proxy, for Ray's workers; HTTP itself is on loopback",
    "ray::HAProxyManager": "who starts HAProxy, for Ray's workers; HAProxy itself is on loopback",
    "ray::IDLE": "Ray's idle workers",
}
"""Who may listen on other interfaces than loopback: Ray's own processes, which ask for its token."""

CALLS = (
    "/ray.rpc.JobInfoGcsService/GetAllJobInfo",
    "/ray.rpc.NodeManagerService/GetSystemConfig",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.rpc.LogService/ListLogs",
    "/ray.serve.ASGIService/HandleRequest",
)
"""One call of each service that Ray offers: control, scheduler, objects, workers, agent, replicas."""


class Listener(NamedTuple):
    """A listening socket of a process with this name."""

    name: str
    address: str
    port: int


def free_port() -> int:
    """Return a port of loopback that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def listeners(processes: Iterable[psutil.Process]) -> list[Listener]:
    """Return every listening socket of those processes that still run."""
    found = []
    for process in processes:
        with suppress(psutil.Error):
            name = process.name()
            found += [
                Listener(name, place.laddr.ip, place.laddr.port)
                for place in process.net_connections(kind="inet")
                if place.status == psutil.CONN_LISTEN
            ]
    return found


def is_rays_own(listener: Listener) -> bool:
    """Return whether a process of that name may listen; the kernel cuts names after 15 characters."""
    return any(listener.name.startswith(known[:15]) for known in RAYS_OWN)


def http_answer(place: str) -> httpx.Response | None:
    """Return what is answered to a browser, or None where something else than HTTP is spoken."""
    try:
        return httpx.get(f"http://{place}/", timeout=5, trust_env=False)
    except httpx.RemoteProtocolError:
        return None


def refuses_strangers(listener: Listener) -> bool:
    """Return whether a listener answers 401 or `UNAUTHENTICATED`, or shows nothing but Ray's metrics."""
    host = "127.0.0.1" if listener.address in ("::", "0.0.0.0") else listener.address
    try:
        spoken = http_answer(f"{host}:{listener.port}")
    except httpx.ConnectError:  # it has ended
        return False
    if spoken is not None:
        return spoken.status_code == HTTPStatus.UNAUTHORIZED or spoken.text.startswith("# HELP")
    answers = {status_of(f"{host}:{listener.port}", call) for call in CALLS}
    return "UNAUTHENTICATED" in answers and "OK" not in answers


def status_of(place: str, call: str, *, token: str | None = None) -> str:
    """Return how a gRPC call without content is answered."""
    metadata = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(place, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(call)(b"", timeout=5, metadata=metadata)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"
