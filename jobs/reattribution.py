"""A document attributed again, with another seed and in other words: how far its values agree."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from rerank_core.attribution.contract import document_seed
from rerank_core.errors import DataError
from rerank_core.evaluation.stability import (
    agreement,
    inserted_shares,
    lexical_agreement,
    owned_values,
    random_agreement,
)
from rerank_core.evaluation.text_changes import (
    ChangedText,
    surface_edit,
    unrelated_sentence,
    with_sentence,
)
from rerank_core.records import Document
from rerank_core.text import words

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rerank_core.protocols import Attributor
    from rerank_core.records import Attribution, Query
    from rerank_core.retrieval.bm25 import Bm25Retriever

NUM_WORDS = 60
"""The most words of a document that are attributed again."""

WORD_LEAVES = ("token", "word")
"""The leaves whose attributions have one value per word."""


def first_words(text: str) -> str:
    """Return the first half of a text's words, at most `NUM_WORDS`: a sentence behind them is still read."""
    found = words(text)
    half = found[: min(NUM_WORDS, (len(found) + 1) // 2)]
    return text[: half[-1].end] if half else ""


def measure_stability(  # noqa: PLR0913 - what is attributed, by what, and what it is changed with
    query: Query,
    document: Document,
    *,
    visible: str,
    attributor: Attributor,
    seed: int,
    documents: Sequence[Document],
    lexical: Bm25Retriever,
) -> dict[str, Mapping[str, float]]:
    """Return by kind how far attributions agree with that of the first words of what a scorer reads.

    `seed` is another seed, `edited` and `inserted` are the changes of `text_changes`; `lexical` are the
    weights of words that the query shares (absent where it shares none), `random` the values in random
    places. A change is left out where it changes nothing, where the scorer does not read all of it, or where
    no document has a sentence to insert. A text without words has no kind.
    """
    text = first_words(visible)
    if not text:
        return {}
    rng = np.random.default_rng(document_seed(seed, query.query_id, doc_id=document.doc_id))
    changes = {"edited": surface_edit(text)}
    with suppress(DataError):  # no document has such a sentence
        sentence = unrelated_sentence(query, document, documents, lexical=lexical, rng=rng)
        changes["inserted"] = with_sentence(text, sentence)
    texts = [Document(document.doc_id, one) for one in (text, *(change.text for change in changes.values()))]
    reference, *attributions = attributor.attribute(query, texts, seed=seed)
    (again,) = attributor.attribute(query, texts[:1], seed=seed + 1)
    measures: dict[str, Mapping[str, float]] = {"seed": agreement(again.values, reference.values)}
    for (kind, change), found in zip(changes.items(), attributions, strict=True):
        if change.text != text and not found.is_truncated:
            measures[kind] = _change_measures(change, found, reference)
    weights = lexical.word_weights(query, [unit.text for unit in reference.units])
    if any(weights):
        measures["lexical"] = lexical_agreement(weights, reference.values)
    measures["random"] = random_agreement(reference.values, rng)
    return measures


def _change_measures(change: ChangedText, found: Attribution, reference: Attribution) -> dict[str, float]:
    kept = owned_values(found.values, change.owners, num_words=len(reference.values))
    return {**agreement(kept, reference.values), **inserted_shares(found.values, change.owners)}
