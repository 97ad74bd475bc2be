"""Deleting the words that matter lowers the score; deleting others does not."""

import pytest

from rerank_core.attribution.attributor import PlainTexts, SearchAttributor
from rerank_core.attribution.deletion import CoalitionScores, Deletion, word_spans
from rerank_core.attribution.estimators import PrunedOwen
from rerank_core.attribution.masking import MaskedText
from rerank_core.attribution.words import Part
from rerank_core.errors import DataError
from rerank_core.evaluation.faithfulness import (
    NUM_RANDOM,
    Faithfulness,
    mean_of,
    measure_orders,
    order_of,
    random_orders,
)
from rerank_core.models.tiny import tiny_tokenizer
from rerank_core.records import Document, Query
from rerank_core.testing import AdditiveScorer

QUERY = Query("q", "sea ice")
DOCUMENT = Document("d", "ice of the warm sea map here now then there", title="Sea")
SCORER = AdditiveScorer({"ice": 2.0, "sea": 1.0, "warm": -1.0})  # the score is 3
WORDS = ["Sea", "ice", "of", "the", "warm", "sea", "map", "here", "now", "then", "there"]


def deletion(*, rivals=(2.5,)):
    spans, place = [], 0
    for word in WORDS:
        place = DOCUMENT.content.index(word, place)
        spans.append((place, place + len(word)))
    masked = MaskedText(DOCUMENT.content, spans, mask_token="...", is_collapsing=True)
    (score,) = SCORER.score(QUERY, [DOCUMENT])
    return Deletion(QUERY, masked, score, rivals)


def measure(*orders, num_top=2, **settings):
    found = deletion(**settings)
    return measure_orders(found, orders, CoalitionScores(found, PlainTexts(SCORER)), num_top=num_top)


BEST = (1, 0, 5, 2, 3, 6, 7, 8, 9, 10, 4)  # ice, Sea, sea, …, warm


def test_the_measures_of_a_known_order_are_their_definitions():
    # 11 words: the shares are 1, 1, 2, 3 and 6 words
    (found,) = measure(BEST)
    assert found.comprehensiveness == pytest.approx((2 + 2 + 3 + 4 + 4) / 5)
    assert found.sufficiency == pytest.approx(3 - (2 + 2 + 3 + 4 + 4) / 5)
    assert found.top_drop == 3.0
    assert found.flip == 1.0


def test_words_that_lower_the_score_raise_it_when_they_are_deleted():
    (found,) = measure(BEST[::-1])
    assert found.top_drop == -1.0
    assert found.flip == 0.0
    assert found.comprehensiveness == pytest.approx(-1.0)


def test_a_document_is_placed_lower_only_where_a_rival_lies_between():
    assert [measure(BEST, rivals=rivals)[0].flip for rivals in [(), (-5.0,), (9.0,), (0.5,)]] == [0, 0, 0, 1]


def test_the_order_of_an_attribution_beats_random_orders(rng):
    tokenizer = tiny_tokenizer([DOCUMENT.content], has_mask=False)
    attributor = SearchAttributor(SCORER, tokenizer, PrunedOwen(200))
    (attribution,) = attributor.attribute(QUERY, [DOCUMENT], seed=0)
    spans = word_spans(attribution, Part.at((0, len(DOCUMENT.content)), DOCUMENT))
    assert [DOCUMENT.content[start:end] for start, end in spans] == WORDS
    own, *by_chance = measure(order_of(attribution.values), *random_orders(len(WORDS), rng))
    assert len(by_chance) == NUM_RANDOM
    chance = mean_of(by_chance)
    assert own.comprehensiveness > chance.comprehensiveness + 1
    assert own.sufficiency < chance.sufficiency - 1
    assert own.top_drop > chance.top_drop + 1
    assert chance.top_drop == pytest.approx(3 * 2 / 11, abs=0.6)  # a word adds 3 / 11 on average


def test_equal_texts_are_scored_once():
    class Counting(PlainTexts):
        num_texts = 0

        def score_texts(self, texts):
            self.num_texts += len(texts)
            return super().score_texts(texts)

    texts = Counting(SCORER)
    scores = CoalitionScores(deletion(), texts)
    for _ in range(2):
        measure_orders(deletion(), [BEST, BEST, BEST], scores, num_top=2)
    assert texts.num_texts == 8  # 1, 2, 3 or 6 words on their own or deleted; two of them are the top


def test_equal_values_keep_the_order_of_the_words():
    assert order_of([0.0, 1.0, 0.0, 1.0]) == (1, 3, 0, 2)


def test_a_document_without_words_is_refused():
    empty = Deletion(QUERY, MaskedText("", [], mask_token="...", is_collapsing=True), 0.0, ())
    with pytest.raises(DataError, match="query 'q': a document without words"):
        measure_orders(empty, [()], CoalitionScores(empty, PlainTexts(SCORER)), num_top=2)


def test_a_score_that_is_no_number_is_refused():
    class Broken(PlainTexts):
        def score_texts(self, texts):
            return [float("nan")] * len(texts)

    with pytest.raises(DataError, match="query 'q': the score of a masked text is not a number"):
        measure_orders(deletion(), [BEST], CoalitionScores(deletion(), Broken(SCORER)), num_top=2)


def test_means_are_taken_measure_by_measure():
    assert mean_of([Faithfulness(1, 2, 3, 1), Faithfulness(3, 2, 1, 0)]) == Faithfulness(2, 2, 2, 0.5)
    with pytest.raises(DataError, match="a mean of no documents"):
        mean_of([])
