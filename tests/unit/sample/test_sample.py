"""The embedded sample is what its README says: complete, invented, graded, neither too easy nor too hard."""

from __future__ import annotations

import re
import runpy
import sys
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import numpy as np
import pytest

from rerank_core.data.candidates import graded, judged_pool, pooled_candidates
from rerank_core.data.loading import load_collection
from rerank_core.data.preferences import preference_pairs
from rerank_core.evaluation.baselines import first_stage_rankings, ideal_rankings, random_values
from rerank_core.evaluation.ranking_metrics import NDCG_BURGES, evaluate, metrics
from rerank_core.retrieval.bm25 import Bm25Retriever
from rerank_core.sample.overlap import describe, ngrams, pairwise_overlap, sample_texts

if TYPE_CHECKING:
    from rerank_core.records import Candidate, Collection

NUM_QUERIES, NUM_CANDIDATES = 94, 10
ADDRESS = re.compile(r"https?://|www\.|@")


@pytest.fixture(scope="module")
def sample() -> Collection:
    return load_collection("sample")


@pytest.fixture(scope="module")
def candidates(sample: Collection) -> dict[str, list[Candidate]]:
    pool = {q: [sample.documents[d] for d in doc_ids] for q, doc_ids in judged_pool(sample.qrels).items()}
    first_stage = Bm25Retriever(list(sample.documents.values()))
    return pooled_candidates(list(sample.queries.values()), first_stage, pool=pool, exclusions={})


# --- documents and queries


def test_there_are_94_queries_with_ten_judged_candidates_each(sample: Collection) -> None:
    assert len(sample.queries) == NUM_QUERIES
    assert {len(grades) for grades in sample.qrels.values()} == {NUM_CANDIDATES}
    assert sample.qrels.keys() == sample.queries.keys()
    assert sample.pool == judged_pool(sample.qrels)
    assert sample.relevant_from == 5
    assert sample.num_quarantined == 0


def test_there_are_at_least_240_documents_of_five_or_six_lines_with_a_title(sample: Collection) -> None:
    assert len(sample.documents) >= 240
    for document in sample.documents.values():
        assert 5 <= len(document.text.split("\n")) <= 6, document.doc_id
        assert all(line.strip() for line in document.text.split("\n")), document.doc_id
        assert document.title.strip(), document.doc_id


def test_every_address_lies_in_an_example_domain(sample: Collection) -> None:
    for document in sample.documents.values():
        address = urlsplit(document.url)
        assert address.scheme == "https", document.doc_id
        assert re.search(r"(^|\.)example\.(com|net|org|edu)$", address.hostname or ""), document.url
        assert not ADDRESS.search(document.content), document.doc_id


# --- grades


def test_in_every_query_the_fifth_grade_is_above_the_sixth(sample: Collection) -> None:
    for query_id, grades in sample.qrels.items():
        best_first = sorted(grades.values(), reverse=True)
        assert best_first[4] > best_first[5], query_id
        assert 0 <= best_first[-1] <= best_first[0] <= 9, query_id


def test_the_sample_gives_exactly_940_rows_and_2350_strict_pairs(
    sample: Collection, candidates: dict[str, list[Candidate]]
) -> None:
    rows = {q: graded(q, found, sample.qrels[q]) for q, found in candidates.items()}
    assert sum(map(len, rows.values())) == 940
    found = [preference_pairs(own, top=5, bottom=5) for own in rows.values()]
    pairs = [pair for own, _ in found for pair in own]
    assert (len(pairs), sum(dropped for _, dropped in found)) == (2350, 0)
    assert all(pair.chosen_grade > pair.rejected_grade for pair in pairs)
    assert len({(p.query_id, p.chosen_id, p.rejected_id) for p in pairs}) == 2350


# --- difficulty


def test_bm25_is_well_above_chance_and_well_below_the_best_order(
    sample: Collection, candidates: dict[str, list[Candidate]]
) -> None:
    measured = [
        metric for metric in metrics(relevant_from=sample.relevant_from) if metric.name == NDCG_BURGES
    ]
    rng = np.random.default_rng(0)
    chance = random_values(candidates, sample.qrels, measured=measured, num_permutations=50, rng=rng)
    bm25 = evaluate(first_stage_rankings(candidates), sample.qrels, measured=measured)
    ideal = evaluate(ideal_rankings(candidates, sample.qrels), sample.qrels, measured=measured)
    low, middle, high = (np.mean(list(values[NDCG_BURGES].values())) for values in (chance, bm25, ideal))
    assert high == pytest.approx(1.0)
    assert low + 0.1 < middle < high - 0.1, (low, middle, high)


# --- wording


def test_no_two_documents_share_five_percent_of_their_runs_of_five_words(sample: Collection) -> None:
    overlaps = pairwise_overlap(sample_texts(), n=5)
    assert len(overlaps) == len(sample.documents) * (len(sample.documents) - 1) // 2
    overlap, first, second = overlaps[0]
    assert overlap < 0.05, (first, second)


def test_the_module_prints_the_overlap_of_all_pairs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "rerank_core.sample.overlap")
    runpy.run_module("rerank_core.sample.overlap", run_name="__main__")
    assert capsys.readouterr().out.startswith("5-gram overlap of 39060 pairs: mean 0.0000")


def test_overlap_is_the_share_of_the_smaller_set_of_runs() -> None:
    texts = {"a": "one two three", "b": "One, two, THREE four five", "c": "six seven", "d": "six"}
    assert ngrams(texts["a"], n=2) == {("one", "two"), ("two", "three")}
    overlaps = {(first, second): overlap for overlap, first, second in pairwise_overlap(texts, n=2)}
    assert overlaps[("a", "b")] == 1.0
    assert overlaps[("a", "c")] == 0.0
    assert overlaps[("c", "d")] == 0.0
    assert len(overlaps) == 6


def test_the_description_counts_every_pair_once_and_names_the_largest() -> None:
    texts = {"a": "one two three", "b": "one two four", "c": "six seven eight"}
    lines = describe(pairwise_overlap(texts, n=2), n=2).splitlines()
    assert lines[0] == "2-gram overlap of 3 pairs: mean 0.166667, largest 0.5000"
    assert sum(int(line.split(": ")[1]) for line in lines[1:6]) == 3
    assert lines[6] == "  0.5000 a b"
