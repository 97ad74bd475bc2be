"""Texts compared by words and by vectors, on lists small enough to work out by hand."""

from __future__ import annotations

import re
from math import exp
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_core.errors import DataError
from rerank_core.evaluation.baselines import floor_rankings, ideal_rankings, random_rankings
from rerank_core.evaluation.text_metrics import (
    TEXT_METRICS,
    bert_score,
    bleu,
    cosine,
    rouge_l,
    text_values,
)
from rerank_core.records import Candidate, Document, Ranking, Run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

WORDS = ("ice", "sea", "snow", "river", "depth", "daily")


class WordEmbedder:
    """An `Embedder`: each of `WORDS` has an axis of its own; counts the texts that it is given."""

    def __init__(self) -> None:
        self.num_texts = 0

    def embed(self, texts: Sequence[str]) -> list[NDArray[np.float32]]:
        self.num_texts += len(texts)
        axes = np.eye(len(WORDS), dtype=np.float32)
        return [axes[[WORDS.index(word) for word in text.split()]] for text in texts]


DOCUMENTS = {
    doc_id: Document(doc_id, text)
    for doc_id, text in {
        "a": "ice depth daily",
        "b": "sea ice depth",
        "c": "river depth",
        "d": "snow",
    }.items()
}


def ranking(doc_ids: str) -> Ranking:
    return Ranking("q", tuple(doc_ids), (0.0,) * len(doc_ids))


def compared(doc_ids: str, expert: str, *, depth: int = 10) -> dict[str, float]:
    runs = [Run("mine", {"q": ranking(doc_ids)})]
    found = text_values(
        runs, [{"q": ranking(expert)}], documents=DOCUMENTS, embedder=WordEmbedder(), depth=depth
    )
    return {metric: by_query["q"] for metric, by_query in found["mine"].items()}


# --- two texts


def test_bleu_is_its_formula_on_a_text_that_is_too_short() -> None:
    found = bleu("the sea ice is thin", reference="the sea ice is very thin")
    precisions = [5 / 5, 3 / 4, 2 / 3, 1 / 2]
    assert found == pytest.approx(exp(1 - 6 / 5) * np.prod(precisions) ** 0.25)


def test_bleu_of_the_same_short_text_is_1_and_of_texts_without_common_words_0() -> None:
    assert bleu("sea ice", reference="sea ice") == 1.0
    assert bleu("sea ice", reference="river depth") == 0.0
    assert bleu("", reference="river depth") == bleu("sea", reference="") == 0.0


def test_rouge_l_counts_words_in_common_order() -> None:
    found = rouge_l("Ice, on the SEA!", reference="the ice of the polar sea")
    assert found == pytest.approx(2 * 3 / (4 + 6))  # ice … the … sea
    assert rouge_l("sea ice", reference="ice sea") == pytest.approx(2 * 1 / (2 + 2))
    assert rouge_l("", reference="ice") == rouge_l("ice", reference="海冰") == 0.0


@given(st.lists(st.sampled_from("abc"), max_size=9), st.lists(st.sampled_from("abc"), max_size=9))
def test_rouge_l_finds_the_longest_common_subsequence(first: list[str], second: list[str]) -> None:
    def longest(i: int, j: int) -> int:
        if not i or not j:
            return 0
        if first[i - 1] == second[j - 1]:
            return lengths[i - 1, j - 1] + 1
        return max(lengths[i - 1, j], lengths[i, j - 1])

    lengths: dict[tuple[int, int], int] = {}
    for i in range(len(first) + 1):
        for j in range(len(second) + 1):
            lengths[i, j] = longest(i, j)
    wanted = 2 * lengths[len(first), len(second)] / ((len(first) + len(second)) or 1)
    assert rouge_l(" ".join(first), reference=" ".join(second)) == pytest.approx(wanted)


def test_cosine_compares_mean_vectors() -> None:
    ice_sea, sea = (np.array(rows, dtype=np.float32) for rows in ([[1, 0], [0, 1]], [[0, 3]]))
    assert cosine(ice_sea, sea) == pytest.approx(0.5**0.5)
    assert cosine(sea, -sea) == pytest.approx(-1.0)
    assert cosine(sea, ice_sea[:0]) == cosine(ice_sea[:0], sea) == 0.0


def test_bert_score_matches_each_token_with_its_nearest() -> None:
    text = np.array([[2, 0, 0], [0, 1, 0]], dtype=np.float32)
    reference = np.array([[1, 0, 0], [0, 3, 4], [0, 0, 1]], dtype=np.float32)
    precision, recall = (1 + 0.6) / 2, (1 + 0.6 + 0) / 3
    wanted = 2 * precision * recall / (precision + recall)
    assert bert_score(text, reference) == pytest.approx(wanted)
    assert bert_score(reference, text) == pytest.approx(wanted)  # F1 is symmetric


