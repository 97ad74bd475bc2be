"""What to explain: the attributed documents of a run, as placements."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from jobs.manifest import SHARDS, file_digest, folder_digest, require_finished
from rerank_core.attribution.table import read_attributions
from rerank_core.errors import ConfigError, DataError
from rerank_core.explanation.evidence import contrast_evidence, select_evidence
from rerank_core.explanation.task import Placement, read_document
from rerank_core.formats import RUN, read_documents, read_queries, read_shards, rows_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from jobs.config import ExplainJob
    from jobs.shards import Key
    from rerank_core.records import Attribution, Document

WORD_LEAVES = ("token", "word")


def planned_placements(config: ExplainJob) -> dict[Key, tuple[Placement, ...]]:
    """Return what to explain by (query_id, doc_id), as attributed: with its attribution, and without.

    With `config.contrast` a third placement asks why the document stands above the next-ranked one, where
    that one is attributed too.

    Raises:
        DataError: an input folder is missing, unfinished or broken, or does not know an attributed document.
        ConfigError: the attributions belong to another run or corpus.
    """
    require_finished(config.prepared, job="prepare")
    require_finished(config.run, job="score")
    attributed = require_finished(config.attributions, job="attribute")
    _refuse_others(config, attributed["digests"])
    leaf = attributed["config"].get("leaf", "token")
    if leaf not in WORD_LEAVES:
        raise ConfigError(
            f"{config.attributions} has a value per {leaf}, but explanations cite words; attribute with"
            " --leaf token or word"
        )
    rank_by_key, num_by_query = _ranks(config.run)
    documents = read_documents(config.prepared / "corpus.parquet")
    queries = read_queries(config.prepared / "queries.parquet")
    placements: dict[Key, tuple[Placement, ...]] = {}
    attributions: dict[Key, Attribution] = {
        (found.query_id, found.doc_id): found for found in read_attributions(config.attributions)
    }
    for key, attribution in attributions.items():
        if key not in rank_by_key:
            raise DataError(
                f"{config.attributions} attributes {key}, which {config.run} does not rank; attribute again"
            )
        with_words = Placement(
            query=queries[attribution.query_id],
            document=read_document(attribution, documents[attribution.doc_id]),
            rank=rank_by_key[key],
            num_candidates=num_by_query[attribution.query_id],
            evidence=select_evidence(attribution, k=config.num_words),
        )
        placements[key] = (with_words, dataclasses.replace(with_words, evidence=None))
    if config.contrast:
        for key, compared in _contrasts(config, placements, attributions=attributions, documents=documents):
            placements[key] = (*placements[key], compared)
    if not placements:
        raise DataError(
            f"{config.attributions} holds no attribution, so there is nothing to explain; see its quarantine"
        )
    return placements


def _contrasts(
    config: ExplainJob,
    placements: Mapping[Key, tuple[Placement, ...]],
    *,
    attributions: Mapping[Key, Attribution],
    documents: Mapping[str, Document],
) -> Iterator[tuple[Key, Placement]]:
    """Yield for each document whose next-ranked one is attributed too what to ask about the two."""
    key_by_place = {(key[0], found[0].rank): key for key, found in placements.items()}
    for (query_id, rank), key in key_by_place.items():
        lower = key_by_place.get((query_id, rank + 1))
        if lower is None:
            continue
        evidence = contrast_evidence(
            attributions[key],
            attributions[lower],
            document=read_document(attributions[lower], documents[lower[1]]),
            rank=rank + 1,
            k=config.num_words,
        )
        assert evidence.contrast is not None
        if round(evidence.contrast.margin, 2) > 0:  # else nothing that is told could tell them apart
            yield key, dataclasses.replace(placements[key][0], evidence=evidence)


def _refuse_others(config: ExplainJob, digests: Mapping[str, str]) -> None:
    given = {
        "run": (config.run, folder_digest(config.run, patterns=SHARDS)),
        "corpus": (config.prepared, file_digest(config.prepared / "corpus.parquet")),
        "queries": (config.prepared, file_digest(config.prepared / "queries.parquet")),
    }
    for name, (folder, digest) in given.items():
        if digests.get(f"input:{name}") != digest:
            raise ConfigError(
                f"{config.attributions} was made from another {name} than that of {folder}; pass folders that"
                " belong together, or run `whyrank attribute` with these first"
            )


def _ranks(run: Path) -> tuple[dict[Key, int], dict[str, int]]:
    """Return the rank by (query_id, doc_id), and the number of ranked documents by query."""
    rank_by_key: dict[Key, int] = {}
    num_by_query: dict[str, int] = {}
    for query_id, doc_id, rank in rows_of(
        read_shards(run / "data", RUN).select(["query_id", "doc_id", "rank"])
    ):
        rank_by_key[query_id, doc_id] = rank
        num_by_query[query_id] = num_by_query.get(query_id, 0) + 1
    return rank_by_key, num_by_query
