"""Training under Ray Train and DeepSpeed, with its worker killed on the way."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from jobs.config import DpoConfig, PrepareJob, ScoreJob, StageConfig, TrainJob
from jobs.prepare import run_prepare
from jobs.score import run_score
from jobs.train import read_log, run_train
from rerank_core.formats import read_candidates, read_documents, read_queries, read_run
from rerank_core.models.artefact import artefact_digest, load_artefact, read_spec
from rerank_core.models.tiny import save_tiny_encoder
from rerank_core.ranking.contract import is_permutation

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

NUM_EPOCHS = 12
KILLED_AFTER_EPOCH = 6.0  # by then Ray Train has registered a checkpoint or more


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "prepared"
    run_prepare(PrepareJob(output=folder))
    return folder


@pytest.fixture(scope="module")
def model(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    texts = [d.content for d in read_documents(prepared / "corpus.parquet").values()]
    save_tiny_encoder(folder, texts, seed=0)
    return folder


@pytest.fixture(scope="module")
def trained(
    prepared: Path, model: Path, ray_instance: None, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """SFT, then DPO whose second worker is killed after its first checkpoint."""
    output = tmp_path_factory.mktemp("train") / "out"
    config = job(prepared, model, output)
    with killed_at(output / "train_log.jsonl", stage="dpo", epoch=KILLED_AFTER_EPOCH, rank=1):
        run_train(config)
    return output


def job(prepared: Path, model: Path, output: Path) -> TrainJob:
    return TrainJob(
        prepared=prepared,
        output=output,
        model=str(model),
        max_length=128,
        sft=StageConfig(num_epochs=1, learning_rate=1e-3),
        dpo=DpoConfig(num_epochs=NUM_EPOCHS, learning_rate=1e-3, beta=0.5),
    )


class killed_at:  # noqa: N801 - reads as a phrase
    """Kill one worker of a stage as soon as the log shows an epoch that was checkpointed."""

    def __init__(self, log: Path, *, stage: str, epoch: float, rank: int) -> None:
        self._log, self._stage, self._epoch, self._rank = log, stage, epoch, rank
        self._killer = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._killer.start()

    def __exit__(self, *_: object) -> None:
        self._killer.join(timeout=1)

    def _watch(self) -> None:
        while True:
            lines = [line for line in read_log(self._log) if line["stage"] == self._stage]
            if any(line.get("epoch", 0) > self._epoch for line in lines):
                pids = [line["pid"] for line in lines if line.get("rank") == self._rank]
                os.kill(pids[-1], signal.SIGKILL)
                return
            time.sleep(0.02)


def steps(output: Path, stage: str) -> list[dict[str, Any]]:
    return [
        line for line in read_log(output / "train_log.jsonl") if line["stage"] == stage and "loss" in line
    ]


def test_the_first_loss_of_dpo_is_ln_2(trained: Path) -> None:
    assert steps(trained, "dpo")[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_dpo_starts_from_the_sft_artefact_and_never_changes_it(trained: Path) -> None:
    assert read_spec(trained / "dpo").provenance["start_digest"] == artefact_digest(trained / "sft")


def test_training_goes_on_from_the_checkpoint_after_a_worker_is_killed(trained: Path) -> None:
    events = [line for line in read_log(trained / "train_log.jsonl") if line.get("event") == "resumed"]
    assert [event["stage"] for event in events] == ["dpo"]
    assert events[0]["step"] > 0
    numbers = [line["step"] for line in steps(trained, "dpo")]
    assert sorted(set(numbers)) == list(range(1, steps(trained, "dpo")[-1]["num_steps"] + 1))
    resumed_at = next(place for place, (a, b) in enumerate(pairwise(numbers), start=1) if b <= a)
    assert numbers[resumed_at:] == list(range(events[0]["step"] + 1, numbers[-1] + 1))
    assert numbers[-1] == len(set(numbers))


def test_no_checkpoint_is_left_beside_the_artefacts(trained: Path) -> None:
    assert not any((trained / "checkpoints").glob("*"))


def test_the_same_command_again_has_nothing_to_do(trained: Path, prepared: Path, model: Path) -> None:
    before = (trained / "train_log.jsonl").read_bytes()
    run_train(job(prepared, model, trained))
    assert (trained / "train_log.jsonl").read_bytes() == before


def test_scoring_on_ray_gives_the_scores_of_the_artefact(
    trained: Path, prepared: Path, tmp_path: Path
) -> None:
    config = ScoreJob(
        prepared=prepared,
        artefact=trained / "dpo",
        output=tmp_path / "run",
        split="test",
        shard_queries=5,
        trec=True,
    )
    result = run_score(config)
    run = read_run(tmp_path / "run", "dpo")
    documents, queries = (
        read_documents(prepared / "corpus.parquet"),
        read_queries(prepared / "queries.parquet"),
    )
    candidates = read_candidates(prepared / "candidates.parquet", documents)
    scorer = load_artefact(trained / "dpo")
    assert result.num_queries == len(run.rankings)
    for query_id, ranking in run.rankings.items():
        assert is_permutation(ranking, [c.document.doc_id for c in candidates[query_id]])
        alone = scorer.score(queries[query_id], [documents[doc_id] for doc_id in ranking.doc_ids])
        assert list(ranking.scores) == pytest.approx(alone, abs=1e-5)
    assert len((tmp_path / "run" / "run.trec").read_text().splitlines()) == 10 * len(run.rankings)
    shards = sorted((tmp_path / "run" / "data").iterdir())
    lost, kept = shards[1].read_bytes(), shards[0].stat().st_mtime_ns
    shards[1].unlink()  # as if the job had been killed before this commit
    manifest = tmp_path / "run" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"status": "running"}))
    run_score(config)
    assert shards[1].read_bytes() == lost
    assert shards[0].stat().st_mtime_ns == kept


def test_the_same_command_continues_after_the_driver_is_killed(
    prepared: Path, model: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    command = [
        *(sys.executable, "-m", "whyrank", "train", "--prepared", str(prepared), "--output", str(output)),
        *(
            "--model",
            str(model),
            "--max-length",
            "128",
            "--objectives",
            "sft",
            "--sft.num-epochs",
            str(NUM_EPOCHS),
        ),
    ]
    with started(command) as driver:
        wait_for_epoch(output / "train_log.jsonl", KILLED_AFTER_EPOCH)
        driver.kill()
        driver.wait()
    finished = subprocess.run(command, capture_output=True, text=True, timeout=800, check=False)
    assert finished.returncode == 0, finished.stderr
    (resumed,) = [line for line in read_log(output / "train_log.jsonl") if line.get("event") == "resumed"]
    assert resumed["step"] > 0
    load_artefact(output / "sft")


def started(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for_epoch(log: Path, epoch: float) -> None:
    deadline = time.monotonic() + 300
    while not any(line.get("epoch", 0) > epoch for line in read_log(log)):
        assert time.monotonic() < deadline, "no epoch ended within 300 s"
        time.sleep(0.1)
