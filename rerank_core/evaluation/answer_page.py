"""Explanations beside what people wrote and marked, one Markdown page out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rerank_core.evaluation.document_page import difference_table, mean_table
from rerank_core.evaluation.expert_answers import NUM_OTHERS

if TYPE_CHECKING:
    from rerank_core.evaluation.document_table import Difference, MeanRow

ANSWER_PAGE: Final = "answers.md"

LIKENESS_LABELS: Final = {"cosine": "cosine", "bert_score": "BERTScore", "rouge_l": "ROUGE-L"}
RATIONALE_LABELS: Final = {"average_precision": "average precision"}
LABELS: Final = {**LIKENESS_LABELS, **RATIONALE_LABELS}
"""What a measure is called on the page."""


@dataclass(frozen=True, slots=True)
class AnswerTables:
    """All that was measured of some names' explanations beside people's; empty where nothing is shared."""

    num_samples: int
    texts: tuple[MeanRow, ...]
    text_differences: tuple[Difference, ...]
    words: tuple[MeanRow, ...]
    word_differences: tuple[Difference, ...]


def render_answers(tables: AnswerTables) -> str:
    """Return the page as Markdown."""
    parts = [
        "# Explanations beside what people wrote",
        f"In brackets 95 % intervals over queries ({tables.num_samples:,} bootstrap samples); a query's value"
        " is the mean over its documents. No interval is adjusted for there being many.",
        "## Texts",
        mean_table(tables.texts, LIKENESS_LABELS, kind="text"),
        "`with` was written from the document and its attributed words, `without` from the document alone;"
        " both are compared without the sentence that states the rank, and only where the generator's own"
        " text was kept. Cosine and BERTScore are from the vectors of `--text-model`, not rescaled: compare"
        " rows, not pages. `document` is the document's own text, copied. `…, other answers`: the same texts"
        f" beside up to {NUM_OTHERS} answers to other queries, what any text of this kind would have. A"
        " person answers the query; an explanation says why a document was placed: they need not be alike.",
        difference_table(tables.text_differences, LABELS),
        "## Words",
        *_words(tables),
    ]
    return "\n\n".join(parts) + "\n"


def _words(tables: AnswerTables) -> list[str]:
    if not tables.words:
        return ["Not measured: no attributed document has a rationale with words in it and words outside."]
    return [
        mean_table(tables.words, RATIONALE_LABELS, kind="order"),
        "The words of a document in an order, and where in it those stand that a person marked: by attributed"
        " value, by the inverse document frequency of words that the query shares (ties as in the text), and"
        " at random. Documents of which a person marked all that was attributed, or nothing of it, are not"
        " among these. What a scorer reacts to need not be what a person would mark: this says whether the"
        " two agree, not whether the attribution is right.",
        difference_table(tables.word_differences, LABELS),
    ]
