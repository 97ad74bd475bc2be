"""The application on a real local Ray Serve: other people's clients, scores, keys, lost replicas."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import cohere
import httpx
import psutil
import pytest

from rerank_core.errors import ResourceError
from rerank_core.models.artefact import load_artefact
from rerank_core.records import Calibration, Document, Query
from serve.args import ReplicaArgs, ServeArgs
from serve.auth import add_key
from serve.start import served
from tests.untrained import save_untrained_artefact

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.ray

QUERY = "sea ice thickness"
TEXTS = [f"{subject} {number}" for number in range(6) for subject in ("sea ice", "river ice", "sand dunes")]
READY_S = 60.0


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "tiny"
    save_untrained_artefact(folder, texts=[QUERY, *TEXTS], calibration=Calibration(2.0, -1.0))
    return folder


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def server(
    ray_instance: None, artefact: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """The address of a server with two rerankers, and a key to it."""
    keys = tmp_path_factory.mktemp("keys") / "keys.json"
    key = add_key(keys, "tests")
    port = free_port()
    args = ServeArgs(
        artefact=artefact,
        keys=keys,
        max_tokens_per_batch=256,
        gateway=ReplicaArgs(num_cpus=0.1),
        reranker=ReplicaArgs(num_cpus=0.1, min_replicas=2, max_replicas=2),
    )
    with served(args, host="127.0.0.1", port=port):
        yield f"http://127.0.0.1:{port}", key


@pytest.fixture
def client(server: tuple[str, str]) -> Iterator[httpx.Client]:
    address, key = server
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=address, headers=headers, timeout=30, trust_env=False) as connected:
        yield connected


def test_scores_online_are_the_scores_offline(client: httpx.Client, artefact: Path) -> None:
    offline = load_artefact(artefact, long_documents="max_chunk")
    documents = [*TEXTS, "sea ice " * 80]
    body = {"query": QUERY, "documents": documents, "scale": "logit"}
    answer = client.post("/v1/rerank", json=body).json()
    online = {result["index"]: result["relevance_score"] for result in answer["results"]}
    expected = offline.score(Query("q", QUERY), [Document("d", text) for text in documents])
    assert [online[index] for index in range(len(documents))] == pytest.approx(expected, abs=1e-5)
    assert [result["index"] for result in answer["results"]] == sorted(online, key=lambda i: -online[i])
    assert answer["meta"]["model_digest"] == offline.digest


def test_coheres_client_works_unmodified(server: tuple[str, str], client: httpx.Client) -> None:
    address, key = server
    expected = client.post("/v2/rerank", json={"query": QUERY, "documents": TEXTS, "top_n": 3}).json()
    with httpx.Client(trust_env=False) as transport:
        second = cohere.ClientV2(key, base_url=address, httpx_client=transport)
        found = second.rerank(model="tiny", query=QUERY, documents=TEXTS, top_n=3)
        first = cohere.Client(key, base_url=address, httpx_client=transport).rerank(
            model="tiny", query=QUERY, documents=[{"text": text} for text in TEXTS], return_documents=True
        )
    assert [(one.index, one.relevance_score) for one in found.results] == [
        (one["index"], one["relevance_score"]) for one in expected["results"]
    ]
    assert [one.document.text for one in first.results if one.document] == [
        TEXTS[one.index] for one in first.results
    ]


def test_litellms_client_works_unmodified(
    server: tuple[str, str], client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it asks the internet while it is loaded
    litellm = pytest.importorskip("litellm")
    address, key = server
    expected = client.post("/v1/rerank", json={"query": QUERY, "documents": TEXTS, "top_n": 3}).json()
    for provider in ("cohere", "hosted_vllm", "jina_ai"):
        found = litellm.rerank(
            model=f"{provider}/tiny", query=QUERY, documents=TEXTS, top_n=3, api_base=address, api_key=key
        )
        assert [(one["index"], one["relevance_score"]) for one in found.results] == [
            (one["index"], one["relevance_score"]) for one in expected["results"]
        ]


def test_a_wrong_key_is_refused_over_the_network(server: tuple[str, str]) -> None:
    address, _ = server
    with httpx.Client(base_url=address, trust_env=False) as stranger:
        assert stranger.get("/health").json() == {"status": "ready"}
        for path in ("/v1/models", "/metrics", "/openapi.json"):
            assert stranger.get(path).status_code == 401


def rerankers() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it may just have ended
            if "ServeReplica:whyrank:reranker" in " ".join(process.cmdline()):
                found.append(process)
    return found


def wait_for_rerankers(number: int, *, other_than: set[int]) -> list[psutil.Process]:
    """Wait until so many rerankers run that are not among some killed ones."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        found = [process for process in rerankers() if process.pid not in other_than]
        if len(found) == number:
            return found
        time.sleep(0.2)
    raise AssertionError(f"{number} rerankers were not ready within {READY_S} s")


def test_a_killed_replica_costs_no_client_its_answer(client: httpx.Client) -> None:
    wait_for_rerankers(2, other_than=set())
    body = {"query": QUERY, "documents": TEXTS}
    expected = client.post("/v1/rerank", json=body).json()["results"]
    statuses: list[int] = []
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            answer = client.post("/v1/rerank", json=body)
            statuses.append(answer.status_code)
            if answer.status_code == 200:
                assert [one["index"] for one in answer.json()["results"]] == [
                    one["index"] for one in expected
                ]

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    killed: set[int] = set()
    for _ in range(2):
        time.sleep(1.0)
        victim = wait_for_rerankers(2, other_than=killed)[0]
        killed.add(victim.pid)
        os.kill(victim.pid, signal.SIGKILL)
    wait_for_rerankers(2, other_than=killed)
    time.sleep(1.0)
    ended.set()
    for thread in threads:
        thread.join()
    assert len(statuses) > 20
    assert set(statuses) == {200}


def test_an_altered_artefact_is_never_served(ray_instance: None, tmp_path: Path) -> None:
    """The last test of this module: it ends the server of the others."""
    folder = tmp_path / "altered"
    save_untrained_artefact(folder, texts=[QUERY, *TEXTS])
    weights = folder / "head.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 0x40
    weights.write_bytes(raw)
    args = ServeArgs(artefact=folder, auth=False, reranker=ReplicaArgs(num_cpus=0.1))
    with (
        pytest.raises(ResourceError, match=r"golden\.jsonl:1: the pair now scores"),
        served(args, host="127.0.0.1", port=free_port()),
    ):
        raise AssertionError("an altered artefact was served")
