"""The shipped fakes do what their docstrings say."""

import pytest

from rerank_core.errors import ConfigError
from rerank_core.records import Document, Query
from rerank_core.retrieval.bm25 import Bm25Retriever
from rerank_core.testing import AdditiveScorer, OverlapScorer, planted_world

QUERY = Query("q", "Sea ice of the sea")


def test_overlap_counts_distinct_query_words_in_title_and_text():
    documents = [Document("a", "ICE, ice", title="Sea"), Document("b", "warm"), Document("c", "")]
    assert OverlapScorer().score(QUERY, documents) == [2.0, 0.0, 0.0]


def test_additive_scorer_adds_the_weight_of_every_occurrence():
    scorer = AdditiveScorer({"Ice": 2.0, "sea": -0.5})
    assert scorer.score(QUERY, [Document("a", "ice, ice", title="Sea"), Document("b", "warm")]) == [3.5, 0.0]


@pytest.mark.parametrize("scorer", [OverlapScorer(), AdditiveScorer({})])
def test_the_fakes_read_the_whole_document(scorer):
    document = Document("a", "ice", title="Sea")
    assert scorer.visible_span(QUERY, document) == (0, len(document.content))


def test_planted_world_has_one_document_of_each_grade_per_query():
    world = planted_world(12, 83, seed=1)
    assert len(world.queries) == 12
    assert len(world.documents) == 83
    assert world.pool is not None
    for query_id, grades in world.qrels.items():
        assert sorted(grades.values()) == list(range(10))
        assert world.pool[query_id] == tuple(sorted(grades))
        assert set(grades) <= set(world.documents)


def test_in_a_planted_world_word_overlap_sees_no_difference():
    world = planted_world(6, 60, seed=2)
    assert world.pool is not None
    for query_id, pool in world.pool.items():
        documents = [world.documents[doc_id] for doc_id in pool]
        assert len(set(OverlapScorer().score(world.queries[query_id], documents))) == 1
        assert len({len(document.content.split()) for document in documents}) == 1


def test_in_a_planted_world_bm25_ties_the_pool_and_finds_it():
    world = planted_world(6, 64, seed=2)
    retriever = Bm25Retriever(list(world.documents.values()))
    for query_id, grades in world.qrels.items():
        found = retriever.retrieve(world.queries[query_id], k=10)
        assert len({round(candidate.first_stage_score, 5) for candidate in found}) == 1
        assert {candidate.document.doc_id for candidate in found} == set(grades)


def test_in_a_planted_world_the_same_word_has_the_same_grade_everywhere():
    world = planted_world(30, 300, seed=3)
    grades_of_word: dict[str, set[int]] = {}
    for grades in world.qrels.values():
        for doc_id, grade in grades.items():
            for word in world.documents[doc_id].text.split():
                grades_of_word.setdefault(word, set()).add(grade)
    decisive = [word for word, grades in grades_of_word.items() if len(grades) == 1]
    assert len(decisive) == 30  # ten words for each of three qualities


def test_in_a_planted_world_identifiers_do_not_give_the_grade_away():
    world = planted_world(20, 200, seed=4)
    sorted_by_id = [[grades[doc_id] for doc_id in sorted(grades)] for grades in world.qrels.values()]
    assert all(grades not in (list(range(10)), list(range(9, -1, -1))) for grades in sorted_by_id)
    assert len({tuple(grades) for grades in sorted_by_id}) == 20


def test_queries_share_documents_where_there_are_few():
    world = planted_world(4, 20, seed=5)
    assert world.qrels["q0000"] == world.qrels["q0002"]
    assert world.qrels["q0000"] != world.qrels["q0001"]


def test_a_planted_world_depends_on_its_seed_alone():
    assert planted_world(5, 57, seed=6) == planted_world(5, 57, seed=6)
    assert planted_world(5, 57, seed=6) != planted_world(5, 57, seed=7)


@pytest.mark.parametrize("num_documents", [9, 1010])
def test_a_planted_world_refuses_a_size_it_cannot_have(num_documents):
    with pytest.raises(ConfigError, match=f"10 or more, and below 1010, got {num_documents}"):
        planted_world(1, num_documents, seed=0)
