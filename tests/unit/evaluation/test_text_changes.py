"""A change keeps track of every word, and does no more than it says."""

import numpy as np
import pytest

from rerank_core.errors import DataError
from rerank_core.evaluation.text_changes import (
    INSERTED,
    ChangedText,
    surface_edit,
    unrelated_sentence,
    with_sentence,
)
from rerank_core.records import Document, Query
from rerank_core.retrieval.bm25 import Bm25Retriever
from rerank_core.text import words


@pytest.mark.parametrize(
    ("text", "edited"),
    [
        ("Ice melts. Snow doesn't; it can't.", "ice melts. snow does not, it cannot."),
        ("NASA measured 1,234,567 cells in 2011.", "NASA measured 1234567 cells in 2011."),
        ("We saw “warm” water – it’s Greenland’s.", "we saw \"warm\" water - it's Greenland's."),
        ("McMurdo; they've left, we'll stay; I'm here", "McMurdo, they have left, we will stay, I am here"),
        ("0,123 or 12,34 are no thousands; 5;6 stays", "0,123 or 12,34 are no thousands, 5;6 stays"),
        ("Sea\nIce is here", "sea\nice is here"),
        ("plain text", "plain text"),
        ("", ""),
    ],
)
def test_a_surface_edit_changes_spelling_only(text, edited):
    assert surface_edit(text).text == edited


def test_words_that_were_written_out_belong_to_the_word_they_were():
    changed = surface_edit("It doesn't melt")
    assert [word.text for word in words(changed.text)] == ["it", "does", "not", "melt"]
    assert changed.owners == (0, 1, 1, 2)


def test_an_inserted_sentence_stands_behind_and_belongs_to_no_word():
    changed = with_sentence("Sea ice. ", "Cats sleep all day.")
    assert changed.text == "Sea ice. Cats sleep all day."
    assert changed.owners == (0, 1, *[INSERTED] * 4)


def test_a_change_that_loses_track_of_words_is_a_bug():
    with pytest.raises(AssertionError, match="must not join or part"):
        ChangedText("two words", (0,))


DOCUMENTS = [
    Document("a", "Sea ice thins every single year."),
    Document("b", "Cats sleep. Cats sleep on the warm old roof. The seas are rising quite fast."),
]
QUERY = Query("q", "The sea ice of the Arctic")


def test_an_unrelated_sentence_shares_no_content_word_with_the_query():
    lexical = Bm25Retriever(DOCUMENTS)
    for seed in range(5):
        found = unrelated_sentence(
            QUERY, DOCUMENTS[0], DOCUMENTS, lexical=lexical, rng=np.random.default_rng(seed)
        )
        assert found == "Cats sleep on the warm old roof."  # the first is too short, the last says "seas"


def test_where_every_sentence_is_related_none_is_made_up():
    with pytest.raises(DataError, match="query 'q': no document has a sentence of 5 to 25 words"):
        unrelated_sentence(
            QUERY, DOCUMENTS[1], DOCUMENTS, lexical=Bm25Retriever(DOCUMENTS), rng=np.random.default_rng(0)
        )
