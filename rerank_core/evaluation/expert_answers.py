"""How near explanations come to what people wrote, and attributed words to what they marked."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING, Final

from rerank_core.attribution.deletion import word_spans
from rerank_core.attribution.words import Part
from rerank_core.evaluation.text_metrics import bert_score, cosine, rouge_l

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from rerank_core.protocols import Embedder
    from rerank_core.records import Attribution, Document

NUM_OTHERS: Final = 20
"""Answers to other queries that a text is compared with at most: what any text of its kind would have."""


def token_vectors(texts: Iterable[str], embedder: Embedder) -> dict[str, NDArray[np.float32]]:
    """Return the token embeddings of each different text, (tokens, width)."""
    distinct = sorted(set(texts))
    return dict(zip(distinct, embedder.embed(distinct), strict=True))


def likeness(
    text: str, answers: Sequence[str], vectors: Mapping[str, NDArray[np.float32]]
) -> dict[str, float]:
    """Return how like a text is to what people wrote: each metric's mean over the answers.

    `vectors` are those of `token_vectors`, of the text and of the answers.
    """
    return {
        "cosine": fmean(cosine(vectors[text], vectors[answer]) for answer in answers),
        "bert_score": fmean(bert_score(vectors[text], vectors[answer]) for answer in answers),
        "rouge_l": fmean(rouge_l(text, reference=answer) for answer in answers),
    }


def other_answers(
    query_id: str, answer_by_query: Sequence[tuple[str, str]], rng: np.random.Generator
) -> list[str]:
    """Return `NUM_OTHERS` answers to other queries, drawn at random without replacement, or all there are."""
    others = [answer for other, answer in answer_by_query if other != query_id]
    return [others[int(place)] for place in rng.permutation(len(others))[:NUM_OTHERS]]


def is_marked(attribution: Attribution, document: Document, rationale: tuple[int, int]) -> list[bool]:
    """Return for each unit of an attribution whether it lies in what a person marked of the content."""
    whole = Part.at((0, len(document.content)), document)
    return [rationale[0] <= start and end <= rationale[1] for start, end in word_spans(attribution, whole)]


def average_precision(order: Sequence[int], marked: Sequence[bool]) -> float:
    """Return the mean, over the marked words, of the share of marked words up to each in an order.

    It is 1 where all marked words come first, and about their share in a random order.

    Source: the area under the precision-recall curve by which ERASER (DeYoung et al. 2020) compares scores of
    words with rationales.

    Raises:
        ValueError: no word is marked.
    """
    if not any(marked):
        raise ValueError("no word is marked, so there is nothing to find")
    found, precisions = 0, []
    for rank, place in enumerate(order, start=1):
        if marked[place]:
            found += 1
            precisions.append(found / rank)
    return fmean(precisions)
