"""The words of an attribution that an explanation may cite."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rerank_core.errors import DataError
from rerank_core.records import Contrast, Evidence, EvidenceWord
from rerank_core.text import normalise, words

if TYPE_CHECKING:
    from rerank_core.records import Attribution, Document, Unit


def select_evidence(attribution: Attribution, *, k: int = 10) -> Evidence:
    """Return the `k` words with the largest absolute values, sign kept, largest first; ties by first place.

    Places of the same word (equal under `text.normalise`) are merged by summing their values, and shown as
    first written. Stop words stay: what the scorer reacted to is evidence, also where it is "the". Units
    without a letter or digit and words whose values sum to zero are left out: fewer than `k` may come back.
    A word's share is measured against all words of the attribution, selected or not.
    """
    places: dict[str, list[Unit]] = {}
    total: dict[str, float] = {}
    for unit, value in zip(attribution.units, attribution.values, strict=True):
        word = normalise(unit.text)
        if not words(word):
            continue
        places.setdefault(word, []).append(unit)
        total[word] = total.get(word, 0.0) + value
    mass = sum(map(abs, total.values()))
    # `total` keeps the order of first places, and sorting is stable: that is the tie rule.
    largest = sorted((word for word in total if total[word] != 0.0), key=lambda word: -abs(total[word]))[:k]
    return Evidence(
        tuple(
            EvidenceWord(places[word][0].text, total[word], abs(total[word]) / mass, tuple(places[word]))
            for word in largest
        )
    )


def contrast_evidence(
    attribution: Attribution, lower: Attribution, *, document: Document, rank: int, k: int = 10
) -> Evidence:
    """Return the evidence for why a document stands above another one, `document`, which is at `rank`.

    The two scores depend on one text each, so that the Shapley values of their margin are those of the higher
    document's words and, with the opposite sign, those of the lower one's (additivity: Shapley 1953). What
    either list cites is therefore part of the margin, whichever words the other document has.

    Raises:
        DataError: the attributions are not of one query, or `lower` is not of `document`.
    """
    if attribution.query_id != lower.query_id or lower.doc_id != document.doc_id:
        raise DataError(
            f"({attribution.query_id}, {attribution.doc_id}) cannot be compared with ({lower.query_id},"
            f" {lower.doc_id}) as document {document.doc_id!r}: pass two documents of one query"
        )
    return Evidence(
        select_evidence(attribution, k=k).words,
        Contrast(document, rank, attribution.score - lower.score, select_evidence(lower, k=k).words),
    )
