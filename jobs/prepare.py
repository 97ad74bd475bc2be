"""A collection in, the tables of every later job out."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs.manifest import OutputState, file_digest, finish_output, folder_digest, opened_output, write_json
from rerank_core.data.candidates import (
    graded,
    judged_pool,
    pooled_candidates,
    retrieved_candidates,
    without_excluded,
)
from rerank_core.data.loading import (
    JUDGES_QUARANTINED,
    collection_folder,
    load_collection,
    load_exclusions,
)
from rerank_core.data.preferences import preference_pairs
from rerank_core.data.splits import members, plan_folds
from rerank_core.formats import (
    QUARANTINE,
    candidates_table,
    documents_table,
    pairs_table,
    pointwise_table,
    qrels_table,
    queries_table,
    split_table,
    table_of,
    write_table,
)
from rerank_core.retrieval.bm25 import Bm25Retriever

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from jobs.config import PrepareJob
    from rerank_core.data.splits import Fold
    from rerank_core.records import Candidate, Collection, Document, GradedCandidate, PreferencePair, Qrels

logger = logging.getLogger("whyrank.prepare")

SUMMARY = "summary.json"
COLLECTION_FILES = (
    "corpus.*",
    "queries.*",
    "qrels.*",
    "splits.json",
    "collection.json",
    "exclude.tsv",
)


@dataclass(frozen=True, slots=True)
class PrepareResult:
    """Where the tables are, and what was counted."""

    output: Path
    state: OutputState
    summary: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Input:
    """A collection as this job uses it: long documents cut, excluded pairs gone."""

    collection: Collection
    qrels: Qrels
    exclusions: Mapping[str, frozenset[str]]
    num_truncated: int


@dataclass(frozen=True, slots=True)
class _TrainingRows:
    """The pointwise rows and preference pairs of every query."""

    pointwise: Mapping[str, Sequence[GradedCandidate]]
    pairs: Mapping[str, Sequence[PreferencePair]]
    num_dropped: int


def run_prepare(config: PrepareJob) -> PrepareResult:
    """Write candidates, splits, pointwise rows and preference pairs of a collection as Parquet.

    Candidates are the judged pool in BM25 order, whole, where the collection ships one (or the config asks
    for it); else the BM25 top k, `train_candidates` for the training rows, `eval_candidates` for scoring. An
    excluded pair is neither candidate nor judgement.

    Raises:
        DataError: an input is wrong; nothing has been written then.
        OutputConflictError: the output folder belongs to other settings or inputs.
    """
    source = _load(config)
    with opened_output(config.output, job="prepare", config=config, inputs=_input_digests(config)) as state:
        if state == "finished":
            logger.info("%s is finished: nothing to do", config.output)
            summary = json.loads((config.output / SUMMARY).read_text(encoding="utf-8"))
            return PrepareResult(config.output, state, summary)
        summary = _write_all(config, source)
        finish_output(config.output, results=summary)
    show_summary(summary, console=Console())
    return PrepareResult(config.output, state, summary)


def show_summary(summary: Mapping[str, Any], *, console: Console) -> None:
    """Print the counts of a prepared folder."""
    table = Table("what", "count", title=f"prepared {escape(summary['collection'])}")
    for name, value in summary.items():
        if name != "collection":
            table.add_row(name.replace("_", " "), str(value))
    console.print(table)


def _load(config: PrepareJob) -> _Input:
    collection = load_collection(config.collection, use_splits=config.num_folds == 0)
    exclusions: dict[str, frozenset[str]] = {}
    for path in _exclusion_files(config):
        for query_id, doc_ids in load_exclusions(path, collection).items():
            exclusions[query_id] = exclusions.get(query_id, frozenset()) | doc_ids
    documents = {
        d.doc_id: _cut(d, max_chars=config.max_document_chars) for d in collection.documents.values()
    }
    num_truncated = sum(
        documents[doc_id] is not document for doc_id, document in collection.documents.items()
    )
    qrels = without_excluded(collection.qrels, exclusions)
    return _Input(replace(collection, documents=documents), qrels, exclusions, num_truncated)


def _exclusion_files(config: PrepareJob) -> list[Path]:
    folder = collection_folder(config.collection)
    shipped = [folder / "exclude.tsv"] if folder and (folder / "exclude.tsv").is_file() else []
    return [*shipped, *([config.exclude] if config.exclude else [])]


def _cut(document: Document, *, max_chars: int) -> Document:
    """Return the document with title and text within the limit; the very same one where they are."""
    if max(len(document.title), len(document.text)) <= max_chars:
        return document
    return replace(document, title=document.title[:max_chars], text=document.text[:max_chars])


def _input_digests(config: PrepareJob) -> dict[str, str]:
    folder = collection_folder(config.collection)
    if folder is None:  # the catalogue checks its own downloads
        digests = {"collection": hashlib.sha256(config.collection.encode()).hexdigest()}
    else:
        digests = {"collection": folder_digest(folder, patterns=COLLECTION_FILES)}
    if config.exclude:
        digests["exclude"] = file_digest(config.exclude)
    return digests


def _write_all(config: PrepareJob, source: _Input) -> dict[str, Any]:
    query_ids = sorted(source.qrels)
    splits = source.collection.splits
    folds = plan_folds(
        query_ids,
        shipped=splits and {query_id: splits[query_id] for query_id in query_ids},
        num_folds=config.num_folds,
        rng=np.random.default_rng(config.seed),
    )
    candidates = _candidates(config, source)
    training = _training_rows(config, source, candidates=candidates)
    _write_tables(config.output, source, candidates=candidates)
    for k, fold in enumerate(folds):
        _write_fold(config.output / f"fold-{k}", fold, training=training)
    summary = _summary(config, source, candidates=candidates, training=training) | {"num_folds": len(folds)}
    write_json(config.output / SUMMARY, summary)
    return summary


def _candidates(config: PrepareJob, source: _Input) -> dict[str, list[Candidate]]:
    documents = source.collection.documents
    queries = [source.collection.queries[query_id] for query_id in sorted(source.qrels)]
    first_stage = Bm25Retriever(list(documents.values()))
    if not _uses_pool(config, source.collection):
        return retrieved_candidates(
            queries, first_stage, k=config.eval_candidates, exclusions=source.exclusions
        )
    pool = source.collection.pool or judged_pool(source.qrels)
    found = {query.query_id: [documents[doc_id] for doc_id in pool[query.query_id]] for query in queries}
    return pooled_candidates(queries, first_stage, pool=found, exclusions=source.exclusions)


def _uses_pool(config: PrepareJob, collection: Collection) -> bool:
    return config.candidates == "pool" or (config.candidates == "auto" and collection.pool is not None)


def _training_rows(
    config: PrepareJob, source: _Input, *, candidates: Mapping[str, Sequence[Candidate]]
) -> _TrainingRows:
    depth = None if _uses_pool(config, source.collection) else config.train_candidates
    pointwise, pairs, num_dropped = {}, {}, 0
    for query_id, found in candidates.items():
        rows = graded(query_id, found[:depth], source.qrels[query_id])
        pointwise[query_id] = rows
        pairs[query_id], dropped = preference_pairs(rows, top=config.pairs_top, bottom=config.pairs_bottom)
        num_dropped += dropped
    return _TrainingRows(pointwise, pairs, num_dropped)


def _write_tables(output: Path, source: _Input, *, candidates: Mapping[str, Sequence[Candidate]]) -> None:
    collection = source.collection
    documents = [collection.documents[doc_id] for doc_id in sorted(collection.documents)]
    write_table(documents_table(documents), output / "corpus.parquet")
    write_table(
        queries_table(collection.queries[query_id] for query_id in sorted(source.qrels)),
        output / "queries.parquet",
    )
    write_table(qrels_table(source.qrels), output / "qrels.parquet")
    write_table(candidates_table(candidates), output / "candidates.parquet")
    quarantined = [[item[name] for name in QUARANTINE] for item in collection.quarantined]
    write_table(table_of(quarantined, QUARANTINE), output / "quarantine.parquet")


def _write_fold(folder: Path, fold: Fold, *, training: _TrainingRows) -> None:
    folder.mkdir(exist_ok=True)
    write_table(split_table(fold), folder / "split.parquet")
    for split, query_ids in members(fold).items():
        (folder / split).mkdir(exist_ok=True)
        pointwise = [row for query_id in query_ids for row in training.pointwise[query_id]]
        pairs = [pair for query_id in query_ids for pair in training.pairs[query_id]]
        write_table(pointwise_table(pointwise), folder / split / "pointwise.parquet")
        write_table(pairs_table(pairs), folder / split / "pairs.parquet")


def _summary(
    config: PrepareJob,
    source: _Input,
    *,
    candidates: Mapping[str, Sequence[Candidate]],
    training: _TrainingRows,
) -> dict[str, Any]:
    collection = source.collection
    num_judgements = sum(len(grades) for grades in source.qrels.values())
    dropped_judgements = sum(item["reason"] == JUDGES_QUARANTINED for item in collection.quarantined)
    return {
        "collection": collection.name,
        "queries": len(source.qrels),
        "documents": len(collection.documents),
        "judgements": num_judgements,
        "candidates": sum(len(found) for found in candidates.values()),
        "candidates_from": "pool" if _uses_pool(config, collection) else "bm25",
        "pointwise": sum(len(rows) for rows in training.pointwise.values()),
        "pairs": sum(len(pairs) for pairs in training.pairs.values()),
        "dropped_equal_pairs": training.num_dropped,
        "queries_without_pairs": sum(not pairs for pairs in training.pairs.values()),
        "short_lists": sum(
            len(rows) < config.pairs_top + config.pairs_bottom for rows in training.pointwise.values()
        ),
        "quarantined": collection.num_quarantined - dropped_judgements,
        "dropped_judgements": dropped_judgements,
        "excluded_judgements": sum(len(grades) for grades in collection.qrels.values()) - num_judgements,
        "truncated": source.num_truncated,
        "relevant_from": collection.relevant_from,
    }
