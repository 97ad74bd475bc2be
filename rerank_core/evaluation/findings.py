"""What a report shows, as frozen findings, with the few worth saying first."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rerank_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rerank_core.attribution.rank_flip import RankFlip
    from rerank_core.evaluation.significance import Interval
    from rerank_core.records import Attribution, Document, Explanation, Query

RowKind = Literal["floor", "random", "first_stage", "run", "fusion", "ideal"]

DEPTH = 10
"""Ranks that a report looks at: those that NDCG@10 counts."""


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One way of ranking, measured; the maps are keyed by metric name."""

    name: str
    kind: RowKind
    num_queries: int
    values: Mapping[str, Interval]
    differences: Mapping[str, Interval]  # paired, to the first stage; empty where there is none


@dataclass(frozen=True, slots=True)
class MetricTable:
    """All rows of one evaluation; the first metric is the one that the report speaks of."""

    metrics: tuple[str, ...]
    rows: tuple[MetricRow, ...]
    gain: str
    num_samples: int
    confidence: float

    @property
    def headline(self) -> str:
        """The metric that the report speaks of."""
        return self.metrics[0]

    @property
    def first_stage(self) -> MetricRow:
        """The row that every other is compared with."""
        return next(row for row in self.rows if row.kind == "first_stage")

    def label(self, metric: str) -> str:
        """Return a metric's name for people, gain included."""
        name, _, depth = metric.partition("@")
        at_depth = f"@{depth}" if depth else ""
        if name == "ndcg_burges":
            return f"NDCG{at_depth} (gain {self.gain.replace('-', '−')})"
        return f"NDCG{at_depth} (linear gain)" if name == "ndcg" else f"{name.upper()}{at_depth}"


@dataclass(frozen=True, slots=True)
class RankedDocument:
    """A document's place in one query, before and after."""

    document: Document
    grade: int | None  # None where nobody judged it
    first_stage_rank: int
    rank: int
    score: float

    @property
    def rise(self) -> int:
        """How many ranks the document rose; negative where it fell."""
        return self.first_stage_rank - self.rank


@dataclass(frozen=True, slots=True)
class RankedQuery:
    """One query's candidates by rank, with all its judged grades and its headline metric before and after."""

    query: Query
    documents: tuple[RankedDocument, ...]
    grades: tuple[int, ...]
    first_stage_value: float
    value: float


@dataclass(frozen=True, slots=True)
class ExplainedDocument:
    """A document with its attribution and the texts about it (None where none was written)."""

    query: Query
    ranked: RankedDocument
    highest_grade: int  # judged in this query
    is_tested: bool  # the metrics cover this query: the scorer did not learn from it
    attribution: Attribution
    with_attribution: Explanation | None
    without_attribution: Explanation | None
    above_next: Explanation | None  # why it stands above the document at the next rank
    flip: RankFlip | None  # the few words without which it would stand lower, where they were searched
    of_query: Attribution | None = None  # of the words of the query next to it, where they were attributed


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One job that led to the report, from its manifest."""

    job: str
    folder: str
    seed: int | None
    commit: str | None
    wall_s: float  # from its first start to its end, pauses included
    finished: str
    config: str  # JSON
    versions: Mapping[str, str]
    digests: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything on the page."""

    collection: str
    relevant_from: int  # the lowest grade that MRR and MAP count as relevant
    run_name: str
    metrics: MetricTable
    queries: tuple[RankedQuery, ...]
    explained: tuple[ExplainedDocument, ...]
    jobs: tuple[JobRecord, ...]


def row_label(row: MetricRow) -> str:
    """Return a row's name for people."""
    labels = {
        "floor": "floor (ideal reversed)",
        "random": "random order",
        "first_stage": "BM25 (first stage)",
        "ideal": "ideal order",
    }
    return labels.get(row.kind, row.name)


def signed(value: float, *, digits: int = 3) -> str:
    """Return a number with its sign, typeset: `+0.120`, `−0.120`, and `0.000` without one."""
    text = f"{abs(value):.{digits}f}"
    return text if float(text) == 0 else f"{'+' if value > 0 else '−'}{text}"


def ndcg_share(ranked: RankedDocument, grades: Iterable[int]) -> float:
    """Return what one document's move adds to its query's NDCG@10 (gain 2^g-1).

    `grades` are all judged grades of the query. Summed over its candidates, this is its change of NDCG@10.
    """
    ideal = sum(_gain(g) * _discount(i) for i, g in enumerate(sorted(grades, reverse=True)[:DEPTH], start=1))
    if ideal == 0:
        return 0.0
    return _gain(ranked.grade or 0) * (_discount(ranked.rank) - _discount(ranked.first_stage_rank)) / ideal


def _gain(grade: int) -> float:
    return float(2**grade - 1)


def _discount(rank: int) -> float:
    return 1 / math.log2(rank + 1) if rank <= DEPTH else 0.0


