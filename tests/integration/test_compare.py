"""A real comparison, small: every method trained, scored and put into tables; what is done is done once."""

import json
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jobs.cells import Cell, artefacts, cell_log, plan_cells, run_folders
from jobs.compare import PER_QUERY, run_compare
from jobs.config import PrepareJob
from jobs.manifest import MANIFEST
from jobs.prepare import run_prepare
from jobs.stage import held_out_rows
from jobs.training_config import CompareJob, DpoConfig, PpoConfig, RewardModelConfig, SftConfig
from rerank_core.errors import JobError
from rerank_core.evaluation.calibration import fit_platt
from rerank_core.evaluation.method_page import COMPARISON_PAGE, PREFERENCE_METRICS, RANKING_METRICS
from rerank_core.evaluation.text_metrics import TEXT_METRICS
from rerank_core.formats import RUN, read_documents, read_queries, read_shards, read_table, rows_of
from rerank_core.models.artefact import artefact_digest, load_artefact, read_spec
from rerank_core.models.tiny import save_tiny_encoder

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

METHODS = ("untrained", "sft", "rm", "dpo", "ppo")
NUM_QUERIES, HIGHEST_GRADE = 60, 9
INTRUSION_TIMEOUT_S = 120.0
CLEAR = [f"clear{number}" for number in range(4)]
VAGUE = [f"vague{number}" for number in range(4)]


def write_clear_world(folder: Path) -> None:
    """Write queries with ten documents each: a document's grade is how many of its nine words are clear ones.

    BM25 counts only how often a document names its query's topic, which is drawn; training finds the grade.
    """
    rng = np.random.default_rng(0)
    folder.mkdir()
    queries, documents, judgements = [], [], []
    for topic in (f"topic{number}" for number in range(NUM_QUERIES)):
        queries.append({"query_id": topic, "text": f"about {topic}"})
        for grade in range(HIGHEST_GRADE + 1):
            clear = [*rng.choice(CLEAR, grade), *rng.choice(VAGUE, HIGHEST_GRADE - grade)]
            text = " ".join([*[topic] * int(rng.integers(1, 4)), *rng.permutation(clear)])
            documents.append({"doc_id": f"{topic}-{grade}", "text": text})
            judgements.append(f"{topic} 0 {topic}-{grade} {grade}\n")
    for name, rows in (("queries", queries), ("corpus", documents)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "qrels.trec").write_text("".join(judgements))
    (folder / "collection.json").write_text('{"name": "clear", "pool": "judged", "relevant_from": 5}')


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> CompareJob:
    root = tmp_path_factory.mktemp("compare")
    write_clear_world(root / "clear")
    run_prepare(PrepareJob(collection=str(root / "clear"), output=root / "prepared", num_folds=2))
    texts = [d.content for d in read_documents(root / "prepared" / "corpus.parquet").values()]
    save_tiny_encoder(root / "tiny", texts, seed=0)
    return CompareJob(
        prepared=root / "prepared",
        output=root / "out",
        models=(str(root / "tiny"),),
        seeds=(3,),
        max_length=128,
        sft=SftConfig(num_epochs=2, learning_rate=3e-3, queries_per_step=4),
        rm=RewardModelConfig(num_epochs=1, learning_rate=3e-3, queries_per_step=4),
        dpo=DpoConfig(num_epochs=1, learning_rate=3e-3, queries_per_step=4),
        ppo=PpoConfig(num_epochs=1, learning_rate=3e-3, queries_per_step=4),
        text_model=str(root / "tiny"),
        text_depth=3,
        num_samples=500,
    )


@pytest.fixture(scope="module")
def compared(config: CompareJob, ray_instance: None) -> list[Cell]:
    """A comparison of which one cell fails at first; the same command again does what was left."""
    cells = plan_cells(config)
    in_the_way = run_folders(config, cells[1])["sft"]
    intruder = threading.Thread(target=put_in_the_way, args=(config.output, in_the_way), daemon=True)
    intruder.start()
    with pytest.raises(JobError, match=r"1 of 2 cells failed \(tiny, seed 3, fold 1: OutputConflictError"):
        run_compare(config)
    finished = {path: path.stat().st_mtime_ns for path in cells[0].folder.rglob("*.*") if path.is_file()}
    logs = [cell_log(cell) for cell in cells]
    in_the_way.unlink()
    assert run_compare(config).state == "resumed"
    assert [cell_log(cell) for cell in cells] == logs
    assert {path: path.stat().st_mtime_ns for path in finished if path.name != ".lock"} == {
        path: written for path, written in finished.items() if path.name != ".lock"
    }
    return cells


