"""How much of the evidence explanations carry, and whether a reader could tell the rank from them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import kendalltau

from rerank_core.errors import DataError
from rerank_core.explanation.grounding import connectives
from rerank_core.prompting.parse import EFFECTS
from rerank_core.prompting.render import load_template
from rerank_core.text import normalise, words

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from rerank_core.protocols import Embedder
    from rerank_core.records import Document, Evidence, Explanation

RANK_TEMPLATES = ("placed", "placed_above", "fallback", "fallback_above")
RIDGE_PENALTY = 1.0
"""Added to the diagonal of the Gram matrix of embeddings of length 1."""

NUM_FOLDS = 5


@dataclass(frozen=True, slots=True)
class TextQuality:
    """What one explanation carries of the evidence, which its prompt may or may not have shown.

    precision: the share of the words it mentions that are evidence words; recall: the share of the evidence
    words that it mentions; both 0 where there is nothing to divide by. random_precision and random_recall are
    what as many words drawn at random from the document's would be expected to have.
    """

    precision: float
    recall: float
    random_precision: float
    random_recall: float
    num_words: int  # of the text without the sentence on its rank


def text_quality(explanation: Explanation, *, evidence: Evidence, document: Document) -> TextQuality:
    """Return what an explanation of a document carries of its evidence.

    The templates' words (connectives, and those that say rank or effect) count nowhere: not as mentioned, not
    as evidence, not as the document's.
    """
    mentioned = mentioned_words(explanation)
    cited = {normalise(word.text) for word in evidence.words} - _template_words()
    own = {normalise(word.text) for word in words(document.content)} - _template_words()
    found = len(mentioned & cited)
    num_drawn = min(len(mentioned), len(own))
    expected = num_drawn * len(own & cited) / len(own) if own else 0.0
    return TextQuality(
        precision=_share(found, len(mentioned)),
        recall=_share(found, len(cited)),
        random_precision=_share(expected, num_drawn),
        random_recall=_share(expected, len(cited)),
        num_words=len(words(without_rank(explanation.text))),
    )


def mentioned_words(explanation: Explanation) -> frozenset[str]:
    """Return the normalised words that an explanation brings besides the template's."""
    told = {normalise(word.text) for word in words(without_rank(explanation.text))}
    return frozenset(told - _template_words())


def without_rank(text: str) -> str:
    """Return an explanation without what its template tells of the rank, whatever the rest is worth.

    The sentence that states it goes, and the sentences on effects, whose order depends on it, stand in one
    order at the end.
    """
    for pattern in _rank_sentences():
        text = pattern.sub(" ", text)
    effects = []
    for pattern in _effect_sentences():
        effects += pattern.findall(text)
        text = pattern.sub(" ", text)
    return " ".join(" ".join([text, *effects]).split())


def simulated_ranks(
    explanations: Sequence[Explanation],
    ranks: Sequence[int],
    *,
    embedder: Embedder,
    rng: np.random.Generator,
) -> dict[str, float]:
    """Return for each query how well a reader orders its documents by what is said of them: Kendall's τ-b.

    `ranks[i]` is the rank (from 1) of what `explanations[i]` is about. The reader is a ridge regression from
    the mean vector of a text (without its rank sentence, scaled to length 1) to the place of the rank between
    the query's first and last, fitted on the queries of the other folds (5, by query, drawn by `rng`).
    Compare with `shuffled` explanations: what remains there is not told by the texts. Queries with a single
    explanation have no order and are left out.

    Source: simulatability (Doshi-Velez & Kim 2017; Hase & Bansal 2020), with a linear reader.

    Raises:
        DataError: fewer than two queries have two explanations.
    """
    rows: dict[str, list[int]] = {}
    for row, explanation in enumerate(explanations):
        rows.setdefault(explanation.query_id, []).append(row)
    rows = {query_id: found for query_id, found in sorted(rows.items()) if len(found) > 1}
    if len(rows) < 2:
        raise DataError(
            "a reader needs the explanations of at least two queries, two or more for each; explain more"
        )
    vectors = _vectors([without_rank(explanation.text) for explanation in explanations], embedder)
    targets = _places(rows, ranks)
    shuffled = list(rows)
    rng.shuffle(shuffled)
    agreement: dict[str, float] = {}
    for fold in range(min(NUM_FOLDS, len(rows))):
        tested = shuffled[fold::NUM_FOLDS]
        known = [row for query_id in rows if query_id not in tested for row in rows[query_id]]
        weights = _ridge(vectors[known], targets[known])
        for query_id in tested:
            found = rows[query_id]
            told = vectors[found] @ weights
            agreement[query_id] = float(np.nan_to_num(kendalltau(told, targets[found]).statistic))
    return dict(sorted(agreement.items()))


def shuffled_explanations(explanations: Sequence[Explanation], rng: np.random.Generator) -> list[Explanation]:
    """Return the explanations with each query's texts handed out anew among its documents."""
    rows: dict[str, list[int]] = {}
    for row, explanation in enumerate(explanations):
        rows.setdefault(explanation.query_id, []).append(row)
    dealt = list(explanations)
    for found in rows.values():
        for row, other in zip(found, rng.permutation(found), strict=True):
            dealt[row] = explanations[int(other)]
    return dealt


def _places(rows: Mapping[str, Sequence[int]], ranks: Sequence[int]) -> NDArray[np.float64]:
    """Return where each rank lies between its query's first (0) and last (1)."""
    places = np.zeros(len(ranks))
    for found in rows.values():
        own = np.array([ranks[row] for row in found], dtype=np.float64)
        places[list(found)] = (own - own.min()) / max(own.max() - own.min(), 1.0)
    return places


def _vectors(texts: Sequence[str], embedder: Embedder) -> NDArray[np.float64]:
    """Return the mean token vector of each text at length 1, with a 1 behind it, (texts, width + 1)."""
    means = np.stack(
        [
            found.mean(axis=0, dtype=np.float64) if len(found) else np.zeros(found.shape[1])
            for found in embedder.embed(texts)
        ]
    )
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    return np.hstack([means / np.where(lengths > 0, lengths, 1.0), np.ones((len(texts), 1))])


def _ridge(vectors: NDArray[np.float64], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weights of a ridge regression, (width,), from (rows, width) and (rows,)."""
    gram = vectors @ vectors.T + RIDGE_PENALTY * np.eye(len(vectors))
    weights: NDArray[np.float64] = vectors.T @ np.linalg.solve(gram, targets)
    return weights


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


@cache
def _template_words() -> frozenset[str]:
    """Return the normalised words that templates bring into any explanation."""
    texts = [load_template(name).replace("{words}", "") for name in (*EFFECTS, "shared", "shared_none")]
    said = [word.text for text in texts for word in words(text)]
    return frozenset(normalise(word) for word in (*said, *connectives()))


@cache
def _effect_sentences() -> tuple[re.Pattern[str], ...]:
    """Return the patterns of the sentences on what words did, in the order of `EFFECTS`."""
    listed = r'"[^"]*"(?:(?:, | and )"[^"]*")*'
    return tuple(
        re.compile(re.escape(load_template(name)).replace(re.escape("{words}"), listed)) for name in EFFECTS
    )


@cache
def _rank_sentences() -> tuple[re.Pattern[str], ...]:
    """Return the patterns of the sentences that state a rank, the longest first."""
    templates = sorted((load_template(name) for name in RANK_TEMPLATES), key=len, reverse=True)
    return tuple(re.compile(re.sub(r"\\\{[a-z_]+\\\}", r"\\S+", re.escape(text))) for text in templates)
