"""First-stage lists: depth, exclusions, pools and grades."""

from __future__ import annotations

from rerank_core.data.candidates import (
    graded,
    judged_pool,
    pooled_candidates,
    retrieved_candidates,
    without_excluded,
)
from rerank_core.records import Candidate, Document, GradedCandidate, Query
from rerank_core.retrieval.bm25 import Bm25Retriever

DOCUMENTS = {
    doc_id: Document(doc_id, text)
    for doc_id, text in {
        "a": "sea ice",
        "b": "sea ice extent",
        "c": "sea ice extent trends",
        "d": "desert dust",
    }.items()
}
QUERY = Query("q", "sea ice extent trends")


def first_stage() -> Bm25Retriever:
    return Bm25Retriever(list(DOCUMENTS.values()))


def listed(candidates: list[Candidate]) -> list[tuple[str, int]]:
    return [(candidate.document.doc_id, candidate.first_stage_rank) for candidate in candidates]


def test_the_best_k_are_retrieved_with_ranks_from_1() -> None:
    found = retrieved_candidates([QUERY], first_stage(), k=2, exclusions={})
    assert listed(found["q"]) == [("c", 1), ("b", 2)]


def test_an_excluded_document_gives_its_place_to_the_next() -> None:
    found = retrieved_candidates([QUERY], first_stage(), k=2, exclusions={"q": {"c"}, "other": {"b"}})
    assert listed(found["q"]) == [("b", 1), ("a", 2)]


def test_a_pool_is_kept_whole_in_first_stage_order() -> None:
    pool = {"q": [DOCUMENTS["d"], DOCUMENTS["a"], DOCUMENTS["c"]]}
    found = pooled_candidates([QUERY], first_stage(), pool=pool, exclusions={"q": {"a"}})
    assert listed(found["q"]) == [("c", 1), ("d", 2)]


def test_the_judged_pool_holds_every_judged_document_whatever_its_grade() -> None:
    assert judged_pool({"q": {"b": 0, "a": 2}}) == {"q": ("a", "b")}


def test_excluded_judgements_fall_away_and_with_them_an_emptied_query() -> None:
    qrels = {"q": {"a": 1, "b": 0}, "p": {"a": 2}}
    assert without_excluded(qrels, {"q": {"a"}, "p": {"a"}}) == {"q": {"b": 0}}


def test_unjudged_candidates_have_grade_0() -> None:
    found = retrieved_candidates([QUERY], first_stage(), k=2, exclusions={})["q"]
    assert graded("q", found, {"b": 3}) == [GradedCandidate("q", "c", 1, 0), GradedCandidate("q", "b", 2, 3)]