def test_bert_score_is_0_without_tokens_and_where_nothing_is_alike() -> None:
    one = np.array([[1, 0]], dtype=np.float32)
    assert bert_score(one, one[:0]) == bert_score(one[:0], one) == 0.0
    assert bert_score(one, -one) == bert_score(one, one[:, ::-1]) == 0.0


# --- runs


def test_the_experts_own_order_is_1_everywhere() -> None:
    assert compared("abcd", "abcd") == pytest.approx(dict.fromkeys(TEXT_METRICS, 1.0))


def test_documents_at_the_same_rank_are_compared_down_to_the_depth() -> None:
    swapped = compared("bacd", "abcd")
    alike = {
        "rouge_l": 2 * 2 / 6,  # "ice depth"
        "cosine": 2 / 3,
        "bert_score": 2 / 3,
    }
    for metric, value in alike.items():
        assert swapped[metric] == pytest.approx((2 * value + 2) / 4)
        assert compared("bacd", "abcd", depth=1)[metric] == pytest.approx(value)
    assert compared("dacb", "dbca", depth=1) == pytest.approx(dict.fromkeys(TEXT_METRICS, 1.0))


def test_the_experts_text_is_the_reference() -> None:
    found = compared("ca", "ac", depth=1)["bleu"]
    assert found == pytest.approx(bleu("river depth", reference="ice depth daily"))
    assert found != pytest.approx(bleu("ice depth daily", reference="river depth"))


def test_titles_are_part_of_the_texts() -> None:
    documents = {"a": Document("a", "sea", title="ice"), "b": Document("b", "sea", title="snow")}
    runs = [Run("mine", {"q": ranking("ba")})]
    found = text_values(runs, [{"q": ranking("ab")}], documents=documents, embedder=WordEmbedder(), depth=1)
    assert found["mine"]["rouge_l"]["q"] == pytest.approx(0.5)


def test_floor_random_and_ideal_are_runs_like_any_other(rng: np.random.Generator) -> None:
    found = [Candidate(DOCUMENTS[doc_id], n, -n) for n, doc_id in enumerate("dacb", start=1)]
    candidates, qrels = {"q": found}, {"q": {"a": 3, "b": 2, "c": 1}}
    ideal = ideal_rankings(candidates, qrels)
    runs = [
        Run("floor", floor_rankings(candidates, qrels)),
        Run("ideal", ideal),
        *(Run(f"random-{n}", random_rankings(candidates, rng=rng)) for n in range(60)),
    ]
    embedder = WordEmbedder()
    values = text_values(runs, [ideal], documents=DOCUMENTS, embedder=embedder, depth=10)
    assert embedder.num_texts == 4  # each document once, however many runs
    for metric in TEXT_METRICS:
        random = np.mean([values[f"random-{n}"][metric]["q"] for n in range(60)])
        assert values["floor"][metric]["q"] < random < values["ideal"][metric]["q"]


def test_where_several_orders_are_equally_good_the_value_is_the_mean_over_them() -> None:
    runs = [Run("mine", {"q": ranking("abcd")})]
    experts = [{"q": ranking(order)} for order in ("abdc", "bacd")]
    embedder = WordEmbedder()
    found = text_values(runs, experts, documents=DOCUMENTS, embedder=embedder, depth=3)["mine"]
    apart = [compared("abcd", order, depth=3) for order in ("abdc", "bacd")]
    assert embedder.num_texts == 4
    for metric in TEXT_METRICS:
        assert found[metric]["q"] == pytest.approx(np.mean([values[metric] for values in apart]))


def test_an_empty_ranking_has_the_value_0() -> None:
    assert compared("", "") == dict.fromkeys(TEXT_METRICS, 0.0)


def test_runs_that_cannot_be_compared_are_refused_by_name() -> None:
    expert = {"q": ranking("ab")}
    for runs, problem in (
        ([Run("mine", {})], "query 'q' is in one of run 'mine' and the expert's ranking"),
        ([Run("mine", expert | {"z": ranking("ab")})], "query 'z' is in one of run 'mine'"),
        (
            [Run("mine", {"q": ranking("ac")})],
            "run 'mine' ranks other documents than the expert for query 'q'",
        ),
        ([Run("mine", expert), Run("mine", expert)], "two runs are named 'mine'"),
    ):
        with pytest.raises(DataError, match=re.escape(problem)):
            text_values(runs, [expert], documents=DOCUMENTS, embedder=WordEmbedder(), depth=5)
