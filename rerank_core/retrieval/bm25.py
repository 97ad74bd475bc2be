"""BM25 over one corpus (Lucene's variant, English stop words and stemmer)."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import bm25s
import numpy as np
import Stemmer
from bm25s.stopwords import STOPWORDS_EN

from rerank_core.records import Candidate, Document, Query
from rerank_core.text import normalise, words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_STOP_WORDS = frozenset(STOPWORDS_EN)


class Bm25Retriever:
    """A retriever over title and text of the documents.

    Scores are sums of float32 in the order of the query's words, so that equal input gives equal bits; equal
    scores are ordered by doc_id. A query without any known word scores 0 everywhere.
    """

    def __init__(self, documents: Sequence[Document], *, k1: float = 1.2, b: float = 0.75) -> None:
        """Index the documents once; `k1` dampens repeated words, `b` long documents."""
        self._documents = sorted(documents, key=lambda document: document.doc_id)
        self._position_by_doc = {document.doc_id: i for i, document in enumerate(self._documents)}
        self._stemmer = Stemmer.Stemmer("english")
        self._number_by_term: dict[str, int] = {}
        numbers = [[self._number(term) for term in self._terms(d.content)] for d in self._documents]
        self._num_documents_by_term = Counter(number for found in numbers for number in set(found))
        self._index = bm25s.BM25(k1=k1, b=b, method="lucene")
        if self._number_by_term:
            self._index.index((numbers, self._number_by_term), create_empty_token=False, show_progress=False)

    def retrieve(self, query: Query, *, k: int) -> list[Candidate]:
        """Return the best `k` documents (all of a smaller corpus), best first, ranks from 1."""
        scores = self._scores(query)
        best = np.argsort(-scores, kind="stable")[:k]  # documents are in doc_id order, so ties are too
        return [Candidate(self._documents[i], rank, float(scores[i])) for rank, i in enumerate(best, start=1)]

    def score(self, query: Query, documents: Sequence[Document]) -> list[float]:
        """Return the scores of documents of this corpus, in the order given, by whole-corpus statistics."""
        scores = self._scores(query)
        return [float(scores[self._position_by_doc[document.doc_id]]) for document in documents]

    def order(self, query: Query, documents: Sequence[Document]) -> list[Candidate]:
        """Return the given documents of this corpus as candidates, best first, ranks from 1."""
        scored = zip(self.score(query, documents), documents, strict=True)
        ordered = sorted(scored, key=lambda pair: (-pair[0], pair[1].doc_id))
        return [Candidate(document, rank, score) for rank, (score, document) in enumerate(ordered, start=1)]

    def word_weights(self, query: Query, found: Sequence[str]) -> list[float]:
        """Return the inverse document frequency of each word that the query shares, and 0 for the others.

        Lucene's: ln(1 + (N - n + 1/2) / (n + 1/2)) for a word in n of N documents. Words are equal when their
        stems are.
        """
        shared = set(self._terms(query.text))
        weights = []
        for word in found:
            terms = self._terms(word)
            number = self._number_by_term.get(terms[0]) if terms and terms[0] in shared else None
            num_with = self._num_documents_by_term[number] if number is not None else 0
            num_without = len(self._documents) - num_with
            weights.append(math.log1p((num_without + 0.5) / (num_with + 0.5)) if num_with else 0.0)
        return weights

    def _scores(self, query: Query) -> NDArray[np.float32]:
        known = [self._number_by_term[t] for t in self._terms(query.text) if t in self._number_by_term]
        if not known:
            return np.zeros(len(self._documents), dtype=np.float32)
        return np.asarray(self._index.get_scores_from_ids(known))

    def _terms(self, text: str) -> list[str]:
        found = (normalise(word.text) for word in words(text))
        return list(self._stemmer.stemWords([word for word in found if word not in _STOP_WORDS]))

    def _number(self, term: str) -> int:
        return self._number_by_term.setdefault(term, len(self._number_by_term))
