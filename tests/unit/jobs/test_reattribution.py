"""A scorer that adds words agrees with itself, whatever the seed, the spelling or what stands behind."""

import pytest

from jobs.reattribution import NUM_WORDS, first_words, measure_stability
from rerank_core.attribution.attributor import SearchAttributor
from rerank_core.attribution.estimators import PrunedOwen
from rerank_core.models.tiny import tiny_tokenizer
from rerank_core.records import Document, Query
from rerank_core.retrieval.bm25 import Bm25Retriever
from rerank_core.testing import AdditiveScorer

QUERY = Query("q", "sea ice")
DOCUMENTS = [
    Document("d", "Maps of warm ice don't show the sea here, or the ice there."),
    Document("other", "Cats sleep on the warm old roof."),
]
SCORER = AdditiveScorer({"ice": 2.0, "sea": 1.0, "warm": -1.0})


def stability(text=DOCUMENTS[0].text, query=QUERY):
    document = Document("d", text)
    documents = [document, DOCUMENTS[1]]
    tokenizer = tiny_tokenizer([found.text for found in documents], has_mask=False)
    return measure_stability(
        query,
        document,
        visible=text,
        attributor=SearchAttributor(SCORER, tokenizer, PrunedOwen(300)),
        seed=0,
        documents=documents,
        lexical=Bm25Retriever(documents),
    )


def test_values_of_a_scorer_without_interactions_do_not_move():
    found = stability()
    assert list(found) == ["seed", "edited", "inserted", "lexical", "random"]
    for kind in ("seed", "edited", "inserted"):
        assert found[kind]["relative_l2"] == pytest.approx(0.0, abs=1e-6)
    assert found["random"]["relative_l2"] > 0.5
    assert 0 < found["lexical"]["relative_l2"] < found["random"]["relative_l2"]


def test_an_inserted_word_that_the_scorer_reads_has_its_mass():
    found = stability()["inserted"]
    assert found["inserted_mass"] == pytest.approx(1 / (1 + 2 + 1))  # "warm" behind "warm ice"
    assert found["inserted_words"] == pytest.approx(7 / (7 + 7))


def test_what_changes_nothing_or_shares_nothing_is_left_out():
    assert list(stability("warm maps show here now then")) == ["seed", "inserted", "random"]
    assert stability("...") == {}


def test_a_long_text_is_cut_behind_a_word():
    assert first_words("Sea ice, or lake ice.") == "Sea ice, or"
    assert len(first_words("word " * 500).split()) == NUM_WORDS
    assert first_words("?!") == ""
