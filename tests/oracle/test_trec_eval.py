"""Our metrics against trec_eval's own code (pytrec_eval), for both gains."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import pytrec_eval

from rerank_core.data.candidates import retrieved_candidates
from rerank_core.data.loading import load_collection, load_exclusions
from rerank_core.evaluation.baselines import first_stage_rankings
from rerank_core.evaluation.ranking_metrics import evaluate, metrics
from rerank_core.records import Ranking
from rerank_core.retrieval.bm25 import Bm25Retriever

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rerank_core.records import Qrels

DATA = Path(os.environ.get("WHYRANK_DATA", Path(__file__).parents[3] / "shared" / "data"))
LINEAR = {"ndcg@5": "ndcg_cut_5", "ndcg@10": "ndcg_cut_10", "mrr": "recip_rank", "map": "map"}
EXPONENTIAL = {"ndcg_burges@5": "ndcg_cut_5", "ndcg_burges@10": "ndcg_cut_10"}


def oracle(
    rankings: Mapping[str, Ranking], qrels: Qrels, *, gain: Callable[[int], int], relevant_from: int
) -> dict[str, dict[str, float]]:
    """trec_eval's values by query, then measure; falling scores fix the order of each ranking."""
    mapped = {q: {doc_id: gain(grade) for doc_id, grade in grades.items()} for q, grades in qrels.items()}
    run = {q: {d: -float(place) for place, d in enumerate(r.doc_ids)} for q, r in rankings.items()}
    measures = {"ndcg_cut_5", "ndcg_cut_10", "recip_rank", "map"}
    evaluator = pytrec_eval.RelevanceEvaluator(mapped, measures, relevance_level=relevant_from)
    found: dict[str, dict[str, float]] = evaluator.evaluate(run)
    return found


def assert_agrees(rankings: Mapping[str, Ranking], qrels: Qrels, *, relevant_from: int) -> None:
    ours = evaluate(rankings, qrels, measured=metrics(relevant_from=relevant_from))
    for gain, names in ((lambda grade: grade, LINEAR), (lambda grade: 2**grade - 1, EXPONENTIAL)):
        theirs = oracle(rankings, qrels, gain=gain, relevant_from=relevant_from)
        for name, measure in names.items():
            expected = {query_id: theirs[query_id][measure] for query_id in rankings}
            assert ours[name] == pytest.approx(expected, abs=1e-6), name


@pytest.mark.parametrize("relevant_from", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_generated_rankings_agree(seed: int, relevant_from: int) -> None:
    rng = np.random.default_rng(seed)
    rankings, qrels = {}, {}
    for number in range(40):
        query_id = f"q{number}"
        judged = rng.choice(60, size=rng.integers(1, 30), replace=False)
        qrels[query_id] = {
            f"d{n}": int(grade) for n, grade in zip(judged, rng.integers(0, 5, len(judged)), strict=True)
        }
        ranked = tuple(f"d{n}" for n in rng.permutation(60)[: rng.integers(1, 60)])
        rankings[query_id] = Ranking(query_id, ranked, tuple(-float(i) for i in range(len(ranked))))
    assert_agrees(rankings, qrels, relevant_from=relevant_from)


@pytest.mark.skipif(not (DATA / "cranfield").is_dir(), reason="WHYRANK_DATA names no folder with cranfield")
def test_bm25_over_cranfield_agrees_and_is_as_good_as_published() -> None:
    collection = load_collection(DATA / "cranfield")
    queries = [collection.queries[query_id] for query_id in collection.qrels]
    exclusions = load_exclusions(DATA / "cranfield" / "source_docs.tsv", collection)
    first_stage = Bm25Retriever(list(collection.documents.values()))
    rankings = first_stage_rankings(retrieved_candidates(queries, first_stage, k=50, exclusions=exclusions))
    assert_agrees(rankings, collection.qrels, relevant_from=1)
    values = evaluate(rankings, collection.qrels, measured=metrics(relevant_from=1))["ndcg@10"]
    assert np.mean(list(values.values())) == pytest.approx(0.4095, abs=0.002)
