"""Our best-first search and its tree against shap's, on games with exact arithmetic."""

import hashlib

import numpy as np
import pytest
from shap.explainers import PartitionExplainer
from shap.maskers import Text

from rerank_core.attribution.masking import TokenMasker
from rerank_core.attribution.partition_search import partition_search
from rerank_core.attribution.token_tree import token_tree
from rerank_core.models.tiny import tiny_tokenizer

WORDS = [
    "the",
    "sea",
    "ice",
    "map",
    "(warm",
    "sea)",
    "earth's",
    "and",
    "but",
    "water,",
    "cold.",
    "Quakes?",
    "x",
]


def worth(text: str) -> float:
    """Return a multiple of 2^-20 in [-1, 1): sums and halves of such numbers are exact."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:3], "big") / 2**23 - 1


def drive(search, masked):
    asked = []
    try:
        coalitions = next(search)
        while True:
            texts = [masked.left(coalition) for coalition in coalitions]
            asked += texts
            coalitions = search.send([worth(text) for text in texts])
    except StopIteration as stop:
        return stop.value, asked


@pytest.mark.parametrize("has_mask", [True, False])
@pytest.mark.parametrize("num_words", [2, 7, 24, 60])
@pytest.mark.parametrize("max_evals", [2, 3, 8, 100, 500])
def test_values_and_coalitions_equal_those_of_shap(num_words, max_evals, has_mask):
    rng = np.random.default_rng(num_words)
    text = " ".join(rng.choice(WORDS, size=num_words))
    tokenizer = tiny_tokenizer(WORDS, has_mask=has_mask)
    masker = TokenMasker(tokenizer)
    masked = masker.masked(text, masker.spans(text))
    search = partition_search(
        token_tree(masked.segments()), fixed=masked.fixed, max_evals=max_evals, rng=np.random.RandomState(5)
    )
    ours, asked = drive(search, masked)

    asked_by_shap: list[str] = []

    def score_texts(texts):
        asked_by_shap.extend(str(left) for left in texts)
        return np.array([worth(str(left)) for left in texts])

    state = np.random.get_state()
    np.random.set_state(np.random.RandomState(5).get_state())
    theirs = PartitionExplainer(score_texts, Text(tokenizer))([text], max_evals=max_evals, silent=True)
    np.random.set_state(state)
    assert asked == asked_by_shap
    assert ours.values == tuple(theirs.values[0])
    assert ours.base_value == theirs.base_values[0]
    assert ours.num_evals == len(asked)


def test_the_tree_is_the_one_of_shap():
    rng = np.random.default_rng(0)
    pieces = [
        "(",
        ")",
        "sea ",
        "ice",
        "'",
        "s",
        "t",
        " and",
        "but ",
        ",",
        ".",
        "?",
        "[MASK]",
        "[",
        "",
        ", ",
        "é",
    ]
    masker = Text(tiny_tokenizer(WORDS, has_mask=True))
    for _ in range(1000):
        segments = [str(piece) for piece in rng.choice(pieces, size=rng.integers(2, 30))]
        masker._s, masker._segments_s = "", segments
        theirs = masker.clustering("")
        assert token_tree(segments) == [(int(left), int(right)) for left, right in theirs[:, :2]], segments
