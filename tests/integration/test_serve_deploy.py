"""The commands of docs/operations.md for a running cluster: a Ray with a token and a dashboard."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import httpx
import psutil
import pytest

from rerank_core.models.artefact import artefact_digest
from serve.auth import add_key
from tests.listeners import process_tree
from tests.untrained import save_untrained_artefact
from tests.watcher import Watcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = (ROOT / "serve" / "config.yaml").read_text(encoding="utf-8")
ARTEFACT = "runs/mine-train/dpo"
"""The artefact of the shipped file, in the folder that Ray is started in."""

NEXT_ARTEFACT = "runs/better/dpo"
SERVED_AT = "http://127.0.0.1:8000"
READY_S = 120.0
BODY = {"query": "sea ice", "documents": ["river ice dates", "sea ice"], "explain": {"top_k": 1}}

HEAD_NODE = """
import signal, ray
context = ray.init(
    address="local", num_cpus=8, object_store_memory=2**28, _node_ip_address="127.0.0.1",
    include_dashboard=True, dashboard_host="127.0.0.1", log_to_driver=False,
)
print(context.address_info["gcs_address"], context.dashboard_url, flush=True)
signal.sigwait([signal.SIGTERM])
ray.shutdown()
"""


class Head(NamedTuple):
    """A Ray that waits for what is deployed, and the folder that it was started in."""

    folder: Path
    control: str
    dashboard: str
    environment: dict[str, str]

    def deploy(self, config: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run the command on a file of this text, as somebody with these settings."""
        (self.folder / "config.yaml").write_text(config, encoding="utf-8")
        command = [str(Path(sys.executable).parent / "serve"), "deploy", str(self.folder / "config.yaml")]
        return subprocess.run(
            [*command, "--address", self.dashboard],
            cwd=ROOT,
            env=self.environment | settings,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@contextmanager
def head_node(folder: Path) -> Iterator[Head]:
    """Start a Ray that asks for a token, in a folder of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    running = subprocess.Popen(
        [sys.executable, "-c", HEAD_NODE],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    try:
        control, dashboard = running.stdout.readline().split()
        yield Head(folder, control, f"http://{dashboard}", environment)
    finally:
        tree = process_tree(running.pid)[1:]
        running.send_signal(signal.SIGTERM)
        running.communicate(timeout=60)
        _, left = psutil.wait_procs(tree, timeout=30)
        assert left == []


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    folder = tmp_path_factory.mktemp("head")
    for seed, name in enumerate((ARTEFACT, NEXT_ARTEFACT)):
        (folder / name).parent.mkdir(parents=True)
        save_untrained_artefact(folder / name, texts=["sea ice", "river ice dates"], seed=seed)
    with head_node(folder) as running:
        yield running


@pytest.fixture(scope="module")
def client(head: Head) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {add_key(head.folder / 'keys.json', 'tests')}"}
    with httpx.Client(base_url=SERVED_AT, headers=headers, timeout=60, trust_env=False) as connected:
        yield connected


def digest_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["meta"]["model_digest"])


def is_healthy(client: httpx.Client) -> bool:
    with suppress(httpx.HTTPError):
        return client.get("/health").status_code == 200
    return False


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + READY_S
    while not is_so():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.2)


def test_who_has_no_token_deploys_nothing(head: Head) -> None:
    for settings in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "0" * 64}):
        refused = head.deploy(SHIPPED, **settings)
        assert refused.returncode != 0
        assert "AuthenticationError" in refused.stderr, refused.stderr


def test_whyrank_serves_on_the_cluster_until_it_is_interrupted(
    head: Head, client: httpx.Client, tmp_path: Path
) -> None:
    command = [sys.executable, str(ROOT / "whyrank.py"), "serve", "--artefact", ARTEFACT]
    told = tmp_path / "told.txt"
    with told.open("w") as stream:
        running = subprocess.Popen(
            [*command, "--keys", "keys.json", "--address", "auto"],
            cwd=head.folder,
            env=head.environment | {"RAY_ADDRESS": head.control},
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    wait_until(lambda: "answers at" in told.read_text() or running.poll() is not None)
    assert running.poll() is None, told.read_text()
    found = digest_of(client.post("/v1/rerank", json=BODY))
    running.send_signal(signal.SIGINT)
    assert running.wait(60) == 0
    assert found == artefact_digest(head.folder / ARTEFACT)
    assert not is_healthy(client)


def test_the_shipped_file_is_deployed_and_answers_with_words(head: Head, client: httpx.Client) -> None:
    deployed = head.deploy(SHIPPED)
    assert deployed.returncode == 0, deployed.stderr
    wait_until(lambda: is_healthy(client))
    answer = client.post("/v1/rerank", json=BODY)
    assert digest_of(answer) == artefact_digest(head.folder / ARTEFACT)
    assert answer.json()["results"][0]["explanation"]["attribution"]["units"]
    assert client.post("/v1/rerank", json=BODY, headers={"Authorization": "Bearer x"}).status_code == 401


def test_another_artefact_is_deployed_while_requests_are_answered(head: Head, client: httpx.Client) -> None:
    old, new = (artefact_digest(head.folder / name) for name in (ARTEFACT, NEXT_ARTEFACT))
    with Watcher(client, "/v1/rerank", BODY) as ranking:
        time.sleep(1)
        deployed = head.deploy(SHIPPED.replace(f"artefact: {ARTEFACT}", f"artefact: {NEXT_ARTEFACT}"))
        assert deployed.returncode == 0, deployed.stderr
        wait_until(lambda: digest_of(ranking.answers[-1][1]) == new)
        time.sleep(1)
    digests = [digest_of(answer) for _, answer in ranking.answers]
    assert (digests[0], digests[-1]) == (old, new)
    assert set(digests) == {old, new}
