"""Explanations and attributions in, how near they come to what people wrote and marked out."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.explanation_quality import WITH, WITHOUT, show_means
from rerank_core.attribution.contract import document_seed
from rerank_core.attribution.table import read_attributions
from rerank_core.errors import DataError
from rerank_core.evaluation.answer_page import LIKENESS_LABELS, RATIONALE_LABELS, AnswerTables
from rerank_core.evaluation.document_table import MeasuredDocuments, kind_pairs, mean_row, paired_differences
from rerank_core.evaluation.expert_answers import (
    average_precision,
    is_marked,
    likeness,
    other_answers,
    token_vectors,
)
from rerank_core.evaluation.explanation_quality import without_rank
from rerank_core.evaluation.faithfulness import order_of, random_orders
from rerank_core.explanation.table import read_explanations
from rerank_core.explanation.task import CONTRAST_TEMPLATE
from rerank_core.formats import read_documents, read_queries
from rerank_core.retrieval.bm25 import Bm25Retriever

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from rich.console import Console

    from jobs.explanation_quality import ExplanationFolder
    from rerank_core.data.answers import ExpertAnswer
    from rerank_core.protocols import Embedder
    from rerank_core.records import Document

    Key = tuple[str, str]
    Answers = Mapping[Key, ExpertAnswer]
    ByKind = dict[tuple[str, str], dict[Key, dict[str, float]]]  # by (name, kind)

DOCUMENT, OTHERS = "document", "other answers"
ATTRIBUTED, LEXICAL, RANDOM = "attributed", "lexical", "random"


def compare_with_answers(  # noqa: PLR0913 - the two sides, and how the first is measured
    folders: Sequence[ExplanationFolder],
    answers: Answers,
    *,
    prepared: Path,
    embedder: Embedder,
    num_samples: int,
    seed: int,
) -> AnswerTables:
    """Return how near the explanations of some folders come to answers; folders of one name are pooled.

    Of the texts those count that were kept of the generator, of documents with an answer; explanations that
    compare two documents are left out. Of the words those of all attributed documents whose answer marks some
    of them, and not all.

    Raises:
        DataError: a name explains a document twice.
    """
    documents = read_documents(prepared / "corpus.parquet")
    texts = _told(folders, answers, documents)
    of_texts = _measured(_likenesses(texts, answers, embedder=embedder, seed=seed))
    of_words = _measured(_found_rationales(folders, answers, documents, prepared=prepared, seed=seed))
    bootstrap: dict[str, Any] = {"num_samples": num_samples, "seed": seed}
    pairs = [pair for kind in (WITH, WITHOUT) for pair in kind_pairs(of_texts, kind=kind)]
    wanted = [
        (own, other) for own, other in pairs if other.kind in (f"{own.kind}, {OTHERS}", WITHOUT, DOCUMENT)
    ]
    return AnswerTables(
        num_samples=num_samples,
        texts=tuple(mean_row(one, **bootstrap) for one in of_texts),
        text_differences=tuple(paired_differences(wanted, measures=tuple(LIKENESS_LABELS), **bootstrap)),
        words=tuple(mean_row(one, **bootstrap) for one in of_words),
        word_differences=tuple(
            paired_differences(
                kind_pairs(of_words, kind=ATTRIBUTED), measures=tuple(RATIONALE_LABELS), **bootstrap
            )
        ),
    )


def num_answered(folders: Sequence[ExplanationFolder], answers: Answers) -> int:
    """Return how many answers are of documents that some folders explain.

    Raises:
        DataError: none is.
    """
    explained = {(e.query_id, e.doc_id) for folder in folders for e in read_explanations(folder.folder)}
    number = len(explained & answers.keys())
    if not number:
        raise DataError("no explained document has an answer; pass those of these queries and documents")
    return number


def show_answers(tables: AnswerTables, *, console: Console) -> None:
    """Print the means; the page has the intervals."""
    show_means(tables.texts, LIKENESS_LABELS, kind="text", console=console)
    show_means(tables.words, RATIONALE_LABELS, kind="order", console=console)


def _measured(found: ByKind) -> list[MeasuredDocuments]:
    return [MeasuredDocuments(name, kind, measures) for (name, kind), measures in found.items()]


def _told(
    folders: Sequence[ExplanationFolder], answers: Answers, documents: Mapping[str, Document]
) -> dict[tuple[str, str], dict[Key, str]]:
    """Return by (name, kind) the generator's text on each document with an answer, and the document's own."""
    texts: dict[tuple[str, str], dict[Key, str]] = {}
    for folder in folders:
        for explanation in read_explanations(folder.folder):
            key = (explanation.query_id, explanation.doc_id)
            if key not in answers or explanation.fallback or explanation.template == CONTRAST_TEMPLATE:
                continue
            kind = WITH if explanation.with_attribution else WITHOUT
            if key in texts.get((folder.name, kind), {}):
                raise DataError(
                    f"{folder.name!r} explains {key} twice ({folder.folder} is the second); name one"
                )
            texts.setdefault((folder.name, kind), {})[key] = without_rank(explanation.text)
            texts.setdefault((folder.name, DOCUMENT), {})[key] = documents[key[1]].text
    return texts


def _likenesses(
    texts: Mapping[tuple[str, str], Mapping[Key, str]], answers: Answers, *, embedder: Embedder, seed: int
) -> ByKind:
    """Return the likeness of each text to its answer, and to answers to other queries."""
    listed = sorted({(key[0], answers[key].text) for found in texts.values() for key in found})
    written = [text for found in texts.values() for text in found.values()]
    vectors = token_vectors([*written, *(answer for _, answer in listed)], embedder)
    found: ByKind = {}
    for (name, kind), by_key in texts.items():
        for key, text in by_key.items():
            found.setdefault((name, kind), {})[key] = likeness(text, [answers[key].text], vectors)
            rng = np.random.default_rng(document_seed(seed, key[0], doc_id=key[1]))
            if others := other_answers(key[0], listed, rng):
                found.setdefault((name, f"{kind}, {OTHERS}"), {})[key] = likeness(text, others, vectors)
    return found


def _found_rationales(
    folders: Sequence[ExplanationFolder],
    answers: Answers,
    documents: Mapping[str, Document],
    *,
    prepared: Path,
    seed: int,
) -> ByKind:
    """Return how soon each order of a document's words meets those that a person marked."""
    queries, lexical = read_queries(prepared / "queries.parquet"), Bm25Retriever(list(documents.values()))
    found: ByKind = {}
    for folder in folders:
        for key, values, texts, marked in _marked_words(folder, answers, documents):
            weights = lexical.word_weights(queries[key[0]], texts)
            rng = np.random.default_rng(document_seed(seed, key[0], doc_id=key[1]))
            orders = {
                ATTRIBUTED: [order_of(values)],
                LEXICAL: [order_of(weights)],
                RANDOM: random_orders(len(marked), rng),
            }
            for kind, some in orders.items():
                mean = fmean(average_precision(order, marked) for order in some)
                found.setdefault((folder.name, kind), {})[key] = {"average_precision": mean}
    return found


def _marked_words(
    folder: ExplanationFolder, answers: Answers, documents: Mapping[str, Document]
) -> Iterator[tuple[Key, tuple[float, ...], list[str], list[bool]]]:
    """Yield values and texts of the words of each document with a rationale, and which of them are marked.

    Documents all or none of whose words are marked have nothing to find.
    """
    for attribution in read_attributions(folder.attributions):
        key = (attribution.query_id, attribution.doc_id)
        answer = answers.get(key)
        if answer is None or answer.rationale is None:
            continue
        marked = is_marked(attribution, documents[key[1]], answer.rationale)
        if any(marked) and not all(marked):
            yield key, attribution.values, [unit.text for unit in attribution.units], marked
