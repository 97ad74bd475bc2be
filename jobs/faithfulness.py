"""Attributions in, what deleting their words does to the scores out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from jobs.manifest import folder_digest, other_inputs, require_finished, text_digests
from jobs.progress import progress_bar
from jobs.run_folders import checked_fold
from rerank_core.attribution.contract import document_seed
from rerank_core.attribution.masking import TokenMasker
from rerank_core.attribution.table import read_attributions
from rerank_core.data.splits import members
from rerank_core.errors import ConfigError, DataError
from rerank_core.evaluation.faithfulness import (
    NUM_RANDOM,
    SHARES,
    Deletion,
    Faithfulness,
    mean_of,
    measure_orders,
    order_of,
    random_orders,
    word_spans,
)
from rerank_core.evaluation.significance import Interval, bootstrap_interval
from rerank_core.formats import read_documents, read_queries, read_run, read_split
from rerank_core.models.artefact import artefact_digest, load_artefact
from rerank_core.models.near_copies import NearCopies
from rerank_core.retrieval.bm25 import Bm25Retriever

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from rerank_core.models.scorer import LanguageModelScorer
    from rerank_core.records import Attribution, Document, Query, Run

NUM_TOP = 10
"""Words that are deleted at once for `top_drop` and `flip`."""

ORDERS = ("attribution", "lexical", "random")
"""By the attributed values; by the inverse document frequency of words that the query shares; by chance."""


@dataclass(frozen=True, slots=True)
class AttributionFolder:
    """A folder of attributions with the artefact and the run that it was made from."""

    name: str
    folder: Path
    artefact: Path
    run: Path
    fold: int


@dataclass(frozen=True, slots=True)
class FaithfulnessRow:
    """One order of the words of one name's documents, over their test queries.

    `beats_random` is the share of documents whose `top_drop` is larger than the mean one of random orders.
    """

    name: str
    order: str
    num_queries: int
    num_documents: int
    values: Mapping[str, Interval]
    beats_random: Interval


@dataclass(frozen=True, slots=True)
class _Texts:
    documents: Mapping[str, Document]
    queries: Mapping[str, Query]
    lexical: Bm25Retriever


def attribution_folders(named: Mapping[str, Sequence[Path]], *, prepared: Path) -> list[AttributionFolder]:
    """Return the folders with what they were made from, all of it checked.

    Raises:
        DataError: a folder is unfinished or not one of attributions.
        ConfigError: it, its artefact or its run is of other texts, those two are not where they lay, or two
            folders of one name are of one fold.
    """
    found = [_checked(name, folder, prepared=prepared) for name, some in named.items() for folder in some]
    for place, item in enumerate(found):
        if any((item.name, item.fold) == (other.name, other.fold) for other in found[:place]):
            raise ConfigError(
                f"{item.name!r} has two folders of fold {item.fold} ({item.folder} is the second); name one"
            )
    return found


def _checked(name: str, folder: Path, *, prepared: Path) -> AttributionFolder:
    manifest = require_finished(folder, job="attribute")
    others = other_inputs(manifest, text_digests(prepared))
    if others:
        raise ConfigError(f"{folder} attributes another {', '.join(others)} than that of {prepared}")
    artefact, run = (Path(manifest["config"][part]) for part in ("artefact", "run"))
    for part, path in (("artefact", artefact), ("run", run)):
        if not path.is_dir():
            raise ConfigError(f"the {part} of {folder} lay at {path}; put it back there, or attribute again")
    found = {
        "artefact": artefact_digest(artefact),
        "run": folder_digest(run, patterns=("data/shard-*.parquet",)),
    }
    others = other_inputs(manifest, found)
    if others:
        raise ConfigError(f"the {' and the '.join(others)} of {folder} changed since; attribute again")
    return AttributionFolder(name, folder, artefact, run, checked_fold(name, run, prepared=prepared))


def measure_faithfulness(
    folders: Sequence[AttributionFolder], *, prepared: Path, num_samples: int, seed: int
) -> list[FaithfulnessRow]:
    """Return a row per name and order, over the test queries of each folder's fold.

    Raises:
        DataError: a name has no attributed document of a test query.
    """
    documents = read_documents(prepared / "corpus.parquet")
    texts = _Texts(
        documents, read_queries(prepared / "queries.parquet"), Bm25Retriever(list(documents.values()))
    )
    measured: dict[str, dict[str, list[list[Faithfulness]]]] = {}
    for folder in folders:
        by_query = _measured_folder(folder, texts, prepared=prepared, seed=seed)
        measured.setdefault(folder.name, {}).update(by_query)
    return [
        _row(name, place, by_query, num_samples=num_samples, seed=seed)
        for name, by_query in measured.items()
        for place in range(len(ORDERS))
    ]


def _measured_folder(
    folder: AttributionFolder, texts: _Texts, *, prepared: Path, seed: int
) -> dict[str, list[list[Faithfulness]]]:
    """Return for each test query the measures of its documents, each in the order of `ORDERS`."""
    tested = frozenset(members(read_split(prepared / f"fold-{folder.fold}" / "split.parquet"))["test"])
    attributions = [
        found for found in read_attributions(folder.folder) if found.query_id in tested and found.units
    ]
    if not attributions:
        raise DataError(f"{folder.folder} attributes no document of a test query of fold {folder.fold}")
    scorer, run = load_artefact(folder.artefact), read_run(folder.run, folder.name)
    found: dict[str, list[list[Faithfulness]]] = {}
    with progress_bar() as progress:
        for attribution in progress.track(attributions, description=f"faithfulness of {folder.name}"):
            measures = _measured_document(attribution, scorer, texts=texts, run=run, seed=seed)
            found.setdefault(attribution.query_id, []).append(measures)
    return found


def _measured_document(
    attribution: Attribution, scorer: LanguageModelScorer, *, texts: _Texts, run: Run, seed: int
) -> list[Faithfulness]:
    query, document = texts.queries[attribution.query_id], texts.documents[attribution.doc_id]
    ranking = run.rankings[query.query_id]
    rivals = tuple(
        score
        for doc_id, score in zip(ranking.doc_ids, ranking.scores, strict=True)
        if doc_id != document.doc_id
    )
    spans = word_spans(attribution, document)
    masked = TokenMasker(scorer.tokenizer).masked(scorer.visible_content(query, document), spans)
    deletion = Deletion(query, masked, attribution.score, rivals)
    lexical = texts.lexical.word_weights(query, [unit.text for unit in attribution.units])
    rng = np.random.default_rng(document_seed(seed, query.query_id, doc_id=document.doc_id))
    orders = [order_of(attribution.values), order_of(lexical), *random_orders(len(spans), rng)]
    own, by_words, *by_chance = measure_orders(deletion, orders, NearCopies(scorer), num_top=NUM_TOP)
    return [own, by_words, mean_of(by_chance)]


def _row(
    name: str,
    place: int,
    by_query: Mapping[str, Sequence[Sequence[Faithfulness]]],
    *,
    num_samples: int,
    seed: int,
) -> FaithfulnessRow:
    means = {query_id: mean_of([found[place] for found in rows]) for query_id, rows in by_query.items()}
    beats = {
        query_id: sum(found[place].top_drop > found[-1].top_drop for found in rows) / len(rows)
        for query_id, rows in by_query.items()
    }
    values = {
        item.name: bootstrap_interval(
            {query_id: getattr(mean, item.name) for query_id, mean in means.items()},
            num_samples=num_samples,
            seed=seed,
        )
        for item in fields(Faithfulness)
    }
    return FaithfulnessRow(
        name=name,
        order=ORDERS[place],
        num_queries=len(by_query),
        num_documents=sum(len(rows) for rows in by_query.values()),
        values=values,
        beats_random=bootstrap_interval(beats, num_samples=num_samples, seed=seed),
    )


def faithfulness_record(rows: Sequence[FaithfulnessRow]) -> dict[str, Any]:
    """Return rows as faithfulness.json holds them."""
    return {
        "num_top": NUM_TOP,
        "shares": list(SHARES),
        "num_random": NUM_RANDOM,
        "rows": [asdict(row) for row in rows],
    }


def show_faithfulness(rows: Sequence[FaithfulnessRow], *, console: Console) -> None:
    """Print one line per name and order."""
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
        numbers = [f"{row.values[item.name].mean:.3f}" for item in fields(Faithfulness)]
        shown.add_row(escape(row.name), row.order, *numbers, f"{row.beats_random.mean:.2f}")
    console.print(shown)
