"""What faithfulness was measured in, one Markdown page out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rerank_core.evaluation.deletion_curves import MAX_EXACT_WORDS, NUM_STEPS
from rerank_core.evaluation.document_page import difference_table, mean_table
from rerank_core.evaluation.faithfulness import NUM_RANDOM
from rerank_core.evaluation.markdown import table
from rerank_core.evaluation.text_changes import SENTENCE_WORDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rerank_core.evaluation.document_table import Difference, MeanRow
    from rerank_core.evaluation.significance import Interval

FAITHFULNESS_PAGE: Final = "faithfulness.md"
OWN: Final = "attribution"
"""The kind of the rows that are by an attribution's values."""

DELETION_LABELS: Final = {
    "comprehensiveness": "comprehensiveness",
    "sufficiency": "sufficiency",
    "top_drop": "top drop",
    "flip": "rank falls",
    "beats_random": "beats random",
}
CURVE_LABELS: Final = {"aopc": "AOPC", "naopc": "NAOPC"}
STABILITY_LABELS: Final = {
    "kendall_tau": "Kendall's τ",
    "top_5": "top 5",
    "top_10": "top 10",
    "relative_l2": "relative L2",
    "inserted_mass": "mass inserted",
    "inserted_words": "words inserted",
}
LABELS: Final = {**DELETION_LABELS, **CURVE_LABELS, **STABILITY_LABELS}
"""What a measure is called on the page."""


@dataclass(frozen=True, slots=True)
class FaithfulnessTables:
    """All that was measured of some names' attributions; the last three are empty without a closer look."""

    num_top: int
    num_words: int  # that are attributed again, of each document
    num_samples: int
    deletions: tuple[MeanRow, ...]
    against_baselines: tuple[Difference, ...]
    between_names: tuple[Difference, ...]
    curves: tuple[MeanRow, ...] = ()
    curves_against_baselines: tuple[Difference, ...] = ()
    stability: tuple[MeanRow, ...] = ()


def render_faithfulness(tables: FaithfulnessTables) -> str:
    """Return the page as Markdown: deletions, differences, normalised curves, stability, how to read them."""
    parts = [
        "# Faithfulness of attributions",
        f"In brackets 95 % intervals over queries ({tables.num_samples:,} bootstrap samples); a query's value"
        " is the mean over its documents. Scores are logits. No interval is adjusted for there being many.",
        "## Deleting the words",
        *_deletions(tables),
        "## Differences from the baselines",
        difference_table(tables.against_baselines, LABELS),
        "## Differences between the names",
        *_between_names(tables),
    ]
    if tables.curves:
        parts += ["## Deletion curves, normalised", *_curves(tables)]
    if tables.stability:
        parts += ["## Stability", *_stability(tables)]
    return "\n\n".join(parts) + "\n"


def _deletions(tables: FaithfulnessTables) -> list[str]:
    claims = [
        f"- {row.name}: deleting the top {tables.num_top} words lowers the score more than the mean of"
        f" {NUM_RANDOM} random deletions of {tables.num_top} words in {_share(row.values['beats_random'])} of"
        f" {row.num_documents} documents of {row.num_queries} queries."
        for row in tables.deletions
        if row.kind == OWN
    ]
    about = (
        "`attribution` orders the words by value, `lexical` by the inverse document frequency of those that"
        f" the query shares, `random` is the mean of {NUM_RANDOM} orders. Comprehensiveness (larger is"
        " better) and sufficiency (smaller is better) are the mean falls of the score without, and with only,"
        " the first 1, 5, 10, 20 and 50 % of the words; top drop is its fall without the first"
        f" {tables.num_top}, rank falls the share of documents placed lower by it, beats random the share"
        " whose top drop is above the mean random one. A document of at most"
        f" {tables.num_top} words loses all of them in any order, and beats nothing. Where n of n queries"
        " agree the interval has no width, which is not certainty: the true share may be as low as"
        " 0.05^(1/n) (one side, 95 %), 0.47 for 4 queries and 0.86 for 20."
    )
    return ["\n".join(claims), mean_table(tables.deletions, DELETION_LABELS, kind="by"), about]


def _between_names(tables: FaithfulnessTables) -> list[str]:
    if not tables.between_names:
        return ["None: one name only, or no document that two of them share."]
    about = (
        "First minus second, by the attribution, over the documents that both have. Only measures that do not"
        " depend on the scale of a model's scores are compared: logits of two models are not the same unit."
    )
    return [difference_table(tables.between_names, LABELS), about]


def _curves(tables: FaithfulnessTables) -> list[str]:
    about = (
        "AOPC is the mean fall of the score over the steps of deleting all words, tenth by tenth (Samek et"
        " al. 2017); NAOPC = (AOPC − lower) / (upper − lower) with the bounds of each document's AOPC over"
        f" all orders (Edin et al. 2025). They are exact for at most {MAX_EXACT_WORDS} words, and else the"
        " widest that a greedy search, or any measured order, found: the true ones are as wide or wider, so"
        " values near 1 may be flattered."
    )
    return [
        mean_table(tables.curves, CURVE_LABELS, kind="by"),
        about,
        difference_table(tables.curves_against_baselines, LABELS),
        "The mean score without the first share of the words:",
        _curve_table(tables.curves, "deleted"),
        "The mean score of the first share of the words alone:",
        _curve_table(tables.curves, "inserted"),
    ]


def _stability(tables: FaithfulnessTables) -> list[str]:
    about = (
        "Agreement with the attribution of the first half of what the scorer reads of a document, at most"
        f" {tables.num_words} words: `seed` by another seed; `edited` in another spelling (contractions, case"
        " of first letters, thousands, quotes, dashes, semicolons), which is less than a paraphrase;"
        " `inserted` with a sentence of another document behind it, of"
        f" {SENTENCE_WORDS[0]} to {SENTENCE_WORDS[1]} words, that shares no content word with the query;"
        " `lexical` the weights of words that the query shares, where there are any; `random` the same values"
        " in random places. What a change moves includes what the search's own noise moves, as under `seed`."
        " Mass inserted is what the inserted words get of the sum of absolute values; in random places it"
        " would be their share of the words."
    )
    return [mean_table(tables.stability, STABILITY_LABELS, kind="by"), about]


def _curve_table(rows: Sequence[MeanRow], way: str) -> str:
    shares = [10 * step for step in range(1, NUM_STEPS + 1)]
    lines = [
        [row.name, row.kind, *(f"{row.values[f'{way}_{share}'].mean:.3f}" for share in shares)]
        for row in rows
    ]
    return table(["name", "by", *(f"{share} %" for share in shares)], lines)


def _share(found: Interval) -> str:
    return f"{found.mean:.1%} [{found.low:.1%}, {found.high:.1%}]"
