"""One real Ray Serve, which test_serve.py and the modules beside it share but for the command and vLLM."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import httpx
import pytest

from rerank_core.records import Calibration
from serve.args import ReplicaArgs, ServeArgs
from serve.auth import add_key
from serve.start import served
from tests.listeners import free_port
from tests.untrained import save_untrained_artefact

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained artefact, calibrated."""
    from tests.scripted_serve import QUERY, TEXTS  # loads Ray, which the other modules prepare first

    folder = tmp_path_factory.mktemp("served") / "tiny"
    save_untrained_artefact(folder, texts=[QUERY, *TEXTS], calibration=Calibration(2.0, -1.0))
    return folder


@pytest.fixture(scope="session")
def server_args(artefact: Path, tmp_path_factory: pytest.TempPathFactory) -> ServeArgs:
    """What is served: two rerankers and a corpus, with keys."""
    from tests.scripted_serve import TEXTS

    corpus = tmp_path_factory.mktemp("corpus")
    rows = [{"doc_id": f"d{number}", "text": text} for number, text in enumerate(TEXTS)]
    (corpus / "corpus.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    small = ReplicaArgs(num_cpus=0.1)
    return ServeArgs(
        artefact=artefact,
        name="tiny",
        keys=tmp_path_factory.mktemp("keys") / "keys.json",
        max_tokens_per_batch=256,
        explanation_timeout_s=5,
        max_evals=2000,
        max_explained=20,
        max_pending_attribution_tokens=50_000_000,
        gateway=small,
        reranker=ReplicaArgs(num_cpus=0.1, min_replicas=2, max_replicas=2),
        attributor=small,
        corpus=corpus,
        retriever=small,
        explainer="scripted",
        chat=True,
    )


@pytest.fixture(scope="session")
def server(ray_instance: None, server_args: ServeArgs) -> Iterator[tuple[str, str]]:
    """The address of a running server, and a key to it; whoever ends it is the last test of its users."""
    from tests.scripted_serve import scripted_app

    assert server_args.keys is not None
    key = add_key(server_args.keys, "tests")
    port = free_port()
    with served(scripted_app(server_args), server_args, host="127.0.0.1", port=port):
        yield f"http://127.0.0.1:{port}", key


@pytest.fixture
def client(server: tuple[str, str]) -> Iterator[httpx.Client]:
    """A client with a key."""
    address, key = server
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=address, headers=headers, timeout=30, trust_env=False) as connected:
        yield connected
