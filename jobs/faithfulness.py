"""Attributions in, what deleting their words does to the scores out, and how stable the values are."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from jobs.deletions import document_deletion
from jobs.progress import progress_bar
from jobs.reattribution import NUM_WORDS, WORD_LEAVES, measure_stability
from rerank_core.attribution.build import build_attributor
from rerank_core.attribution.contract import document_seed
from rerank_core.attribution.table import read_attributions
from rerank_core.data.splits import members
from rerank_core.errors import ConfigError, DataError
from rerank_core.evaluation.deletion_curves import measure_curves
from rerank_core.evaluation.document_table import (
    MeanRow,
    MeasuredDocuments,
    kind_pairs,
    mean_row,
    name_pairs,
    paired_differences,
)
from rerank_core.evaluation.faithfulness import (
    NUM_RANDOM,
    SHARES,
    Faithfulness,
    mean_of,
    measure_orders,
    order_of,
    random_orders,
)
from rerank_core.evaluation.faithfulness_page import DELETION_LABELS, OWN, FaithfulnessTables
from rerank_core.formats import read_documents, read_queries, read_run, read_split
from rerank_core.models.artefact import load_artefact
from rerank_core.retrieval.bm25 import Bm25Retriever

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from rich.console import Console

    from jobs.attribution_folders import AttributionFolder
    from rerank_core.evaluation.faithfulness import Order
    from rerank_core.models.scorer import LanguageModelScorer
    from rerank_core.protocols import Attributor
    from rerank_core.records import Attribution, Document, Query, Run

NUM_TOP = 10
"""Words that are deleted at once for `top_drop` and `flip`."""

ORDERS = (OWN, "lexical", "random")
"""By the attributed values; by the inverse document frequency of words that the query shares; by chance."""

COMPARED_WITH_BASELINES = ("comprehensiveness", "sufficiency", "top_drop", "flip")
COMPARED_BETWEEN_NAMES = ("flip", "beats_random")
"""Measures that do not depend on the scale of a model's scores."""

ByKind = dict[str, "Mapping[str, float]"]
"""`measures[kind][measure]` of one document."""


@dataclass(frozen=True, slots=True)
class _Texts:
    documents: Mapping[str, Document]
    queries: Mapping[str, Query]
    lexical: Bm25Retriever


@dataclass(frozen=True, slots=True)
class _Model:
    """A folder's scorer, its run, and what attributed it."""

    scorer: LanguageModelScorer
    run: Run
    attributor: Attributor
    seed: int


@dataclass(frozen=True, slots=True)
class _Found:
    """What was measured of one document; the last two are empty without a closer look."""

    name: str
    key: tuple[str, str]  # query_id, doc_id
    deletions: ByKind
    curves: ByKind
    stability: ByKind


def measure_faithfulness(
    folders: Sequence[AttributionFolder], *, prepared: Path, num_close_ups: int, num_samples: int, seed: int
) -> FaithfulnessTables:
    """Return the tables of each name's attributions of test queries, of each folder's own fold.

    Of each query the first `num_close_ups` attributed documents are looked at more closely: their deletion
    curves are normalised, and they are attributed again.

    Raises:
        DataError: a folder has no attributed document of a test query.
        ConfigError: documents are to be attributed again, but a folder's values are not of words.
    """
    _check_leaves(folders, num_close_ups=num_close_ups)
    documents = read_documents(prepared / "corpus.parquet")
    texts = _Texts(
        documents, read_queries(prepared / "queries.parquet"), Bm25Retriever(list(documents.values()))
    )
    found = [
        one
        for folder in folders
        for one in _measured_folder(folder, texts, prepared=prepared, num_close_ups=num_close_ups, seed=seed)
    ]
    return _tables(found, num_samples=num_samples, seed=seed)


def _check_leaves(folders: Sequence[AttributionFolder], *, num_close_ups: int) -> None:
    for folder in folders:
        if num_close_ups and folder.settings["leaf"] not in WORD_LEAVES:
            raise ConfigError(
                f"{folder.folder} has a value per {folder.settings['leaf']}, but only words are attributed"
                " again; pass --num-close-ups 0"
            )
        if num_close_ups and folder.settings["method"] == "exact":
            raise ConfigError(
                f"{folder.folder} was enumerated, which the longer texts of a closer look do not allow; pass"
                " --num-close-ups 0"
            )


def _measured_folder(
    folder: AttributionFolder, texts: _Texts, *, prepared: Path, num_close_ups: int, seed: int
) -> Iterator[_Found]:
    """Yield the measures of each document of a test query."""
    tested = frozenset(members(read_split(prepared / f"fold-{folder.fold}" / "split.parquet"))["test"])
    attributions = [
        found for found in read_attributions(folder.folder) if found.query_id in tested and found.units
    ]
    if not attributions:
        raise DataError(f"{folder.folder} attributes no document of a test query of fold {folder.fold}")
    scorer = load_artefact(folder.artefact, long_documents=folder.long_documents)
    attributor = build_attributor(scorer, **folder.settings)
    model = _Model(scorer, read_run(folder.run, folder.name), attributor, folder.seed)
    num_seen: dict[str, int] = {}
    with progress_bar() as progress:
        for attribution in progress.track(attributions, description=f"faithfulness of {folder.name}"):
            num_seen[attribution.query_id] = num_seen.get(attribution.query_id, 0) + 1
            is_close = num_seen[attribution.query_id] <= num_close_ups
            yield _measured_document(
                folder.name, attribution, model, texts=texts, is_close=is_close, seed=seed
            )


