"""What every run must be compared with: the same candidates in other orders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rerank_core.evaluation.ranking_metrics import Metric, QueryValues, evaluate
from rerank_core.records import Ranking

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from rerank_core.records import Candidate, Qrels


def first_stage_rankings(candidates: Mapping[str, Sequence[Candidate]]) -> dict[str, Ranking]:
    """Return each query's candidates in the order of the first stage."""
    rankings = {}
    for query_id, found in candidates.items():
        ordered = sorted(found, key=lambda candidate: candidate.first_stage_rank)
        scores = tuple(candidate.first_stage_score for candidate in ordered)
        rankings[query_id] = Ranking(
            query_id, tuple(candidate.document.doc_id for candidate in ordered), scores
        )
    return rankings


def ideal_rankings(candidates: Mapping[str, Sequence[Candidate]], qrels: Qrels) -> dict[str, Ranking]:
    """Return the best order of each query's candidates: by grade, equal grades in the first stage's order.

    Its NDCG is below 1 where the first stage missed a relevant document: no reranker can do better.
    """
    return {
        query_id: _by_grade(query_id, ranking.doc_ids, grades=qrels[query_id])
        for query_id, ranking in first_stage_rankings(candidates).items()
    }


def _by_grade(query_id: str, doc_ids: Sequence[str], *, grades: Mapping[str, int]) -> Ranking:
    """Return documents by falling grade, those of one grade as they stand; a score is a grade."""
    ordered = sorted(doc_ids, key=lambda doc_id: -grades.get(doc_id, 0))  # stable
    return Ranking(query_id, tuple(ordered), tuple(float(grades.get(d, 0)) for d in ordered))


def expert_rankings(
    candidates: Mapping[str, Sequence[Candidate]], qrels: Qrels, *, rng: np.random.Generator
) -> dict[str, Ranking]:
    """Return a best order of each query's candidates: by grade, equal grades in random order."""
    shuffled = random_rankings(candidates, rng=rng)
    return {
        query_id: _by_grade(query_id, ranking.doc_ids, grades=qrels[query_id])
        for query_id, ranking in shuffled.items()
    }


def floor_rankings(candidates: Mapping[str, Sequence[Candidate]], qrels: Qrels) -> dict[str, Ranking]:
    """Return the worst order of each query's candidates: the ideal one reversed."""
    return {
        query_id: Ranking(query_id, ranking.doc_ids[::-1], tuple(-score for score in ranking.scores[::-1]))
        for query_id, ranking in ideal_rankings(candidates, qrels).items()
    }


def random_rankings(
    candidates: Mapping[str, Sequence[Candidate]], *, rng: np.random.Generator
) -> dict[str, Ranking]:
    """Return each query's candidates in a random order, whatever the order they come in."""
    return _shuffled(_sorted_ids(candidates), rng)


def random_values(
    candidates: Mapping[str, Sequence[Candidate]],
    qrels: Qrels,
    *,
    measured: Sequence[Metric],
    num_permutations: int,
    rng: np.random.Generator,
) -> dict[str, QueryValues]:
    """Return `values[metric name][query_id]`, each the mean over random orders of the query's candidates."""
    doc_ids = _sorted_ids(candidates)
    sums = {metric.name: dict.fromkeys(doc_ids, 0.0) for metric in measured}
    for _ in range(num_permutations):
        values = evaluate(_shuffled(doc_ids, rng), qrels, measured=measured)
        for name, value_by_query in values.items():
            for query_id, value in value_by_query.items():
                sums[name][query_id] += value
    return {name: {q: total / num_permutations for q, total in found.items()} for name, found in sums.items()}


def _sorted_ids(candidates: Mapping[str, Sequence[Candidate]]) -> dict[str, list[str]]:
    return {
        query_id: sorted(candidate.document.doc_id for candidate in candidates[query_id])
        for query_id in sorted(candidates)
    }


def _shuffled(doc_ids: Mapping[str, Sequence[str]], rng: np.random.Generator) -> dict[str, Ranking]:
    rankings = {}
    for query_id, found in doc_ids.items():
        order = tuple(found[i] for i in rng.permutation(len(found)))
        rankings[query_id] = Ranking(query_id, order, tuple(float(-rank) for rank in range(len(order))))
    return rankings
