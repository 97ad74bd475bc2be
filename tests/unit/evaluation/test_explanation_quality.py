"""What explanations carry of the evidence, and whether ranks can be told from them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rerank_core.errors import DataError
from rerank_core.evaluation.explanation_quality import (
    mentioned_words,
    shuffled_explanations,
    simulated_ranks,
    text_quality,
    without_rank,
)
from rerank_core.explanation.explain import conclude, conclude_failure
from rerank_core.explanation.task import Placement
from rerank_core.records import (
    Contrast,
    Document,
    Evidence,
    EvidenceWord,
    Explanation,
    Generation,
    Query,
)
from rerank_core.text import words

DOCUMENT = Document("d", "Daily ice extent of the Arctic from buoys.")
EVIDENCE = Evidence((EvidenceWord("ice", 1.5, 0.6), EvidenceWord("buoys", -0.7, 0.3)))
PLACEMENT = Placement(Query("q", "arctic ice"), DOCUMENT, rank=2, num_candidates=10, evidence=EVIDENCE)
ANSWER = '{"sentences": [{"text": "This document describes daily ice of the Arctic.", "raised": ["ice"]}]}'


def _kept(placement: Placement) -> Explanation:
    return conclude(placement, [Generation(ANSWER, 9, 9)], generator="g")


def test_the_rank_is_taken_out_of_every_kind_of_text() -> None:
    above = replace(
        PLACEMENT,
        evidence=replace(EVIDENCE, contrast=Contrast(DOCUMENT, 3, 0.5, (EvidenceWord("buoys", -1.0, 0.5),))),
    )
    for placement in (PLACEMENT, replace(PLACEMENT, evidence=None), replace(PLACEMENT, rank=9), above):
        failed = conclude_failure(placement, "x", generator="g")
        for explanation in (failed, _kept(placement)):
            told = without_rank(explanation.text)
            assert "rank" not in told
            assert not any(character.isdigit() for character in told)
            assert told


def test_mentioned_is_what_the_templates_do_not_bring() -> None:
    explanation = _kept(PLACEMENT)
    assert mentioned_words(explanation) == {"daily", "ice", "arctic"}
    assert mentioned_words(conclude_failure(PLACEMENT, "x", generator="g")) == {"ice", "buoys"}


def test_quality_counts_evidence_among_the_mentioned_and_beside_chance() -> None:
    quality = text_quality(_kept(PLACEMENT), evidence=EVIDENCE, document=DOCUMENT)
    assert quality.precision == pytest.approx(1 / 3)
    assert quality.recall == pytest.approx(1 / 2)
    # Own words: daily, ice, extent, arctic, buoys; three drawn at random hold 3 * 2/5 evidence words.
    assert quality.random_precision == pytest.approx(2 / 5)
    assert quality.random_recall == pytest.approx(3 / 5)
    assert quality.num_words == len(words(without_rank(_kept(PLACEMENT).text)))


def test_a_document_without_words_of_its_own_divides_by_nothing() -> None:
    empty = conclude_failure(replace(PLACEMENT, evidence=Evidence(())), "x", generator="g")
    quality = text_quality(empty, evidence=Evidence(()), document=Document("d", "the of"))
    assert (quality.precision, quality.recall, quality.random_precision, quality.random_recall) == (0,) * 4


class _Counting:
    """An embedder whose two numbers are how often a text says "high" and "low"."""

    def embed(self, texts):
        return [np.array([[t.count("high"), t.count("low"), 1]], dtype=np.float32) for t in texts]


def _told(query_id: str, rank: int, text: str) -> Explanation:
    explanation = _kept(PLACEMENT)
    return replace(
        explanation, query_id=query_id, doc_id=str(rank), text=f"{text} It is at rank {rank} of 4."
    )


def _world(*, honest: bool) -> tuple[list[Explanation], list[int]]:
    texts = ["high high high", "high high low", "high low low", "low low low"]
    found = [
        _told(f"q{q}", rank, texts[rank - 1] if honest else texts[(rank + q) % 4])
        for q in range(12)
        for rank in range(1, 5)
    ]
    return found, [int(explanation.doc_id) for explanation in found]


def test_a_reader_tells_ranks_from_texts_that_tell_them_and_not_from_others() -> None:
    for honest, low, high in ((True, 0.99, 1.0), (False, -0.5, 0.5)):
        explanations, ranks = _world(honest=honest)
        agreement = simulated_ranks(explanations, ranks, embedder=_Counting(), rng=np.random.default_rng(0))
        assert len(agreement) == 12
        assert low <= np.mean(list(agreement.values())) <= high


class _OrderSeen:
    """An embedder that sees which of two effects a text tells first, as one that reads in order would."""

    def embed(self, texts):
        first = [t.find("was raised") < t.find("was lowered") for t in texts]
        return [np.array([[float(found), 1 - float(found)]], dtype=np.float32) for found in first]


def test_the_order_of_the_effects_does_not_tell_the_rank() -> None:
    found = [
        replace(
            conclude_failure(replace(PLACEMENT, rank=rank), "x", generator="g"),
            query_id=f"q{q}",
            doc_id=str(rank),
        )
        for q in range(12)
        for rank in range(1, 11)
    ]
    ranks = [int(explanation.doc_id) for explanation in found]
    agreement = simulated_ranks(found, ranks, embedder=_OrderSeen(), rng=np.random.default_rng(0))
    assert set(agreement.values()) == {0.0}


def test_shuffled_explanations_tell_no_rank() -> None:
    explanations, ranks = _world(honest=True)
    rng = np.random.default_rng(1)
    dealt = shuffled_explanations(explanations, rng)
    assert sorted(e.text for e in dealt) == sorted(e.text for e in explanations)
    assert all(new.query_id == old.query_id for new, old in zip(dealt, explanations, strict=True))
    agreement = simulated_ranks(dealt, ranks, embedder=_Counting(), rng=rng)
    assert abs(np.mean(list(agreement.values()))) < 0.5


def test_a_reader_needs_two_queries_with_two_texts_each() -> None:
    explanations, ranks = _world(honest=True)
    with pytest.raises(DataError, match="at least two queries"):
        simulated_ranks(explanations[:5], ranks[:5], embedder=_Counting(), rng=np.random.default_rng(0))
