"""The commands of docs/operations.md for a running cluster: a Ray with a token and a dashboard."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import httpx
import pytest

from rerank_core.models.artefact import artefact_digest
from serve.auth import add_key
from tests.processes import end, wait_until
from tests.untrained import save_untrained_artefact
from tests.watcher import Watcher

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = (ROOT / "serve" / "config.yaml").read_text(encoding="utf-8")
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
START, DEPLOY = (
    next(line for line in OPERATIONS.splitlines() if re.match(pattern, line))
    for pattern in ("whyrank serve .* --address auto", "serve deploy ")
)
ARTEFACT = "runs/mine-train/dpo"
"""The artefact of the commands and of the shipped file, in the folder that Ray is started in."""

BETTER, ALTERED = "runs/better/dpo", "runs/altered/dpo"
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
    """A Ray that waits for what is deployed, the folder that it was started in, and what reaches it."""

    folder: Path
    environment: dict[str, str]

    def deploy(
        self, artefact: str, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the documented command on the shipped file with this artefact."""
        config = SHIPPED.replace(f"artefact: {ARTEFACT}", f"artefact: {artefact}")
        (self.folder / "serve").mkdir(exist_ok=True)
        (self.folder / "serve" / "config.yaml").write_text(config, encoding="utf-8")
        return self._run(DEPLOY, environment or self.environment)

    def status(self) -> str:
        """Return what `serve status` tells."""
        return self._run("serve status", self.environment).stdout

    def _run(self, line: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            shlex.split(line),
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@contextmanager
def head_node(folder: Path) -> Iterator[Head]:
    """Start a Ray that asks for a token, in a folder of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    running = subprocess.Popen(
        [sys.executable, "-c", HEAD_NODE], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert running.stdout is not None
    try:
        control, dashboard = running.stdout.readline().split()
        places = {"RAY_ADDRESS": control, "RAY_DASHBOARD_ADDRESS": f"http://{dashboard}"}
        yield Head(folder, environment | places)
    finally:
        end(running, signal.SIGTERM)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    folder = tmp_path_factory.mktemp("head")
    for seed, name in enumerate((ARTEFACT, BETTER)):
        (folder / name).parent.mkdir(parents=True)
        save_untrained_artefact(folder / name, texts=["sea ice", "river ice dates"], seed=seed)
    shutil.copytree(folder / BETTER, folder / ALTERED)
    with (folder / ALTERED / "head.safetensors").open("ab") as weights:
        weights.write(b"x")
    with head_node(folder) as running:
        yield running


@pytest.fixture(scope="module")
def client(head: Head) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {add_key(head.folder / 'keys.json', 'tests')}"}
    with httpx.Client(
        base_url="http://127.0.0.1:8000", headers=headers, timeout=60, trust_env=False
    ) as connected:
        yield connected


@pytest.fixture(scope="module")
def deployed(head: Head, client: httpx.Client) -> None:
    """The shipped file, and what it starts is ready to rank and to explain."""
    done = head.deploy(ARTEFACT)
    assert done.returncode == 0, done.stderr
    wait_until(lambda: is_ready(client), told=head.status)


def is_ready(client: httpx.Client) -> bool:
    with suppress(httpx.HTTPError):
        answer = client.post("/v1/rerank", json=BODY)
        return answer.status_code == 200 and "degraded" not in answer.json()
    return False


def digest_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["meta"]["model_digest"])


def test_who_has_no_token_deploys_nothing(head: Head) -> None:
    for settings in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "0" * 64}):
        refused = head.deploy(ARTEFACT, head.environment | settings)
        assert refused.returncode != 0
        assert "AuthenticationError" in refused.stderr, refused.stderr
    address = f"{head.environment['RAY_DASHBOARD_ADDRESS']}/api/serve/applications/"
    assert httpx.get(address, trust_env=False).status_code == 401
    token = {"Authorization": f"Bearer {head.environment['RAY_AUTH_TOKEN']}"}
    assert httpx.get(address, headers=token, trust_env=False).json()["applications"] == {}


def test_whyrank_serves_on_the_cluster_until_it_is_interrupted(
    head: Head, client: httpx.Client, tmp_path: Path
) -> None:
    command = shlex.split(START.replace("0.0.0.0", "127.0.0.1"))  # tests listen on loopback alone
    told = tmp_path / "told.txt"
    with told.open("w") as stream:
        running = subprocess.Popen(
            command, cwd=head.folder, env=head.environment, stdout=stream, stderr=stream, text=True
        )
    try:
        wait_until(
            lambda: "answers at" in told.read_text() or running.poll() is not None, told=told.read_text
        )
        wait_until(lambda: is_ready(client), told=told.read_text)
        found = digest_of(client.post("/v1/rerank", json=BODY))
    finally:
        code = end(running, signal.SIGINT)
    assert code == 0, told.read_text()
    assert found == artefact_digest(head.folder / ARTEFACT)
    assert not is_ready(client)


@pytest.mark.usefixtures("deployed")
def test_the_shipped_file_is_deployed_and_answers_with_words(head: Head, client: httpx.Client) -> None:
    answer = client.post("/v1/rerank", json=BODY)
    assert digest_of(answer) == artefact_digest(head.folder / ARTEFACT)
    assert answer.json()["results"][0]["explanation"]["attribution"]["units"], answer.text
    assert client.post("/v1/rerank", json=BODY, headers={"Authorization": "Bearer x"}).status_code == 401


@pytest.mark.usefixtures("deployed")
def test_an_altered_artefact_is_named_and_the_one_before_goes_on_answering(
    head: Head, client: httpx.Client
) -> None:
    with Watcher(client, "/v1/rerank", BODY) as ranking:
        assert head.deploy(ALTERED).returncode == 0
        wait_until(lambda: ranking.error is not None or "SHA256SUMS" in head.status(), told=head.status)
    assert {digest_of(answer) for _, answer in ranking.answers} == {artefact_digest(head.folder / ARTEFACT)}


@pytest.mark.usefixtures("deployed")
def test_another_artefact_is_deployed_while_requests_are_answered(head: Head, client: httpx.Client) -> None:
    new = artefact_digest(head.folder / BETTER)
    with Watcher(client, "/v1/rerank", BODY) as ranking:
        done = head.deploy(BETTER)
        assert done.returncode == 0, done.stderr
        wait_until(
            lambda: (
                ranking.error is not None
                or [digest_of(answer) for _, answer in ranking.answers[-10:]] == [new] * 10
            ),
            told=head.status,
        )
    digests = {digest_of(answer) for _, answer in ranking.answers}
    assert digests == {new, artefact_digest(head.folder / ARTEFACT)}
