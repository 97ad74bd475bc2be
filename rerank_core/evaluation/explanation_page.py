"""What explanations were found to be worth, one Markdown page out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rerank_core.evaluation.document_page import difference_table, mean_table

if TYPE_CHECKING:
    from rerank_core.evaluation.document_table import Difference, MeanRow

EXPLANATION_PAGE: Final = "explanations.md"

TEXT_LABELS: Final = {
    "own_text": "own text kept",
    "retried": "written twice",
    "grounded": "grounded",
    "precision": "precision",
    "random_precision": "precision by chance",
    "recall": "recall",
    "random_recall": "recall by chance",
    "num_words": "words",
}
READER_LABELS: Final = {"simulated": "Kendall's τ"}
LABELS: Final = {**TEXT_LABELS, **READER_LABELS}
"""What a measure is called on the page."""


@dataclass(frozen=True, slots=True)
class ExplanationTables:
    """All that was measured of some names' explanations; no reader where too few queries have two texts."""

    num_samples: int
    texts: tuple[MeanRow, ...]
    text_differences: tuple[Difference, ...]
    reader: tuple[MeanRow, ...]
    reader_differences: tuple[Difference, ...]


def render_explanation_quality(tables: ExplanationTables) -> str:
    """Return the page as Markdown: what texts carry, what a reader tells from them, how to read both."""
    parts = [
        "# Explanations measured",
        f"In brackets 95 % intervals over queries ({tables.num_samples:,} bootstrap samples); a query's value"
        " is the mean over its documents. No interval is adjusted for there being many.",
        "## What the texts carry",
        mean_table(tables.texts, TEXT_LABELS, kind="texts"),
        "`with` was written from the text and its attributed words, `without` from the text alone. Own text"
        " kept is the share that passed verification (the others are the template's sentence). Mentioned are"
        " the words besides the template's: precision is the share of them that are among the words with the"
        " largest values, recall the share of those that are mentioned; by chance is what as many random"
        " words of the document would have. Template sentences cite evidence words by construction.",
        difference_table(tables.text_differences, LABELS),
        "## What a reader tells from them",
        *_reader(tables),
    ]
    return "\n\n".join(parts) + "\n"


def _reader(tables: ExplanationTables) -> list[str]:
    if not tables.reader:
        return ["Not measured: it takes two explained documents of two queries or more."]
    return [
        mean_table(tables.reader, READER_LABELS, kind="texts", unit="rankings"),
        "A ridge regression from a text's embedding, without the sentence that states the rank and with those"
        " on effects in one order, fitted on other queries, orders the documents of a query; τ compares with"
        " their ranks. `shuffled`: each query's texts handed out anew among its documents.",
        difference_table(tables.reader_differences, LABELS, unit="rankings"),
    ]
