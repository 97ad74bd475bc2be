"""Generative training under Ray Train and DeepSpeed, on two workers."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.config import PrepareJob
from jobs.manifest import read_manifest
from jobs.prepare import run_prepare
from jobs.train import read_log
from jobs.train_generative import _train_stages, run_train_generative
from jobs.training_config import GenerativeTrainJob, NoisySftConfig, RpoConfig
from rerank_core.errors import OutputConflictError, ResourceError
from rerank_core.formats import read_documents
from rerank_core.models.artefact import artefact_digest
from rerank_core.models.tiny import save_tiny_writer
from rerank_core.models.writer import load_writer, read_provenance
from rerank_core.testing import planted_world

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> GenerativeTrainJob:
    """Eight training queries: two steps for each stage."""
    world = planted_world(10, 100, seed=5)
    folder = tmp_path_factory.mktemp("world")
    documents = [{"doc_id": d.doc_id, "title": d.title, "text": d.text} for d in world.documents.values()]
    queries = [{"query_id": q.query_id, "text": q.text} for q in world.queries.values()]
    for name, rows in (("corpus", documents), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judged = [f"{q} 0 {d} {grade}\n" for q, grades in world.qrels.items() for d, grade in grades.items()]
    (folder / "qrels.trec").write_text("".join(judged))
    (folder / "collection.json").write_text('{"pool": "judged"}')
    run_prepare(PrepareJob(collection=str(folder), output=folder / "prepared", num_folds=1))
    texts = [document.content for document in read_documents(folder / "prepared" / "corpus.parquet").values()]
    save_tiny_writer(folder / "model", texts, seed=0, width=16, num_layers=1)
    return GenerativeTrainJob(
        prepared=folder / "prepared",
        output=folder / "out",
        model=str(folder / "model"),
        num_candidates=3,
        max_length=400,
        sft=NoisySftConfig(num_epochs=1, learning_rate=1e-3),
        dpo=RpoConfig(num_epochs=1, learning_rate=1e-3, nll_weight=0.5),
    )


def test_two_workers_train_both_stages_once(job: GenerativeTrainJob, ray_instance: None) -> None:
    models = run_train_generative(job).models
    log = job.output / "train_log.jsonl"
    losses = {
        name: [line["loss"] for line in read_log(log) if "loss" in line and line["stage"] == name]
        for name in models
    }
    assert [len(found) for found in losses.values()] == [2, 2]
    assert losses["dpo"][0] > math.log(2)  # plus half the likelihood
    assert {line["rank"] for line in read_log(log) if line.get("event") == "started"} == {0, 1}
    assert not any((job.output / "checkpoints").glob("*"))

    digests = {name: artefact_digest(folder) for name, folder in models.items()}
    results = read_manifest(job.output)["results"]
    assert results == {"models": digests, "queries": 8, "queries_left_out": 0, "documents_cut": 0}
    assert read_provenance(models["dpo"])["start_digest"] == digests["sft"]
    assert len(set(digests.values())) == 2
    assert load_writer(models["dpo"]).write(["Rank them"], max_new_tokens=2)

    before = log.read_bytes()
    assert run_train_generative(job).models == models
    assert log.read_bytes() == before
    with pytest.raises(OutputConflictError, match="another setting max_words"):
        run_train_generative(replace(job, max_words=29))


def test_folders_that_the_workers_do_not_find_are_named_before_training(
    job: GenerativeTrainJob, ray_instance: None, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    for config in (replace(job, prepared=elsewhere, output=tmp_path), replace(job, output=elsewhere)):
        with pytest.raises(ResourceError, match=f"do not find {elsewhere}; put inputs and outputs"):
            _train_stages(config, Path(job.model))


@pytest.mark.slow
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_a_killed_worker_changes_nothing_in_the_model_that_comes_out(
    job: GenerativeTrainJob, ray_instance: None, tmp_path: Path, lora_rank: int
) -> None:
    dpo = replace(job.dpo, num_epochs=12)
    job = replace(job, objectives=("dpo",), dpo=dpo, lora_rank=lora_rank, output=tmp_path / "whole")
    whole = run_train_generative(job).models["dpo"]
    job = replace(job, output=tmp_path / "killed")
    log = job.output / "train_log.jsonl"
    killer = threading.Thread(target=kill_one_worker_amid, args=(log,), daemon=True)
    killer.start()
    killed = run_train_generative(job).models["dpo"]
    killer.join(timeout=1)
    assert [line["step"] for line in read_log(log) if line.get("event") == "resumed"]
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def kill_one_worker_amid(log: Path) -> None:
    """Kill worker 1 when the log shows its sixth epoch; by then Ray Train has a checkpoint."""
    while not any(line.get("epoch", 0) > 6 for line in read_log(log)):
        time.sleep(0.02)
    (pid,) = [line["pid"] for line in read_log(log) if line.get("rank") == 1]
    os.kill(pid, signal.SIGKILL)
