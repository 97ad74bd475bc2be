"""Orders of words are measured by where they meet what a person marked, texts by what a person wrote."""

from itertools import permutations
from statistics import fmean

import numpy as np
import pytest

from rerank_core.evaluation.expert_answers import (
    NUM_OTHERS,
    average_precision,
    is_marked,
    likeness,
    other_answers,
    token_vectors,
)
from rerank_core.records import Attribution, Document, Unit
from rerank_core.text import words


class Letters:
    """An embedder with one vector per word: how often it has each of three letters."""

    def embed(self, texts):
        return [
            np.array([[w.text.count(c) for c in "aei"] for w in words(text)], dtype=np.float32).reshape(-1, 3)
            for text in texts
        ]


def test_average_precision_is_one_where_marked_words_come_first():
    marked = [False, True, False, True]
    assert average_precision((1, 3, 0, 2), marked) == 1.0
    assert average_precision((3, 0, 1, 2), marked) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision((0, 2, 1, 3), marked) == pytest.approx((1 / 3 + 2 / 4) / 2)
    mean = fmean(average_precision(order, marked) for order in permutations(range(4)))
    assert 0.5 < mean < 0.75  # a little above the share of marked words, as there are few
    with pytest.raises(ValueError, match="no word is marked"):
        average_precision((0, 1), [False, False])


def test_words_are_marked_where_they_lie_in_the_rationale_of_either_field():
    document = Document("d", "sea ice melts", title="Sea level")
    units = (
        Unit("Sea", 0, 3, "title"),
        Unit("level", 4, 9, "title"),
        Unit("sea", 0, 3),
        Unit("melts", 8, 13),
    )
    attribution = Attribution("q", "d", 0.0, 0.0, units, (0.0,) * 4, "exact", 2, 0.0, 0)
    text_start = len("Sea level\n")
    assert is_marked(attribution, document, (4, text_start + 3)) == [False, True, True, False]
    assert is_marked(attribution, document, (text_start, text_start + 12)) == [False, False, True, False]


def test_a_text_is_as_like_an_answer_as_the_metrics_say():
    texts = ["bad ice", "bad ice", "see the sea", "big fish"]
    vectors = token_vectors(texts, Letters())
    assert set(vectors) == set(texts)
    same = likeness("bad ice", ["bad ice"], vectors)
    assert same == pytest.approx({"cosine": 1.0, "bert_score": 1.0, "rouge_l": 1.0})
    one, other = (likeness("bad ice", [answer], vectors) for answer in ("see the sea", "big fish"))
    both = likeness("bad ice", ["see the sea", "big fish"], vectors)
    assert both == pytest.approx({name: (one[name] + other[name]) / 2 for name in both})


def test_other_answers_are_of_other_queries_and_each_comes_once(rng):
    listed = [(f"q{n % 5}", f"answer {n}") for n in range(50)]
    drawn = other_answers("q3", listed, rng)
    assert len(drawn) == len(set(drawn)) == NUM_OTHERS
    assert not {answer for query_id, answer in listed if query_id == "q3"} & set(drawn)
    assert other_answers("q3", listed[3:4], rng) == []
