"""Measures of documents in, means over queries with intervals out; methods compared on what they share."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import TYPE_CHECKING

from rerank_core.errors import DataError
from rerank_core.evaluation.significance import Interval, bootstrap_interval, paired_interval

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    Measures = Mapping[str, float]
    DocumentMeasures = Mapping[tuple[str, str], Measures]
    """`measures[query_id, doc_id][measure]`"""


@dataclass(frozen=True, slots=True)
class MeasuredDocuments:
    """Documents that were measured: with which model (`name`), and by what (`kind`)."""

    name: str
    kind: str
    measures: DocumentMeasures


@dataclass(frozen=True, slots=True)
class MeanRow:
    """The mean over queries of each query's mean over its documents, with the interval over queries."""

    name: str
    kind: str
    num_queries: int
    num_documents: int
    values: Mapping[str, Interval]


@dataclass(frozen=True, slots=True)
class Difference:
    """`first − second` of one measure, each a (name, kind), over the documents that both have.

    Queries are the unit of the interval.
    """

    first: tuple[str, str]
    second: tuple[str, str]
    measure: str
    num_queries: int
    num_documents: int
    difference: Interval


Pair = tuple[MeasuredDocuments, MeasuredDocuments]


def mean_row(measured: MeasuredDocuments, *, num_samples: int, seed: int) -> MeanRow:
    """Return the row of some documents, all of which have the same measures.

    Raises:
        DataError: there is no document.
    """
    if not measured.measures:
        raise DataError(f"{measured.name} {measured.kind}: no document was measured")
    names = next(iter(measured.measures.values())).keys()
    return MeanRow(
        name=measured.name,
        kind=measured.kind,
        num_queries=len({query_id for query_id, _ in measured.measures}),
        num_documents=len(measured.measures),
        values={
            name: bootstrap_interval(
                _query_means(measured.measures, name, measured.measures), num_samples=num_samples, seed=seed
            )
            for name in names
        },
    )


def name_pairs(measured: Sequence[MeasuredDocuments]) -> list[Pair]:
    """Return every two of one kind and different names, the later first."""
    return [(later, earlier) for earlier, later in combinations(measured, 2) if earlier.kind == later.kind]


def kind_pairs(measured: Sequence[MeasuredDocuments], *, kind: str) -> list[Pair]:
    """Return each of a kind beside every other kind of its name."""
    return [
        (own, other)
        for own in measured
        for other in measured
        if own.kind == kind != other.kind and own.name == other.name
    ]


def paired_differences(
    pairs: Sequence[Pair], *, measures: Sequence[str], num_samples: int, seed: int
) -> list[Difference]:
    """Return the difference of each pair in each measure, first minus second.

    Only documents that both measured for the same query count; a pair that shares none has no difference.
    Nothing is adjusted for there being several.
    """
    return [
        _difference(first, second, measure, num_samples=num_samples, seed=seed)
        for first, second in pairs
        if first.measures.keys() & second.measures.keys()
        for measure in measures
    ]


def _difference(
    first: MeasuredDocuments, second: MeasuredDocuments, measure: str, *, num_samples: int, seed: int
) -> Difference:
    common = first.measures.keys() & second.measures.keys()
    values = _query_means(first.measures, measure, common)
    baseline = _query_means(second.measures, measure, common)
    return Difference(
        first=(first.name, first.kind),
        second=(second.name, second.kind),
        measure=measure,
        num_queries=len(values),
        num_documents=len(common),
        difference=paired_interval(values, baseline, num_samples=num_samples, seed=seed),
    )


def _query_means(
    measures: DocumentMeasures, measure: str, keys: Collection[tuple[str, str]]
) -> dict[str, float]:
    by_query: dict[str, list[float]] = {}
    for query_id, doc_id in sorted(keys):
        by_query.setdefault(query_id, []).append(measures[query_id, doc_id][measure])
    return {query_id: fmean(values) for query_id, values in by_query.items()}
