"""Titles ask, texts answer; no query and no grade is needed."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from rerank_core.data.warm_up import HARD_DEPTH, NUM_HARD, NUM_RANDOM, WarmUpExample, title_examples
from rerank_core.records import Document
from rerank_core.retrieval.bm25 import Bm25Retriever

THEMES = ("ice", "rain", "wind", "dust")


def corpus(size: int) -> list[Document]:
    """Documents of four themes; every fifth has no title."""
    return [
        Document(
            f"d{n:02}",
            f"{THEMES[n % 4]} measured at station {n}",
            title=f"{THEMES[n % 4]} record" if n % 5 else "",
            url=f"https://example.org/{n}",
        )
        for n in range(size)
    ]


def draw(documents: list[Document], *, seed: int = 0) -> list[WarmUpExample]:
    return title_examples(documents, Bm25Retriever(documents), rng=np.random.default_rng(seed))


def test_each_titled_document_asks_with_its_title_and_comes_first() -> None:
    documents = corpus(40)
    examples = draw(documents)
    titled = [document for document in documents if document.title]
    assert [(e.query.query_id, e.query.text) for e in examples] == [
        (f"title:{document.doc_id}", document.title) for document in titled
    ]
    assert [e.documents[0].text for e in examples] == [document.text for document in titled]


def test_the_others_are_distinct_documents_and_not_the_own_one() -> None:
    for example in draw(corpus(40)):
        doc_ids = [document.doc_id for document in example.documents]
        assert len(set(doc_ids)) == len(doc_ids) == 1 + NUM_HARD + NUM_RANDOM


def test_five_of_the_others_look_alike() -> None:
    documents = corpus(120)
    retriever = Bm25Retriever(documents)
    for example in draw(documents):
        found = retriever.retrieve(example.query, k=HARD_DEPTH)
        near = {candidate.document.doc_id for candidate in found}
        assert sum(document.doc_id in near for document in example.documents[1:]) >= NUM_HARD


def test_no_shown_document_gives_its_title_away() -> None:
    by_id = {document.doc_id: document for document in corpus(40)}
    for example in draw(corpus(40)):
        for document in example.documents:
            assert (document.title, document.url) == ("", "")
            assert document.text == by_id[document.doc_id].text


def test_the_generator_alone_decides_the_draw() -> None:
    assert draw(corpus(40), seed=1) == draw(corpus(40), seed=1)
    assert draw(corpus(40), seed=1) != draw(corpus(40), seed=2)


def test_neither_queries_nor_grades_of_a_collection_can_be_used() -> None:
    assert list(inspect.signature(title_examples).parameters) == ["documents", "retriever", "rng"]


@pytest.mark.parametrize("size", [0, 1, 2, 3, 6, 8, 9])
def test_a_tiny_corpus_gives_all_the_others_that_it_has(size: int) -> None:
    examples = draw(corpus(size))
    assert len(examples) == sum(bool(document.title) for document in corpus(size))
    assert {len(example.documents) for example in examples} <= {min(size, 1 + NUM_HARD + NUM_RANDOM)}


def test_untitled_documents_answer_others_and_ask_nothing() -> None:
    documents = [Document(f"d{n}", f"ice {n}") for n in range(3)]
    assert draw(documents) == []
    (example,) = draw([*documents, Document("t", "ice cover", title="ice")])
    assert sorted(document.doc_id for document in example.documents) == ["d0", "d1", "d2", "t"]
