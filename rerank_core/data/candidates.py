"""Each query's first-stage list, without a look at any grade."""

from __future__ import annotations

from collections.abc import Collection as Some
from collections.abc import Mapping, Sequence
from typing import Protocol

from rerank_core.protocols import Retriever
from rerank_core.records import Candidate, Document, GradedCandidate, Qrels, Query

Exclusions = Mapping[str, Some[str]]
"""`exclusions[query_id]`: the documents that must never be candidates of that query."""


class FirstStage(Retriever, Protocol):
    """A retriever that can also order a given pool."""

    def order(self, query: Query, documents: Sequence[Document]) -> list[Candidate]:
        """Return all the given documents as candidates, best first."""
        ...


def judged_pool(qrels: Qrels) -> dict[str, tuple[str, ...]]:
    """Return the judged documents of each query, sorted, whatever their grade."""
    return {query_id: tuple(sorted(grades)) for query_id, grades in qrels.items()}


def without_excluded(qrels: Qrels, exclusions: Exclusions) -> dict[str, dict[str, int]]:
    """Return the judgements of pairs that may be candidates; a query left without any is left out."""
    kept = {
        query_id: {
            doc_id: grade for doc_id, grade in grades.items() if doc_id not in exclusions.get(query_id, ())
        }
        for query_id, grades in qrels.items()
    }
    return {query_id: grades for query_id, grades in kept.items() if grades}


def retrieved_candidates(
    queries: Sequence[Query], first_stage: FirstStage, *, k: int, exclusions: Exclusions
) -> dict[str, list[Candidate]]:
    """Return the best `k` documents that are not excluded, for each query; ranks from 1."""
    candidates = {}
    for query in queries:
        excluded = exclusions.get(query.query_id, ())
        found = first_stage.retrieve(query, k=k + len(excluded))
        candidates[query.query_id] = _ranked([c for c in found if c.document.doc_id not in excluded][:k])
    return candidates


def pooled_candidates(
    queries: Sequence[Query],
    first_stage: FirstStage,
    *,
    pool: Mapping[str, Sequence[Document]],
    exclusions: Exclusions,
) -> dict[str, list[Candidate]]:
    """Return each query's whole pool, less what is excluded, in the first stage's order; ranks from 1."""
    candidates = {}
    for query in queries:
        excluded = exclusions.get(query.query_id, ())
        documents = [document for document in pool[query.query_id] if document.doc_id not in excluded]
        candidates[query.query_id] = _ranked(first_stage.order(query, documents))
    return candidates


def graded(
    query_id: str, candidates: Sequence[Candidate], grades: Mapping[str, int]
) -> list[GradedCandidate]:
    """Return one query's candidates with their grades; unjudged ones get grade 0."""
    return [
        GradedCandidate(query_id, c.document.doc_id, c.first_stage_rank, grades.get(c.document.doc_id, 0))
        for c in candidates
    ]


def _ranked(candidates: Sequence[Candidate]) -> list[Candidate]:
    return [Candidate(c.document, rank, c.first_stage_score) for rank, c in enumerate(candidates, start=1)]
