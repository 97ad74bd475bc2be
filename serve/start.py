"""`whyrank serve`: the application on a Ray of this machine, or of a cluster, until it is interrupted."""

from __future__ import annotations

import http
import http.client
import logging
import os
import secrets
import signal
import sys
import threading
import time
from contextlib import closing, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

from rich.console import Console

from rerank_core.errors import ConfigError, ResourceError
from serve.args import KeyCommand, ServeArgs, ServeCommand
from serve.auth import add_key, revoke_keys, revoke_oldest_key
from serve.haproxy import SWITCH, haproxy_environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ray.serve import Application

APP_NAME = "whyrank"
MIN_LOGICAL_CPUS = 8
"""Replicas count fractions of CPUs; on two real ones they would wait for one another for ever."""

OBJECT_STORE_BYTES = 256 * 1024**2
SPARE_S = 5.0
"""What the proxy waits beyond the gateway's own limits, so that the gateway is who answers."""

POLL_S = 0.1
"""How often it is asked whether all replicas are ready; Ray's own waiting asks once a second."""

ANSWER_S = 30.0
"""How long the proxy may take to find replicas that are ready; HAProxy checks each of them first."""

ANY_ADDRESS = ("0.0.0.0", "::")


def run_serve(command: ServeCommand) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        WhyrankError: the artefact, the corpus or the file of keys is broken, no replica became ready, or the
            environment asks for Ray's HAProxy.
    """
    from rerank_core.models.artefact import check_artefact

    refuse_open_haproxy()
    check_artefact(command.artefact)
    if command.corpus is not None:
        from rerank_core.data.loading import load_corpus

        load_corpus(command.corpus)  # each replica reads it again: a wrong row is told before any is started
    args = ServeArgs.model_validate(command.model_dump(include=set(ServeArgs.model_fields)))
    with haproxy_environment() if command.haproxy else nullcontext(), ray_here(command.address):
        from serve.app import build_app  # loads Ray, whose token has to be there first

        with served(build_app(args), args, host=command.host, port=command.port):
            if command.address is None:
                _wait_for_answer(command.host, command.port)
            where = f"http://{command.host}:{command.port}"
            told = f"{args.model_name} answers at {where}, in a browser too; Ctrl-C ends it"
            Console(stderr=True).print(told, highlight=False, soft_wrap=True)
            _wait_for_signal()


def run_key(command: KeyCommand) -> None:
    """Change a file of keys; a new key is printed, once."""
    if command.action == "add":
        sys.stdout.write(add_key(command.keys, command.name) + "\n")
    elif command.action == "revoke":
        revoke_keys(command.keys, command.name)
    else:
        revoke_oldest_key(command.keys, command.name)


def refuse_open_haproxy() -> None:
    """Check that Ray is not told to start HAProxy by itself, whose own pages anybody could then read.

    Raises:
        ConfigError: it is.
    """
    if os.environ.get(SWITCH, "0") != "0":
        raise ConfigError(
            f"{SWITCH} has Ray open HAProxy's statistics and metrics on every interface; unset it, and give"
            " --haproxy, which keeps them on loopback"
        )


@contextmanager
def served(application: Application, args: ServeArgs, *, host: str, port: int) -> Iterator[None]:
    """Serve an application of these arguments on the connected Ray for as long as the context lasts.

    Raises:
        ResourceError: no replica became ready.
    """
    from ray import serve
    from ray.serve.config import HTTPOptions
    from ray.serve.exceptions import RayServeException
    from ray.serve.schema import LoggingConfig

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    timeout_s = args.receive_timeout_s + args.answer_timeout_s + SPARE_S
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    serve.start(
        proxy_location="HeadOnly",
        http_options=HTTPOptions(host=host, port=port, request_timeout_s=timeout_s),
        logging_config=quiet,
    )
    try:
        target = serve.RunTarget(application, name=APP_NAME, route_prefix="/", logging_config=quiet)
        serve.run_many([target], wait_for_applications_running=False)
        _wait_for_replicas(args)
        yield
    finally:
        with suppress(RayServeException):  # it was ended by somebody else
            serve.delete(APP_NAME)
        if not serve.status().applications:  # a cluster's Serve may have others, which are not ours to end
            serve.shutdown()


def _wait_for_replicas(args: ServeArgs) -> None:
    """Return once every deployment has the replicas that it starts with.

    Raises:
        ResourceError: they do not start.
    """
    from ray import serve

    while (found := serve.status().applications[APP_NAME]).status != "RUNNING":
        if found.status == "DEPLOY_FAILED":
            told = [one.message for one in found.deployments.values() if "Error" in one.message]
            reason = last_line(told[0] if told else found.message)
            raise ResourceError(f"{args.artefact} cannot be served: {reason}; mend the cause and start again")
        time.sleep(POLL_S)


def _wait_for_answer(host: str, port: int) -> None:
    """Return once the proxy of this machine has an answer of a gateway.

    Raises:
        ResourceError: it has none.
    """
    deadline = time.monotonic() + ANSWER_S
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection("localhost" if host in ANY_ADDRESS else host, port, timeout=5)
        with suppress(OSError, http.client.HTTPException), closing(connection):
            connection.request("GET", "/health")
            if connection.getresponse().status == http.HTTPStatus.OK:
                return
        time.sleep(POLL_S)
    raise ResourceError(f"{host}:{port} does not answer although all replicas are ready; look at Ray's logs")


def let_replicas_use_all_cores() -> None:
    """Give the model of each replica of a Ray that is started next as many threads as there are cores.

    Ray's own choice is what it counts for a replica, one at first, which leaves the other cores idle.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))


@contextmanager
def ray_here(address: str | None) -> Iterator[None]:
    """Connect to Ray for as long as the context lasts; a local one listens to whoever has its token alone."""
    if address is None:
        let_replicas_use_all_cores()
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        os.environ.setdefault("RAY_enable_metrics_collection", "0")  # its agent shows metrics to anybody
    import ray

    if ray.is_initialized():
        yield
        return
    try:
        if address is None:
            ray.init(
                address="local",
                num_cpus=max(os.cpu_count() or 1, MIN_LOGICAL_CPUS),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                _node_ip_address="127.0.0.1",
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
        else:
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, ValueError) as error:
        raise ResourceError(
            f"no Ray answers at {address!r} ({last_line(str(error))}); check --address"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def last_line(message: str) -> str:
    """Return the last line of a message that says something: of a traceback, what was raised."""
    return next((line.strip() for line in reversed(message.splitlines()) if line.strip()), "no reason given")


def _wait_for_signal() -> None:
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
