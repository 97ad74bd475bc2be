"""`whyrank serve` as a user starts it: who listens where, what is logged, and how it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from serve.auth import add_key
from tests.listeners import (
    CALLS,
    LOOPBACK,
    Listener,
    free_port,
    http_answer,
    is_rays_own,
    listeners,
    status_of,
)
from tests.processes import end, process_tree, wait_until
from tests.untrained import save_untrained_artefact

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psutil

ROOT = Path(__file__).resolve().parents[2]
MARKER = "xylophonequartz"
"""A word that no log may hold once it was in a request."""

REPLICA = "ray::ServeRepl"

OPEN_METRICS = {44217: "of Ray's autoscaler", 44227: "of Ray's dashboard"}
"""Ports of metrics that Ray shows to anybody, and has no setting for: they tell of nodes, not of requests."""


class Served:
    """A running `whyrank serve`."""

    def __init__(self, folder: Path, *options: str, **settings: str) -> None:
        save_untrained_artefact(folder / "tiny", texts=["sea ice", "river ice dates"])
        self.key = add_key(folder / "keys.json", "tests")
        self.port = free_port()
        self.told = folder / "told.txt"
        command = [sys.executable, str(ROOT / "whyrank.py"), "serve", "--artefact", str(folder / "tiny")]
        command += ["--keys", str(folder / "keys.json"), "--port", str(self.port), *options]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        with self.told.open("w") as stream:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=environment | settings,
                text=True,
            )
        wait_until(
            lambda: "answers at" in self.told.read_text() or self.process.poll() is not None,
            told=self.told.read_text,
        )
        assert self.process.poll() is None, self.told.read_text()

    def tree(self) -> list[psutil.Process]:
        """Return the command's process and all that it has started."""
        return process_tree(self.process.pid)

    def listeners(self) -> list[Listener]:
        """Return every listening socket of the tree."""
        return listeners(self.tree())

    def token(self) -> str:
        """Return what this Ray's processes show each other."""
        (control,) = [process for process in self.tree() if process.name() == "gcs_server"]
        return str(control.environ()["RAY_AUTH_TOKEN"])

    def logs(self) -> Path:
        """Return the folder of this Ray's logs."""
        lines = [" ".join(process.cmdline()) for process in self.tree()[1:]]
        found = re.search(r"--log_dir=(\S+)", " ".join(lines)) or re.search(
            r"--session_dir=(\S+)", " ".join(lines)
        )
        assert found is not None, lines
        return Path(found[1])

    def end(self) -> None:
        """Interrupt the command, and wait until it and all that it has started are gone."""
        assert end(self.process, signal.SIGINT) == 0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    running = Served(tmp_path_factory.mktemp("command"))
    yield running
    if running.process.poll() is None:
        running.end()


@pytest.fixture(scope="module")
def statistics_ports() -> dict[str, str]:
    names = ("RAY_SERVE_HAPROXY_STATS_PORT", "RAY_SERVE_HAPROXY_METRICS_PORT")
    return {name: str(free_port()) for name in names}


@pytest.fixture(scope="module")
def behind_haproxy(
    tmp_path_factory: pytest.TempPathFactory, statistics_ports: dict[str, str]
) -> Iterator[Served]:
    running = Served(tmp_path_factory.mktemp("haproxy"), "--haproxy", **statistics_ports)
    yield running
    if running.process.poll() is None:
        running.end()


def assert_words(server: Served) -> None:
    body = {"query": f"{MARKER} ice", "documents": ["sea ice", f"river {MARKER}"], "explain": {"top_k": 1}}
    answer = httpx.post(
        f"http://127.0.0.1:{server.port}/v1/explain",
        json=body,
        headers={"Authorization": f"Bearer {server.key}"},
        timeout=60,
        trust_env=False,
    )
    assert answer.status_code == 200
    assert answer.json()["results"][0]["explanation"]["attribution"]["units"]


def assert_only_ray_listens_beyond_loopback(server: Served) -> None:
    found = server.listeners()
    assert {address for _, address, port in found if port == server.port} == {"127.0.0.1"}
    for one in found:
        assert one.address in LOOPBACK or is_rays_own(one), one