def _measured_document(  # noqa: PLR0913 - a document, its model, and how closely it is looked at
    name: str, attribution: Attribution, model: _Model, *, texts: _Texts, is_close: bool, seed: int
) -> _Found:
    query, document = texts.queries[attribution.query_id], texts.documents[attribution.doc_id]
    deletion, worths = document_deletion(attribution, query, document, scorer=model.scorer, run=model.run)
    orders = _orders(attribution, query, lexical=texts.lexical, seed=seed)
    curves: list[Mapping[str, float]] = []
    stability: ByKind = {}
    deletions = measure_orders(deletion, orders, worths, num_top=NUM_TOP)
    if is_close:
        curves = list(measure_curves(orders, score=attribution.score, worths=worths))
        stability = measure_stability(
            query,
            document,
            visible=deletion.masked.text,
            attributor=model.attributor,
            seed=model.seed,
            documents=list(texts.documents.values()),
            lexical=texts.lexical,
        )
    return _Found(
        name=name,
        key=(query.query_id, document.doc_id),
        deletions=_by_order(_with_beaten(deletions)),
        curves=_by_order(curves) if is_close else {},
        stability=stability,
    )


def _orders(attribution: Attribution, query: Query, *, lexical: Bm25Retriever, seed: int) -> list[Order]:
    """Return the attribution's order, the lexical one, and `NUM_RANDOM` random ones."""
    weights = lexical.word_weights(query, [unit.text for unit in attribution.units])
    rng = np.random.default_rng(document_seed(seed, query.query_id, doc_id=attribution.doc_id))
    return [order_of(attribution.values), order_of(weights), *random_orders(len(weights), rng)]


def _with_beaten(found: Sequence[Faithfulness]) -> list[Mapping[str, float]]:
    """Return the measures of each order, with whether its top drop is above the mean one of random orders."""
    chance = mean_of(found[-NUM_RANDOM:]).top_drop
    return [{**asdict(one), "beats_random": float(one.top_drop > chance)} for one in found]


def _by_order(found: Sequence[Mapping[str, float]]) -> ByKind:
    """Return the measures of the orders of `_orders` by kind: the random ones are averaged."""
    own, by_words, *by_chance = found
    chance = {name: float(np.mean([one[name] for one in by_chance])) for name in own}
    return dict(zip(ORDERS, (own, by_words, chance), strict=True))


def _tables(found: Sequence[_Found], *, num_samples: int, seed: int) -> FaithfulnessTables:
    deletions = _measured([(one.name, one.key, one.deletions) for one in found])
    curves = _measured([(one.name, one.key, one.curves) for one in found])
    stability = _measured([(one.name, one.key, one.stability) for one in found])

    rows = partial(_rows, num_samples=num_samples, seed=seed)
    differences = partial(paired_differences, num_samples=num_samples, seed=seed)
    own = [one for one in deletions if one.kind == OWN]
    own_curves = [one for one in curves if one.kind == OWN]
    return FaithfulnessTables(
        num_top=NUM_TOP,
        num_words=NUM_WORDS,
        num_samples=num_samples,
        deletions=rows(deletions),
        against_baselines=tuple(
            differences(kind_pairs(deletions, kind=OWN), measures=COMPARED_WITH_BASELINES)
        ),
        between_names=(
            *differences(name_pairs(own), measures=COMPARED_BETWEEN_NAMES),
            *differences(name_pairs(own_curves), measures=["naopc"]),
        ),
        curves=rows(curves),
        curves_against_baselines=tuple(differences(kind_pairs(curves, kind=OWN), measures=["naopc"])),
        stability=rows(stability),
    )


def _rows(measured: Sequence[MeasuredDocuments], *, num_samples: int, seed: int) -> tuple[MeanRow, ...]:
    return tuple(mean_row(one, num_samples=num_samples, seed=seed) for one in measured)


def _measured(found: Sequence[tuple[str, tuple[str, str], ByKind]]) -> list[MeasuredDocuments]:
    """Return the measures of all documents by name and kind, in the order in which these first appear."""
    by_name: dict[str, dict[str, dict[tuple[str, str], Mapping[str, float]]]] = {}
    for name, key, by_kind in found:
        for kind, measures in by_kind.items():
            by_name.setdefault(name, {}).setdefault(kind, {})[key] = measures
    return [
        MeasuredDocuments(name, kind, measures)
        for name, by_kind in by_name.items()
        for kind, measures in by_kind.items()
    ]


def faithfulness_record(tables: FaithfulnessTables) -> dict[str, Any]:
    """Return tables as faithfulness.json holds them."""
    return {**asdict(tables), "shares": list(SHARES), "num_random": NUM_RANDOM}


def show_faithfulness(tables: FaithfulnessTables, *, console: Console) -> None:
    """Print one line per name and order."""
    rows = tables.deletions
    title = (
        f"{rows[0].num_documents} documents of {rows[0].num_queries} test queries: what deleting their words"
        f" does to the score, in logits; the top are {NUM_TOP} words"
    )
    shown = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for header in (
        "words by",
        "",
        "compre-\nhensiveness",
        "suffi-\nciency",
        "top\ndrop",
        "rank\nfalls",
        "beats\nrandom",
    ):
        shown.add_column(header, no_wrap=True)
    for row in rows:
        shown.add_row(
            escape(row.name), row.kind, *(f"{row.values[measure].mean:.3f}" for measure in DELETION_LABELS)
        )
    console.print(shown)
