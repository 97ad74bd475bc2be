"""Data, retrieval, ranking and evaluation, and the jobs on them, load neither torch nor Ray."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from jobs.config import ScoreJob
from jobs.manifest import finish_output, opened_output, scoring_digests
from jobs.shards import commit_shard, plan_shards
from rerank_core.evaluation.baselines import ideal_rankings
from rerank_core.formats import RUN, read_candidates, read_documents, read_qrels, table_of

ROOT = Path(__file__).resolve().parents[2]
LIGHT = (
    "rerank_core.data.loading",
    "rerank_core.retrieval.bm25",
    "rerank_core.ranking.pointwise",
    "rerank_core.evaluation.comparison",
    "jobs.prepare",
    "jobs.evaluate",
    "jobs.report",
    "serve.retriever",
    "serve.first_stage",
)
WITHOUT_RAY = "import sys; sys.modules['ray'] = None; import whyrank; sys.exit(whyrank.main())"
"""The command line where `import ray` fails, as where the extras are not installed."""


def test_the_light_modules_load_neither_torch_nor_ray() -> None:
    program = f"import sys, {', '.join(LIGHT)}; sys.exit(bool({{'torch', 'ray'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def whyrank_without_ray(*arguments: str | Path) -> None:
    command = [sys.executable, "-c", WITHOUT_RAY, *map(str, arguments)]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr


def write_ideal_run(prepared: Path, output: Path) -> None:
    """A run folder as `whyrank score` leaves it, in the best order."""
    documents = read_documents(prepared / "corpus.parquet")
    candidates = read_candidates(prepared / "candidates.parquet", documents)
    ideal = ideal_rankings(candidates, read_qrels(prepared / "qrels.parquet"))
    rows = [
        (query_id, doc_id, 1, 0.0, score, rank, "digest")
        for query_id, ranking in ideal.items()
        for rank, (doc_id, score) in enumerate(zip(ranking.doc_ids, ranking.scores, strict=True), start=1)
    ]
    config = ScoreJob(prepared=prepared, artefact=output, output=output)
    with opened_output(output, job="score", config=config, inputs=scoring_digests(prepared, fold=0)):
        (shard,) = plan_shards(output, [(query_id,) for query_id in ideal], size=len(ideal))
        commit_shard(output, shard, table_of(rows, RUN), key_columns=("query_id",), quarantined=())
        finish_output(output, results={})


def test_a_collection_is_prepared_and_a_run_evaluated_without_ray(tmp_path: Path) -> None:
    prepared, run, metrics = (tmp_path / name for name in ("prepared", "run", "metrics"))
    whyrank_without_ray("prepare", "--output", prepared)
    write_ideal_run(prepared, run)
    settings = ("--prepared", prepared, "--output", metrics, "--num-samples", "100")
    whyrank_without_ray("evaluate", *settings, "--runs", f"oracle={run}")
    rows = json.loads((metrics / "metrics.json").read_text(encoding="utf-8"))["rows"]
    means = {row["name"]: row["values"]["ndcg_burges@10"]["mean"] for row in rows}
    assert means["bm25"] < means["oracle"] == 1
