"""Small findings about three documents, one of them hostile; frozen, so that all tests share them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rerank_core.attribution.rank_flip import RankFlip
from rerank_core.evaluation.findings import (
    ExplainedDocument,
    Findings,
    JobRecord,
    MetricRow,
    MetricTable,
    RankedDocument,
    RankedQuery,
)
from rerank_core.evaluation.significance import Interval
from rerank_core.explanation.task import CONTRAST_TEMPLATE
from rerank_core.records import Attribution, Document, Explanation, Query, Unit
from rerank_core.text import words

METRIC = "ndcg_burges@10"
HOSTILE = "ice</div><script>alert('x')</script> ]]> \"lone &amp; $x_$ 冰 <img src=http://evil.example/x.png>"


def interval(mean: float, *, half: float = 0.05) -> Interval:
    return Interval(mean, mean - half, mean + half)


def attribution_of(document: Document, *, query_id: str, peak: str) -> Attribution:
    """A large value for one word, small values of both signs elsewhere."""
    units = [
        Unit(word.text, word.start, word.end, field)  # type: ignore[arg-type]
        for field, content in (("title", document.title), ("text", document.text))
        for word in words(content)
    ]
    values = [0.8 if u.text == peak else 0.1 if n % 2 else -0.1 for n, u in enumerate(units)]
    base, residual = -1.0, 1e-5
    return Attribution(
        query_id=query_id,
        doc_id=document.doc_id,
        score=base + sum(values) + residual,
        base_value=base,
        units=tuple(units),
        values=tuple(values),
        method="partition",
        num_evals=100,
        residual=residual,
        seed=0,
    )


def explanation_of(
    attribution: Attribution, *, cited: tuple[str, ...], with_attribution: bool
) -> Explanation:
    return Explanation(
        query_id=attribution.query_id,
        doc_id=attribution.doc_id,
        text=f"It speaks of {' and '.join(cited)}.",
        cited=cited,
        effects=("raised",) * len(cited),
        grounded=True,
        problems=(),
        with_attribution=with_attribution,
        fallback=False,
        prompt_tokens=90,
        generated_tokens=12,
        generator="scripted",
        template="explain_with_attribution" if with_attribution else "explain_without_attribution",
        num_attempts=1,
        asked_digest="",
    )


@pytest.fixture(scope="session")
def documents() -> dict[str, Document]:
    return {
        "good": Document(
            "good", "Sea ice extent\nfrom satellites.", title="Arctic ice", url="https://d.example/ice"
        ),
        "bad": Document("bad", HOSTILE, title="<b>bold</b>", url="javascript:alert(1)"),
        "plain": Document("plain", "Soil moisture."),
    }


@pytest.fixture(scope="session")
def ranked_query(documents: dict[str, Document]) -> RankedQuery:
    """Document good rises from 3 to 1, bad falls from 1 to 2, plain (not judged) from 2 to 3."""
    return RankedQuery(
        query=Query("q1", "arctic ice"),
        documents=(
            RankedDocument(documents["good"], grade=3, first_stage_rank=3, rank=1, score=0.6),
            RankedDocument(documents["bad"], grade=1, first_stage_rank=1, rank=2, score=-0.2),
            RankedDocument(documents["plain"], grade=None, first_stage_rank=2, rank=3, score=-0.9),
        ),
        grades=(3, 1),
        first_stage_value=0.6,
        value=1.0,
    )


@pytest.fixture(scope="session")
def metric_table() -> MetricTable:
    def row(name: str, kind: str, mean: float, *, change: float | None = None) -> MetricRow:
        differences = {} if change is None else {METRIC: interval(change), "mrr": interval(change)}
        return MetricRow(name, kind, 2, {METRIC: interval(mean), "mrr": interval(mean)}, differences)  # type: ignore[arg-type]

    return MetricTable(
        metrics=(METRIC, "mrr"),
        rows=(
            row("floor", "floor", 0.2),
            row("random", "random", 0.4),
            row("bm25", "first_stage", 0.6),
            row("dpo", "run", 0.62, change=0.02),
            row("bm25+dpo", "fusion", 0.7, change=0.1),
            row("ideal", "ideal", 1.0),
        ),
        gain="2^g-1",
        num_samples=1000,
        confidence=0.95,
    )


@pytest.fixture(scope="session")
def explained(ranked_query: RankedQuery) -> tuple[ExplainedDocument, ...]:
    """The fallen document first, then the risen one; the fallen one's text was replaced."""
    good, bad, _ = ranked_query.documents
    about_good = attribution_of(good.document, query_id="q1", peak="ice")
    about_bad = attribution_of(bad.document, query_id="q1", peak="script")
    replaced = replace(
        explanation_of(about_bad, cited=("script",), with_attribution=True),
        fallback=True,
        grounded=False,
        problems=("cites “glacier”, which the evidence lacks",),
    )
    unverified = replace(
        explanation_of(about_bad, cited=("glacier",), with_attribution=False),
        grounded=False,
        problems=("absent",),
    )
    return (
        ExplainedDocument(ranked_query.query, bad, 3, True, about_bad, replaced, unverified, None, None),
        ExplainedDocument(
            query=ranked_query.query,
            ranked=good,
            highest_grade=3,
            is_tested=True,
            attribution=about_good,
            with_attribution=explanation_of(about_good, cited=("Ice",), with_attribution=True),
            without_attribution=explanation_of(about_good, cited=("satellites",), with_attribution=False),
            flip=RankFlip((1, 2), rank=1, flipped_rank=2, score=-0.5),
            above_next=replace(
                explanation_of(about_good, cited=("Ice", "script"), with_attribution=True),
                text="It stands above the other one.",
                template=CONTRAST_TEMPLATE,
            ),
        ),
    )


@pytest.fixture(scope="session")
def findings(
    ranked_query: RankedQuery, metric_table: MetricTable, explained: tuple[ExplainedDocument, ...]
) -> Findings:
    job = JobRecord(
        job="score",
        folder="runs/dpo",
        seed=None,
        commit=None,
        wall_s=200.0,
        finished="2026-01-02T03:04:05+00:00",
        config='{\n  "split": "test"\n}',
        versions={"torch": "2.13.0"},
        digests={"config": "ab" * 32},
    )
    other = replace(ranked_query, query=Query("q2", HOSTILE), first_stage_value=0.9, value=0.5)
    return Findings("tiny", 2, "dpo", metric_table, (ranked_query, other), explained, (job,))