def put_in_the_way(output: Path, folder: Path) -> None:
    """Put a file where a cell's folder would go, as soon as the comparison has claimed its own."""
    deadline = time.monotonic() + INTRUSION_TIMEOUT_S
    while not (output / MANIFEST).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("in the way")


def test_every_method_has_its_place_in_both_tables(config: CompareJob, compared: list[Cell]) -> None:
    comparison = json.loads((config.output / "comparison.json").read_text())
    rows = {(row["model"], row["method"]): row for row in comparison["rows"]}
    assert list(rows) == [
        *(("", name) for name in ("floor", "random", "bm25")),
        *(("tiny", method) for method in METHODS),
        ("", "ideal"),
    ]
    for (model, method), row in rows.items():
        lacks = set() if model else {"pairwise_loss"}
        assert set(row["values"]) == {*PREFERENCE_METRICS, *RANKING_METRICS} - lacks, method
    ideal, floor = rows["", "ideal"]["values"], rows["", "floor"]["values"]
    for name in ("pairwise_accuracy", "top1_accuracy", *RANKING_METRICS):
        assert ideal[name]["mean"] == pytest.approx(1.0, abs=0.1 if name in TEXT_METRICS else 1e-6)
        assert floor[name]["mean"] < rows["", "random"]["values"][name]["mean"] < ideal[name]["mean"]
    untrained = rows["tiny", "untrained"]["values"]["pairwise_accuracy"]["mean"]
    for method in METHODS[1:]:
        assert rows["tiny", method]["values"]["pairwise_accuracy"]["mean"] > max(untrained, 0.6), method
    for method, own in comparison["stage_seconds"]["tiny"].items():
        steps = [
            sum(line["step_s"] for line in cell_log(cell) if line["stage"] == method and "loss" in line)
            for cell in compared
        ]
        assert len(own) == len(compared)
        assert all(wall > stepped for wall, stepped in zip(own, steps, strict=True)), method
    page = (config.output / COMPARISON_PAGE).read_text()
    for line in ("| tiny | ppo |", "| tiny | dpo − sft |", "![cost](cost.png)"):
        assert line in page
    names = sorted(path.name for path in config.output.glob("*.png"))
    assert names == ["cost.png", "learning-tiny.png", "reliability-tiny.png"]


def test_every_query_is_tested_once_by_the_model_of_its_fold(
    config: CompareJob, compared: list[Cell]
) -> None:
    rows = rows_of(read_table(config.output / "per_query.parquet", PER_QUERY))
    tested = Counter((method, query_id) for query_id, _, method, _, metric, _ in rows if metric == "cosine")
    queries = read_queries(config.prepared / "queries.parquet")
    for method in METHODS:
        assert {q: n for (name, q), n in tested.items() if name == method} == dict.fromkeys(queries, 1)
    for cell in compared:
        for method, artefact in artefacts(config, cell).items():
            run = read_shards(run_folders(config, cell)[method] / "data", RUN)
            assert set(run.column("model_digest").to_pylist()) == {artefact_digest(artefact)}


def test_an_artefact_states_the_calibration_of_its_own_scores_on_the_dev_queries(
    config: CompareJob, compared: list[Cell]
) -> None:
    queries = read_queries(config.prepared / "queries.parquet")
    documents = read_documents(config.prepared / "corpus.parquet")
    for cell in compared:
        rows = held_out_rows(config.prepared, fold=cell.fold, documents=documents)
        for method in METHODS[1:]:
            artefact = artefacts(config, cell)[method]
            pairs = [(queries[row.query_id], documents[row.doc_id]) for row in rows]
            scores = load_artefact(artefact).score_pairs(pairs)
            targets = [row.grade / HIGHEST_GRADE for row in rows]
            found = read_spec(artefact).calibration
            expected = fit_platt(scores, targets)
            assert found is not None
            assert found.slope == pytest.approx(expected.slope, rel=1e-2)
            assert found.intercept == pytest.approx(expected.intercept, rel=1e-2)


def test_only_another_measurement_is_made_anew(config: CompareJob, compared: list[Cell]) -> None:
    page = config.output / COMPARISON_PAGE
    before, logs = page.read_text(), [cell_log(cell) for cell in compared]
    written = page.stat().st_mtime_ns
    assert run_compare(config).state == "finished"
    assert page.stat().st_mtime_ns == written
    assert run_compare(replace(config, text_depth=2)).state == "resumed"
    assert "each of the first 2 ranks" in page.read_text() != before
    assert [cell_log(cell) for cell in compared] == logs
