"""What is chosen to be said first, and how it is said."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rerank_core.errors import DataError
from rerank_core.evaluation.findings import (
    DEPTH,
    ExplainedDocument,
    Findings,
    MetricTable,
    RankedDocument,
    RankedQuery,
    chosen_queries,
    fallback_line,
    finding,
    largest_moves,
    most_telling,
    ndcg_share,
    row_label,
    signed,
    telling_lines,
)
from rerank_core.evaluation.ranking_metrics import evaluate, metrics
from rerank_core.evaluation.significance import Interval
from rerank_core.records import Document, Query, Ranking


def test_the_shares_of_a_query_add_up_to_its_change_of_ndcg() -> None:
    grades = {"a": 9, "b": 5, "c": 0, "d": 3, "e": 1}
    first, second = ("c", "b", "e", "a", "x"), ("a", "e", "x", "b", "c")  # d is judged, but no candidate
    moved = [
        RankedDocument(Document(d, ""), grades.get(d), first.index(d) + 1, second.index(d) + 1, score=0.0)
        for d in first
    ]

    change = sum(ndcg_share(ranked, grades.values()) for ranked in moved)

    measured = metrics(relevant_from=1)
    before, after = (
        evaluate({"q": Ranking("q", ids, (0.0,) * 5)}, {"q": grades}, measured=measured)["ndcg_burges@10"][
            "q"
        ]
        for ids in (first, second)
    )
    assert change == pytest.approx(after - before, abs=1e-9)


def test_a_rank_below_the_cut_adds_nothing() -> None:
    ranked = RankedDocument(Document("a", ""), 2, first_stage_rank=DEPTH + 5, rank=DEPTH + 1, score=0.0)
    assert ndcg_share(ranked, [2]) == 0.0


def test_a_query_without_a_relevant_document_has_no_shares() -> None:
    assert ndcg_share(RankedDocument(Document("a", ""), 0, 2, 1, score=0.0), [0, 0]) == 0.0


def test_numbers_are_typeset_with_their_sign_and_zero_has_none() -> None:
    assert [signed(v) for v in (0.12, -0.12, 0.0, -0.0001)] == ["+0.120", "−0.120", "0.000", "0.000"]


def test_metric_labels_name_the_gain(metric_table: MetricTable) -> None:
    labels = [metric_table.label(name) for name in ("ndcg_burges@10", "ndcg@5", "mrr", "map")]
    assert labels == ["NDCG@10 (gain 2^g−1)", "NDCG@5 (linear gain)", "MRR", "MAP"]


def test_runs_keep_their_name_and_baselines_get_one(metric_table: MetricTable) -> None:
    labels = [row_label(row) for row in metric_table.rows]
    assert labels == [
        "floor (ideal reversed)",
        "random order",
        "BM25 (first stage)",
        "dpo",
        "bm25+dpo",
        "ideal order",
    ]


def _changed(name: str, change: float) -> RankedQuery:
    return RankedQuery(Query(name, name), (), (), first_stage_value=0.5, value=0.5 + change)


def test_chosen_queries_are_two_gains_the_median_and_the_largest_loss() -> None:
    queries = [
        _changed(n, c) for n, c in (("a", 0), ("b", 0.3), ("c", -0.4), ("d", 0.2), ("e", -0.1), ("f", 0.1))
    ]
    assert [q.query.query_id for q in chosen_queries(queries)] == ["b", "d", "f", "c"]


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_few_queries_are_all_chosen_once(count: int) -> None:
    queries = [_changed(str(n), -n / 10) for n in range(count)]
    assert chosen_queries(queries) == tuple(queries)


def test_largest_moves_count_losses_like_gains_and_leave_out_what_changed_nothing(
    ranked_query: RankedQuery,
) -> None:
    moves = largest_moves([ranked_query], limit=5)
    assert [ranked.document.doc_id for _, ranked in moves] == ["good", "bad"]
    assert len(largest_moves([ranked_query], limit=1)) == 1


def test_the_most_telling_document_is_highly_graded(explained: tuple[ExplainedDocument, ...]) -> None:
    bad, good = explained
    risen_far = replace(bad, ranked=replace(bad.ranked, first_stage_rank=9))
    assert most_telling([risen_far, good]) is good


def test_without_a_highly_graded_document_the_largest_rise_counts(
    explained: tuple[ExplainedDocument, ...],
) -> None:
    bad, _ = explained
    risen = replace(bad, ranked=replace(bad.ranked, first_stage_rank=9))
    assert most_telling([bad, risen]) is risen


def test_a_query_that_was_trained_on_is_not_told_of_while_there_is_another(
    explained: tuple[ExplainedDocument, ...],
) -> None:
    bad, good = explained
    assert most_telling([bad, replace(good, is_tested=False)]) is bad


def test_nothing_attributed_is_refused_with_a_remedy() -> None:
    with pytest.raises(DataError, match="whyrank attribute"):
        most_telling([])


def test_the_finding_names_both_intervals_and_what_they_exclude(findings: Findings) -> None:
    assert finding(findings) == (
        "Over 2 queries, BM25 reaches 0.600 in NDCG@10 (gain 2^g−1); "
        "bm25+dpo reaches 0.700, better by 0.100 (95% interval +0.050 to +0.150, excludes 0); "
        "dpo reaches 0.620, not proven different, by +0.020 (95% interval −0.030 to +0.070, includes 0)."
    )


def test_a_loss_is_called_worse(findings: Findings) -> None:
    table = findings.metrics
    lost = {table.headline: Interval(-0.2, -0.3, -0.1)}
    rows = tuple(
        replace(r, differences=lost) if r.kind == "run" else r for r in table.rows if r.kind != "fusion"
    )
    assert "worse by 0.200 (95% interval −0.300 to −0.100, excludes 0)" in finding(
        replace(findings, metrics=replace(table, rows=rows))
    )


def test_a_run_that_was_not_evaluated_is_refused(findings: Findings) -> None:
    with pytest.raises(DataError, match="no run named 'sft'"):
        finding(replace(findings, run_name="sft"))


def test_telling_lines_name_metric_rise_and_fallback_rate(findings: Findings) -> None:
    metric, rise, fallback = telling_lines(findings)
    assert "excludes 0" in metric
    assert rise.startswith("Largest rise: “Arctic ice” (grade 3) from BM25 rank 3 to rank 1 for “arctic ice”")
    assert "“ice” +0.80" in rise
    assert fallback == (
        "1 of 2 explanations written with attributions passed verification, "
        "1 replaced by the template sentence (fallback rate 50%); without attributions 1 of 2 passed."
    )


def test_a_best_document_that_did_not_rise_is_said_to(findings: Findings) -> None:
    bad = findings.explained[0]
    unjudged = replace(bad, ranked=replace(bad.ranked, grade=None, document=Document("bad", "x")))
    without_words = replace(unjudged, attribution=replace(bad.attribution, units=(), values=()))
    _, rise, _ = telling_lines(replace(findings, explained=(without_words,)))
    assert rise.startswith("No attributed document of a high grade rose; the best-placed: “bad” (not judged)")
    assert rise.endswith("words that lift it most: none.")


def test_fallback_line_without_texts(explained: tuple[ExplainedDocument, ...]) -> None:
    silent = [replace(item, with_attribution=None, without_attribution=None) for item in explained]
    assert fallback_line(silent) == "No explanation was written with attributions."
    one_sided = [replace(item, without_attribution=None) for item in explained]
    assert fallback_line(one_sided).endswith("(fallback rate 50%).")
