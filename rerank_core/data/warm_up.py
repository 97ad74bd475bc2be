"""Relevance without judgements: a document's title asks, its own text answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rerank_core.records import Document, Query

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from rerank_core.protocols import Retriever

NUM_HARD = 5
NUM_RANDOM = 2
HARD_DEPTH = 20


@dataclass(frozen=True, slots=True)
class WarmUpExample:
    """A query with documents, of which the first is relevant and the others are not."""

    query: Query
    documents: tuple[Document, ...]


def title_examples(
    documents: Sequence[Document], retriever: Retriever, *, rng: np.random.Generator
) -> list[WarmUpExample]:
    """Return one example per titled document: its title asks for its text among seven others.

    Five of the others are look-alikes, drawn from the retriever's first 20 for the title, and two are any
    other documents; a small corpus gives fewer. All are shown without their titles. No query and no grade of
    the collection is used.
    """
    examples = []
    for document in documents:
        if document.title:
            others = _others(document, documents, retriever, rng=rng)
            query = Query(f"title:{document.doc_id}", document.title)
            examples.append(WarmUpExample(query, tuple(_untitled(d) for d in (document, *others))))
    return examples


def _others(
    document: Document, documents: Sequence[Document], retriever: Retriever, *, rng: np.random.Generator
) -> list[Document]:
    query = Query(document.doc_id, document.title)
    near = [candidate.document for candidate in retriever.retrieve(query, k=HARD_DEPTH)]
    hard = [other for other in near if other.doc_id != document.doc_id]
    chosen = [hard[place] for place in rng.permutation(len(hard))[:NUM_HARD]]
    taken = {document.doc_id, *(other.doc_id for other in chosen)}
    for place in rng.permutation(len(documents))[: NUM_RANDOM + len(taken)]:
        if len(chosen) < NUM_HARD + NUM_RANDOM and documents[place].doc_id not in taken:
            chosen.append(documents[place])
    return chosen


def _untitled(document: Document) -> Document:
    return Document(document.doc_id, document.text)
