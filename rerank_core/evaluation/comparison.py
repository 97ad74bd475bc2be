"""Runs beside floor, random, first stage and ideal: values per query in, a table with intervals out."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from rerank_core.errors import DataError
from rerank_core.evaluation.baselines import (
    first_stage_rankings,
    floor_rankings,
    ideal_rankings,
    random_values,
)
from rerank_core.evaluation.findings import MetricRow, MetricTable, RowKind
from rerank_core.evaluation.ranking_metrics import GAIN, NDCG_BURGES, Metric, QueryValues, evaluate
from rerank_core.evaluation.significance import bootstrap_interval, paired_interval
from rerank_core.ranking.contract import is_permutation, rank
from rerank_core.ranking.fusion import fuse

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from rerank_core.records import Candidate, Qrels, Ranking

FIRST_STAGE = "bm25"
RESERVED_NAMES = ("floor", "random", FIRST_STAGE, "ideal")
FUSION_WEIGHTS = tuple(tenth / 10 for tenth in range(1, 10))
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """One way of ranking, measured: `values[metric name][query_id]`."""

    name: str
    kind: RowKind
    values: Mapping[str, QueryValues]


def measure_baselines(
    candidates: Mapping[str, Sequence[Candidate]],
    qrels: Qrels,
    *,
    measured: Sequence[Metric],
    num_permutations: int,
    rng: np.random.Generator,
) -> dict[RowKind, MeasuredRun]:
    """Return floor, random, first stage and ideal, measured over the same candidates."""
    floor, first = floor_rankings(candidates, qrels), first_stage_rankings(candidates)
    random = random_values(candidates, qrels, measured=measured, num_permutations=num_permutations, rng=rng)
    return {
        "floor": MeasuredRun("floor", "floor", evaluate(floor, qrels, measured=measured)),
        "random": MeasuredRun("random", "random", random),
        "first_stage": MeasuredRun(FIRST_STAGE, "first_stage", evaluate(first, qrels, measured=measured)),
        "ideal": MeasuredRun(
            "ideal", "ideal", evaluate(ideal_rankings(candidates, qrels), qrels, measured=measured)
        ),
    }


def fused_rankings(
    rankings: Mapping[str, Ranking], candidates: Mapping[str, Sequence[Candidate]], *, weight: float
) -> dict[str, Ranking]:
    """Return the fusion of each ranking with the first stage's scores (see `rerank_core.ranking.fusion`)."""
    fused = {}
    for query_id, ranking in rankings.items():
        found = candidates[query_id]
        first = {candidate.document.doc_id: candidate.first_stage_score for candidate in found}
        scores = fuse(first, dict(zip(ranking.doc_ids, ranking.scores, strict=True)), weight=weight)
        fused[query_id] = rank(
            query_id,
            list(scores),
            scores=list(scores.values()),
            first_stage_ranks=[candidate.first_stage_rank for candidate in found],
        )
    return fused


def choose_weight(
    rankings: Mapping[str, Ranking], candidates: Mapping[str, Sequence[Candidate]], *, qrels: Qrels
) -> float:
    """Return the weight among 0.1 … 0.9 with the best mean NDCG@10 (gain 2^g-1), the smallest if equal.

    The queries given must not be those that the weight is then tested on.
    """
    measured = [Metric(NDCG_BURGES, NDCG_BURGES, NDCG_BURGES)]
    quality = {}
    for weight in FUSION_WEIGHTS:
        fused = fused_rankings(rankings, candidates, weight=weight)
        quality[weight] = fmean(evaluate(fused, qrels, measured=measured)[NDCG_BURGES].values())
    return max(FUSION_WEIGHTS, key=lambda weight: quality[weight])  # the first of equal ones


def check_candidates(rankings: Mapping[str, Ranking], candidates: Mapping[str, Sequence[Candidate]]) -> None:
    """Return if every ranking is a permutation of its query's candidates.

    Raises:
        DataError: one is not; names the query.
    """
    for query_id, ranking in rankings.items():
        doc_ids = [candidate.document.doc_id for candidate in candidates.get(query_id, ())]
        if not is_permutation(ranking, doc_ids):
            raise DataError(
                f"the run of query {query_id!r} does not rank its prepared candidates; "
                f"score this prepared folder"
            )


def compare(
    runs: Sequence[MeasuredRun], *, measured: Sequence[Metric], num_samples: int, seed: int
) -> MetricTable:
    """Return every run's mean per metric with its interval, and its paired difference from the first stage.

    Intervals are bootstrapped over queries. All runs must be measured on the same queries, and one must be
    the first stage, whose own differences are empty.

    Raises:
        DataError: the runs were measured on different queries.
    """
    baseline = next(run for run in runs if run.kind == "first_stage")
    rows = []
    for run in runs:
        values, differences = {}, {}
        for metric in measured:
            found = run.values[metric.name]
            values[metric.name] = bootstrap_interval(
                found, num_samples=num_samples, seed=seed, confidence=CONFIDENCE
            )
            if run is not baseline:
                differences[metric.name] = paired_interval(
                    found,
                    baseline.values[metric.name],
                    num_samples=num_samples,
                    seed=seed,
                    confidence=CONFIDENCE,
                )
        rows.append(MetricRow(run.name, run.kind, len(run.values[measured[0].name]), values, differences))
    names = tuple(metric.name for metric in measured)
    return MetricTable(names, tuple(rows), GAIN, num_samples, CONFIDENCE)
