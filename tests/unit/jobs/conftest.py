"""A small prepared collection and a tiny pretrained model, made once for all tests of jobs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch.distributed

from jobs.config import PrepareJob
from jobs.prepare import run_prepare
from jobs.stage import StageTask, TrainingData, read_training_data
from jobs.training_config import SftConfig, TrainJob
from rerank_core.formats import read_documents
from rerank_core.models.tiny import save_tiny_encoder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NUM_QUERIES = 12
NUM_DOCUMENTS = 30
JUDGED_PER_QUERY = 4
THEMES = ("ice", "rain", "wind", "dust", "salt", "heat", "moss")


@pytest.fixture(scope="session")
def prepared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve queries with a judged pool of four documents each, in five folds.

    Document d05 is long; only query q03 has the word "aurora".
    """
    folder = tmp_path_factory.mktemp("collection")
    documents = [
        {
            "doc_id": f"d{n:02}",
            "title": f"{THEMES[n % 7]} survey {n}",
            "text": f"{THEMES[n % 7]} and {THEMES[n % 5]} at site {n} " * (60 if n == 5 else 1),
        }
        for n in range(NUM_DOCUMENTS)
    ]
    queries = [
        {"query_id": f"q{n:02}", "text": f"{THEMES[n % 7]} near site {n}" + " aurora" * (n == 3)}
        for n in range(NUM_QUERIES)
    ]
    judged = [
        f"q{n:02} 0 d{(2 * n + i) % NUM_DOCUMENTS:02} {3 * i}\n"
        for n in range(NUM_QUERIES)
        for i in range(JUDGED_PER_QUERY)
    ]
    for name, rows in (("corpus", documents), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "qrels.trec").write_text("".join(judged))
    (folder / "collection.json").write_text('{"pool": "judged"}')
    output = tmp_path_factory.mktemp("jobs") / "prepared"
    run_prepare(PrepareJob(collection=str(folder), output=output))
    return output


@pytest.fixture(scope="session")
def model_folder(prepared_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder with random weights that knows the collection's words."""
    folder = tmp_path_factory.mktemp("model")
    texts = [document.content for document in read_documents(prepared_folder / "corpus.parquet").values()]
    save_tiny_encoder(folder, [*texts, "near aurora"], seed=0)
    return folder


@pytest.fixture
def config(prepared_folder: Path, model_folder: Path, tmp_path: Path) -> TrainJob:
    return TrainJob(
        prepared=prepared_folder,
        output=tmp_path / "train",
        model=str(model_folder),
        fold=1,
        max_length=64,
        objectives=(),
        seed=7,
    )


@pytest.fixture
def task(config: TrainJob, tmp_path: Path) -> StageTask:
    return StageTask(
        name="sft",
        settings=SftConfig(),
        prepared=str(config.prepared),
        fold=config.fold,
        start=config.model,
        reward_model=None,
        artefact=str(tmp_path / "sft"),
        log=str(tmp_path / "train_log.jsonl"),
        cache=str(tmp_path / "frozen_scores"),
        head="linear",
        num_layers=None,
        max_length=64,
        max_tokens_per_batch=8192,
        patience=0,
        bf16=False,
        gradient_checkpointing=False,
        lora_rank=0,
        keeps_adapter=False,
        zero_stage=2,
        offload_optimizer=False,
        seed=7,
        provenance={},
    )


@pytest.fixture
def data(task: StageTask) -> TrainingData:
    return read_training_data(task)


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    method = f"file://{tmp_path / 'rendezvous'}"
    torch.distributed.init_process_group("gloo", init_method=method, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