def chosen_queries(queries: Sequence[RankedQuery]) -> tuple[RankedQuery, ...]:
    """Return up to four queries that show both sides: the two largest gains, the median, the largest loss.

    Ties in the change of the headline metric are broken by query_id.
    """
    ordered = sorted(queries, key=lambda q: (q.first_stage_value - q.value, q.query.query_id))
    places = sorted({0, 1, (len(ordered) - 1) // 2, len(ordered) - 1} & set(range(len(ordered))))
    return tuple(ordered[place] for place in places)


def largest_moves(
    queries: Sequence[RankedQuery], *, limit: int
) -> tuple[tuple[RankedQuery, RankedDocument], ...]:
    """Return the documents whose moves changed their query's NDCG@10 most, either way, largest first."""
    moves = [(abs(ndcg_share(d, q.grades)), q, d) for q in queries for d in q.documents]
    moves.sort(key=lambda move: (-move[0], move[1].query.query_id, move[2].rank))
    return tuple((query, ranked) for share, query, ranked in moves[:limit] if share > 0)


def most_telling(explained: Sequence[ExplainedDocument]) -> ExplainedDocument:
    """Return the highly graded document that rose most; ties by grade, then by the order given.

    Highly graded: at least half of the highest grade in its query. Where none is, all compete; but where one
    is of a tested query, only those of tested queries do.
    """
    if not explained:
        raise DataError("no document was attributed; run `whyrank attribute` with at least one document")
    allowed = [e for e in explained if e.is_tested] or explained
    good = [e for e in allowed if e.ranked.grade and e.ranked.grade >= e.highest_grade / 2]
    return max(good or allowed, key=lambda e: (e.ranked.rise, e.ranked.grade or 0))


def compared_rows(findings: Findings) -> tuple[MetricRow, ...]:
    """Return the row of the shown run, and that of its fusion where there is one.

    Raises:
        DataError: the run was not evaluated.
    """
    run = (findings.run_name, "run")
    fusion = (f"bm25+{findings.run_name}", "fusion")
    rows = {(row.name, row.kind): row for row in findings.metrics.rows}
    if run not in rows:
        raise DataError(
            f"the metrics have no run named {findings.run_name!r}; run `whyrank evaluate` with it"
        )
    return (rows[run], rows[fusion]) if fusion in rows else (rows[run],)


def finding(findings: Findings) -> str:
    """Return one sentence: how fusion and run compare with the first stage, with intervals."""
    table = findings.metrics
    before = f"BM25 reaches {_mean(table.first_stage, table)} in {table.label(table.headline)}"
    clauses = [_comparison(row, table) for row in reversed(compared_rows(findings))]
    return f"Over {table.first_stage.num_queries} queries, {'; '.join([before, *clauses])}."


def _comparison(row: MetricRow, table: MetricTable) -> str:
    change = row.differences[table.headline]
    found = "better by" if change.mean > 0 else "worse by"
    if not change.excludes_zero:
        found = "not proven different, by"
    span = f"{table.confidence:.0%} interval {signed(change.low)} to {signed(change.high)}"
    verdict = "excludes 0" if change.excludes_zero else "includes 0"
    size = f"{abs(change.mean):.3f}" if change.excludes_zero else signed(change.mean)
    return f"{row.name} reaches {_mean(row, table)}, {found} {size} ({span}, {verdict})"


def _mean(row: MetricRow, table: MetricTable) -> str:
    return f"{row.values[table.headline].mean:.3f}"


def telling_lines(findings: Findings) -> tuple[str, str, str]:
    """Return the metric against the first stage, the best rise with its words, and the fallback rate."""
    return finding(findings), _rise_line(most_telling(findings.explained)), fallback_line(findings.explained)


def _rise_line(telling: ExplainedDocument) -> str:
    ranked, attribution = telling.ranked, telling.attribution
    words = sorted(zip(attribution.values, attribution.units, strict=True), key=lambda pair: -pair[0])[:3]
    lifted = ", ".join(f"“{unit.text}” {signed(value, digits=2)}" for value, unit in words if value > 0)
    rose = (
        "Largest rise" if ranked.rise > 0 else "No attributed document of a high grade rose; the best-placed"
    )
    return (
        f"{rose}: “{ranked.document.title or ranked.document.doc_id}” "
        f"({'not judged' if ranked.grade is None else f'grade {ranked.grade}'}) "
        f"from BM25 rank {ranked.first_stage_rank} to rank {ranked.rank} for “{telling.query.text}”; "
        f"words that lift it most: {lifted or 'none'}."
    )


def fallback_line(explained: Sequence[ExplainedDocument]) -> str:
    """Return how many explanations passed verification, and the fallback rate with attributions."""
    with_words = [e.with_attribution for e in explained if e.with_attribution is not None]
    without = [e.without_attribution for e in explained if e.without_attribution is not None]
    if not with_words:
        return "No explanation was written with attributions."
    replaced = sum(explanation.fallback for explanation in with_words)
    line = (
        f"{_num_passed(with_words)} of {len(with_words)} explanations written with attributions passed "
        f"verification, {replaced} replaced by the template sentence "
        f"(fallback rate {replaced / len(with_words):.0%})"
    )
    return (
        f"{line}; without attributions {_num_passed(without)} of {len(without)} passed."
        if without
        else f"{line}."
    )


def _num_passed(explanations: Sequence[Explanation]) -> int:
    return sum(explanation.grounded and not explanation.fallback for explanation in explanations)
