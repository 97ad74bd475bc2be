"""A running server gets another artefact: no answer is of two models, and none is of an altered one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import ray
from ray import serve

from rerank_core.attribution.build import build_attributor
from rerank_core.errors import ResourceError
from rerank_core.models.artefact import artefact_digest, load_artefact, write_digests
from rerank_core.records import Calibration, Document, Query
from serve.app import build_app
from serve.args import ReplicaArgs, ServeArgs
from serve.auth import add_key
from serve.start import APP_NAME, served
from tests.listeners import free_port
from tests.scripted_serve import QUERY, TEXTS, scripted_app
from tests.untrained import save_untrained_artefact
from tests.watcher import Watcher

if TYPE_CHECKING:
    from rerank_core.models.scorer import LanguageModelScorer

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]

BUDGET = 40
LONG = ["sea ice " * 80, *TEXTS]
"""A list of several parts, with a document of several chunks."""

RANKING = {"query": QUERY, "documents": LONG, "scale": "logit"}
EXPLAINED = {"query": QUERY, "documents": TEXTS, "scale": "logit", "explain": {"top_k": 2}, "budget": BUDGET}


def offline_scores(scorer: LanguageModelScorer, texts: list[str]) -> list[float]:
    return scorer.score(Query("", QUERY), [Document("", text) for text in texts])


def check_ranking(answer: dict[str, Any], scores: list[float]) -> None:
    found = {one["index"]: one["relevance_score"] for one in answer["results"]}
    assert [found[index] for index in range(len(scores))] == pytest.approx(scores, abs=1e-5)


def check_words(answer: dict[str, Any], scorer: LanguageModelScorer) -> int:
    """Compare the attributions of an answer with offline ones; return how many there are."""
    explained = [one for one in answer["results"] if "attribution" in one.get("explanation", {})]
    documents = [Document("", TEXTS[one["index"]]) for one in explained]
    attributor = build_attributor(scorer, "pruned", max_evals=BUDGET)
    expected = attributor.attribute(Query("", QUERY), documents, seed=0)
    for one, values in zip(explained, expected, strict=True):
        online = one["explanation"]["attribution"]
        assert [unit["value"] for unit in online["units"]] == pytest.approx(values.values, abs=1e-5)
        assert online["base_value"] == pytest.approx(values.base_value, abs=1e-5)
    return len(explained)


def wait_for_model(client: httpx.Client, digest: str) -> None:
    """Wait until an upgrade has ended: all replicas answer with one model, again and again."""
    deadline = time.monotonic() + 60
    in_a_row = 0
    while in_a_row < 10:
        assert time.monotonic() < deadline, "the new artefact was not served"
        answer = client.post("/v1/attribute", json=EXPLAINED).json()
        is_new = answer["meta"]["model_digest"] == digest and "degraded" not in answer
        in_a_row = in_a_row + 1 if is_new else 0


def test_no_answer_mixes_two_models_while_the_artefact_is_replaced(
    client: httpx.Client, server_args: ServeArgs, artefact: Path, tmp_path: Path
) -> None:
    save_untrained_artefact(
        tmp_path / "new", texts=[QUERY, *TEXTS], calibration=Calibration(0.5, 1.0), seed=1
    )
    scorers = [load_artefact(folder, long_documents="max_chunk") for folder in (artefact, tmp_path / "new")]
    by_digest = {scorer.digest: scorer for scorer in scorers}
    old, new = by_digest
    ranked = {digest: offline_scores(scorer, LONG) for digest, scorer in by_digest.items()}
    explained = {digest: offline_scores(scorer, TEXTS) for digest, scorer in by_digest.items()}
    changed = server_args.model_copy(update={"artefact": tmp_path / "new"})
    with (
        Watcher(client, "/v1/rerank", RANKING) as ranking,
        Watcher(client, "/v1/rerank", RANKING) as second,
        Watcher(client, "/v1/attribute", EXPLAINED) as words,
    ):
        time.sleep(1)
        serve.run(scripted_app(changed), name=APP_NAME, route_prefix="/")
        wait_for_model(client, new)
        ended = time.monotonic()
        time.sleep(1)
    answers = [(at, answer) for watcher in (ranking, second, words) for at, answer in watcher.answers]
    refused = [answer for _, answer in answers if answer.status_code != 200]
    assert [answer.text for answer in refused] == []
    for watcher, scores in ((ranking, ranked), (second, ranked), (words, explained)):
        for _, answer in watcher.answers:
            check_ranking(answer.json(), scores[answer.json()["meta"]["model_digest"]])
        digests = [answer.json()["meta"]["model_digest"] for _, answer in watcher.answers]
        assert (digests[0], digests[-1]) == (old, new)
    counts = [
        check_words(answer.json(), by_digest[answer.json()["meta"]["model_digest"]])
        for _, answer in words.answers
        if "degraded" not in answer.json()
    ]
    assert set(counts) == {2}
    late = [answer.json() for at, answer in answers if at > ended]
    assert {answer["meta"]["model_digest"] for answer in late} == {new}


def test_an_altered_artefact_is_never_served(ray_instance: None, tmp_path: Path) -> None:
    """The last test that uses the shared server: it ends it."""
    folder = tmp_path / "altered"
    save_untrained_artefact(folder, texts=[QUERY, *TEXTS])
    weights = folder / "head.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 0x40
    weights.write_bytes(raw)
    write_digests(folder)  # by whoever altered it
    args = ServeArgs(artefact=folder, auth=False, reranker=ReplicaArgs(num_cpus=0.1))
    with pytest.raises(ResourceError, match=r"golden\.jsonl:1: the pair now scores"):  # noqa: SIM117
        with served(build_app(args), args, host="127.0.0.1", port=free_port()):
            raise AssertionError("an altered artefact was served")


def test_serve_run_serves_an_artefact_on_a_running_cluster(ray_instance: None, tmp_path: Path) -> None:
    """The command of docs/operations.md, with folders of this test; it comes once no other server runs."""
    save_untrained_artefact(tmp_path / "tiny", texts=[QUERY, *TEXTS])
    key = add_key(tmp_path / "keys.json", "tests")
    command = ["serve", "run", "serve.app:build_app", f"artefact={tmp_path / 'tiny'}"]
    command.append(f"keys={tmp_path / 'keys.json'}")
    environment = {
        **os.environ,
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    with (tmp_path / "told.txt").open("w+") as told:
        running = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=told, stderr=subprocess.STDOUT)
        try:
            wait_for_health("http://127.0.0.1:8000", running, tmp_path / "told.txt")
            answer = httpx.post(
                "http://127.0.0.1:8000/v1/rerank",
                json={"query": QUERY, "documents": TEXTS},
                headers={"Authorization": f"Bearer {key}"},
                trust_env=False,
            )
        finally:
            running.send_signal(signal.SIGINT)
            running.wait(60)
    assert answer.json()["meta"]["model_digest"] == artefact_digest(tmp_path / "tiny")


def wait_for_health(address: str, running: subprocess.Popen[bytes], told: Path) -> None:
    """Wait until a server that a command starts is ready."""
    deadline = time.monotonic() + 90
    while True:
        assert running.poll() is None, told.read_text()
        assert time.monotonic() < deadline, told.read_text()
        with suppress(httpx.HTTPError):
            if httpx.get(f"{address}/health", trust_env=False).status_code == 200:
                return
        time.sleep(0.2)
