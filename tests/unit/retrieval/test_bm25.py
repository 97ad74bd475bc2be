"""BM25 against its formula, with a stated order of ties."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_core.records import Document, Query
from rerank_core.retrieval.bm25 import Bm25Retriever

TERMS = ["ice", "wind", "dust", "rain"]
texts = st.lists(st.sampled_from(TERMS), max_size=6).map(" ".join)


def retriever(*texts: str) -> Bm25Retriever:
    return Bm25Retriever([Document(f"d{n}", text) for n, text in enumerate(texts)])


def formula(query: str, corpus: list[str], *, k1: float = 1.2, b: float = 0.75) -> list[float]:
    """Lucene's BM25, written out."""
    bags = [text.split() for text in corpus]
    mean_length = sum(map(len, bags)) / len(bags)
    scores = [0.0] * len(bags)
    for term in query.split():
        containing = sum(term in bag for bag in bags)
        idf = math.log(1 + (len(bags) - containing + 0.5) / (containing + 0.5))
        for i, bag in enumerate(bags):
            count = bag.count(term)
            if count:
                scores[i] += idf * count / (count + k1 * (1 - b + b * len(bag) / mean_length))
    return scores


@given(texts, st.lists(texts, min_size=1, max_size=6))
def test_scores_follow_the_formula(query: str, corpus: list[str]) -> None:
    documents = [Document(f"d{n}", text) for n, text in enumerate(corpus)]
    scores = Bm25Retriever(documents).score(Query("q", query), documents)
    assert scores == pytest.approx(formula(query, corpus), abs=1e-5)


def test_title_counts_stop_words_do_not_and_words_are_stemmed() -> None:
    documents = [
        Document("a", "of the", title="Glaciers"),
        Document("b", "glaciated"),
        Document("c", "the of"),
    ]
    found = Bm25Retriever(documents).retrieve(Query("q", "the GLACIER"), k=3)
    assert [candidate.document.doc_id for candidate in found] == ["a", "b", "c"]
    assert found[0].first_stage_score > 0 == found[1].first_stage_score == found[2].first_stage_score


def test_equal_scores_are_ordered_by_doc_id() -> None:
    documents = [Document(doc_id, "ice") for doc_id in ("b", "c", "a")]
    found = Bm25Retriever(documents)
    assert [c.document.doc_id for c in found.retrieve(Query("q", "ice"), k=3)] == ["a", "b", "c"]
    assert [c.document.doc_id for c in found.order(Query("q", "wind"), documents)] == ["a", "b", "c"]


def test_a_small_corpus_is_returned_whole_with_ranks_from_1() -> None:
    found = retriever("ice", "ice wind").retrieve(Query("q", "wind"), k=10)
    assert [(c.document.doc_id, c.first_stage_rank) for c in found] == [("d1", 1), ("d0", 2)]


def test_a_pool_is_ordered_by_the_statistics_of_the_whole_corpus() -> None:
    found = retriever("ice wind", "ice", "ice", "rain rain wind", "dust")
    whole = found.retrieve(Query("q", "ice rain"), k=5)
    pool = [candidate.document for candidate in whole if candidate.document.doc_id in ("d0", "d3")]
    ordered = found.order(Query("q", "ice rain"), pool[::-1])
    scores = {candidate.document.doc_id: candidate.first_stage_score for candidate in whole}
    assert [c.first_stage_score for c in ordered] == sorted((scores["d0"], scores["d3"]), reverse=True)
    assert [c.first_stage_rank for c in ordered] == [1, 2]


@pytest.mark.parametrize("query", ["", "the", "unknown"])
def test_a_query_without_known_words_scores_zero(query: str) -> None:
    assert [c.first_stage_score for c in retriever("ice", "wind").retrieve(Query("q", query), k=2)] == [0, 0]


def test_a_corpus_without_words_scores_zero() -> None:
    found = retriever("!", "?")
    assert [c.document.doc_id for c in found.retrieve(Query("q", "ice"), k=2)] == ["d0", "d1"]
    assert [c.first_stage_score for c in found.retrieve(Query("q", "ice"), k=2)] == [0, 0]


def test_words_that_a_query_shares_weigh_what_bm25_gives_them_once() -> None:
    found = retriever("ice wind", "ice", "rain")
    ice = math.log(1 + 1.5 / 2.5)
    assert found.word_weights(
        Query("q", "the ice winds, hail"), ["Ice", "wind", "rain", "hail", "the", "!"]
    ) == (pytest.approx([ice, math.log(1 + 2.5 / 1.5), 0, 0, 0, 0]))