def assert_calls_need_the_token(server: Served) -> None:
    found = {
        (name, "127.0.0.1" if address in ("::", "0.0.0.0") else address, port)
        for name, address, port in server.listeners()
        if address not in LOOPBACK
    }
    assert {"gcs_server", "raylet"} <= {name for name, _, _ in found}
    for name, address, port in found:
        place = f"{address}:{port}"
        spoken = http_answer(place)
        if spoken is not None:
            is_open = port in OPEN_METRICS and spoken.text.startswith("# HELP") and MARKER not in spoken.text
            assert spoken.status_code == 401 or is_open, (name, place, spoken.text[:200])
            continue
        answers = {call: status_of(place, call) for call in CALLS}
        refused = [call for call, status in answers.items() if status == "UNAUTHENTICATED"]
        assert refused, (name, place, answers)  # it offers one of these services
        assert "OK" not in answers.values(), (name, place, answers)
        assert status_of(place, refused[0], token="0" * 64) == "UNAUTHENTICATED", (name, place)
        assert status_of(place, refused[0], token=server.token()) != "UNAUTHENTICATED", (name, place)


def test_a_request_is_answered_with_words(server: Served) -> None:
    assert_words(server)


def test_whoever_listens_beyond_loopback_is_on_the_list(server: Served) -> None:
    assert_only_ray_listens_beyond_loopback(server)


def test_whoever_listens_beyond_loopback_refuses_calls_without_the_token(server: Served) -> None:
    assert_calls_need_the_token(server)


def test_ray_refuses_callers_without_its_token(server: Served) -> None:
    (gcs, *_) = [port for name, _, port in server.listeners() if name == "gcs_server"]
    program = f"import ray; ray.init(address='127.0.0.1:{gcs}', logging_level='ERROR')"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    strangers = [
        subprocess.Popen(
            [sys.executable, "-c", program], env=environment | mode, stderr=subprocess.PIPE, text=True
        )
        for mode in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64})
    ]
    for stranger in strangers:
        _, told = stranger.communicate(timeout=120)
        assert stranger.returncode != 0
        assert re.search("[Uu]nauthenticated|InvalidAuthToken|AuthenticationError", told)


def test_neither_requests_nor_keys_are_logged(server: Served) -> None:
    headers = {"Authorization": f"Bearer {server.key}"}
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", headers=headers, trust_env=False) as client:
        for body in (
            {"query": MARKER, "documents": [MARKER], "explain": {"top_k": 1, "text": True}},
            {"query": MARKER, "documents": [{"nothing": MARKER}]},
            {"query": MARKER, "documents": [MARKER], "model": MARKER},
            {MARKER: MARKER},
        ):
            client.post("/v1/rerank", json=body, timeout=60)
        client.post("/v1/rerank", content=f'{{"query": "{MARKER}"')
        client.get(f"/{MARKER}")
    held = [path for path in server.logs().rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(held) > 5
    for path in [*held, server.told]:
        text = path.read_bytes()
        assert MARKER.encode() not in text, path
        assert server.key.encode() not in text, path


def test_it_ends_when_it_is_interrupted_and_leaves_nothing_behind(server: Served) -> None:
    server.end()


def test_behind_haproxy_nothing_more_listens_beyond_loopback(
    behind_haproxy: Served, statistics_ports: dict[str, str]
) -> None:
    assert_words(behind_haproxy)
    assert_only_ray_listens_beyond_loopback(behind_haproxy)
    found = {(address, str(port)) for name, address, port in behind_haproxy.listeners() if name == "haproxy"}
    wanted = {str(behind_haproxy.port), *statistics_ports.values()}
    assert found == {("127.0.0.1", port) for port in wanted}


def test_behind_haproxy_the_gateways_own_http_is_on_loopback_and_all_else_refuses_calls(
    behind_haproxy: Served,
) -> None:
    answering = {
        address
        for name, address, port in behind_haproxy.listeners()
        if name.startswith(REPLICA) and http_answer(f"127.0.0.1:{port}") is not None
    }
    assert answering == {"127.0.0.1"}
    assert_calls_need_the_token(behind_haproxy)


def test_haproxy_ends_with_the_command(behind_haproxy: Served) -> None:
    behind_haproxy.end()
