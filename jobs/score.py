"""Score and rank candidates on Ray Data, shard by shard."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from jobs.leakage import judged, refuse_other_split
from jobs.manifest import finish_output, opened_output, require_finished, scoring_digests
from jobs.progress import shard_progress
from jobs.ray_session import Need, device_here, device_share, ray_session, require, require_shared
from jobs.shards import (
    ActorPool,
    Quarantined,
    Shard,
    commit_shard,
    pending_shards,
    plan_shards,
    read_quarantine,
)
from rerank_core.errors import DataError
from rerank_core.formats import (
    RUN,
    Columns,
    read_candidates,
    read_documents,
    read_queries,
    read_run,
    read_shards,
    read_split,
    table_of,
    write_trec_run,
)
from rerank_core.models.artefact import artefact_digest, check_artefact, load_artefact
from rerank_core.models.scorer import best_reading
from rerank_core.ranking.contract import rank

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jobs.config import ScoreJob
    from rerank_core.models.scorer import LongDocuments, Reading
    from rerank_core.records import Candidate

logger = logging.getLogger("whyrank.score")

RUN_COLUMNS: Columns = {**RUN, "is_truncated": pa.bool_()}


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """Where the run is; its queries, those in quarantine among them, and its documents that were cut."""

    run: Path
    num_queries: int
    num_quarantined: int
    num_truncated: int


def run_score(config: ScoreJob) -> ScoreResult:
    """Score what is not scored yet on a pool of actors, and return where the run is.

    Raises:
        WhyrankError: an input is missing or wrong, the cluster is too small, scoring failed for good, or the
            finished run cannot be written as TREC lines.
    """
    return _run(config, _score_on_pool)


def run_score_here(config: ScoreJob) -> ScoreResult:
    """Do as `run_score`, in this process and without Ray: for a caller that is itself a task of a cluster.

    Raises:
        WhyrankError: as `run_score`.
    """
    return _run(config, _score_here)


def _run(config: ScoreJob, score: Callable[[ScoreJob, Sequence[Shard], int], None]) -> ScoreResult:
    require_finished(config.prepared, job="prepare")
    check_artefact(config.artefact)
    refuse_other_split(config.artefact, judged(config.prepared, fold=config.fold))
    query_ids = selected_queries(config)
    inputs = scoring_digests(config.prepared, fold=config.fold)
    inputs["artefact"] = artefact_digest(config.artefact)
    with opened_output(config.output, job="score", config=config, inputs=inputs) as state:
        if state == "finished":
            logger.info("%s is finished: nothing to do", config.output)
        else:
            keys = [(query_id,) for query_id in query_ids]
            shards = plan_shards(config.output, keys, size=config.shard_queries)
            if pending := pending_shards(config.output, shards):
                score(config, pending, len(shards) - len(pending))
        truncated = read_shards(config.output / "data", {"is_truncated": pa.bool_()}).column("is_truncated")
        result = ScoreResult(
            run=config.output,
            num_queries=len(query_ids),
            num_quarantined=len(read_quarantine(config.output)),
            num_truncated=sum(truncated.to_pylist()),
        )
        if state != "finished":
            finish_output(
                config.output,
                results={
                    "queries": result.num_queries,
                    "quarantined": result.num_quarantined,
                    "truncated": result.num_truncated,
                },
            )
        logger.info("%s", _counts_line(result))
        if config.trec:  # last: identifiers that the format cannot express do not undo the run
            name = config.output.resolve().name
            write_trec_run(read_run(config.output, name), config.output / "run.trec")
    return result


def _counts_line(result: ScoreResult) -> str:
    num_ranked = result.num_queries - result.num_quarantined
    where = f" (reasons in {result.run / 'quarantine'})" if result.num_quarantined else ""
    return (
        f"{result.run}: {num_ranked} of {result.num_queries} queries ranked, {result.num_truncated} pairs"
        f" truncated, {result.num_quarantined} queries quarantined{where}"
    )


def selected_queries(config: ScoreJob) -> list[str]:
    """Return the ids of the queries to score, sorted.

    Raises:
        DataError: the prepared folder lacks the fold, or the split holds no query.
    """
    path = config.prepared / f"fold-{config.fold}" / "split.parquet"
    if not path.is_file():
        raise DataError(
            f"{path} is missing: {config.prepared} has no fold {config.fold}; pass a smaller --fold"
        )
    split_by_query = read_split(path)
    chosen = sorted(q for q, split in split_by_query.items() if config.split in ("all", split))
    if not chosen:
        raise DataError(f"{path}: no query is in the split {config.split!r}; pass another --split")
    return chosen


def _score_here(config: ScoreJob, pending: Sequence[Shard], _num_done: int) -> None:
    worker = ScoreWorker(**_worker_arguments(config))
    for shard in pending:
        worker(shard)


def _score_on_pool(config: ScoreJob, pending: Sequence[Shard], num_done: int) -> None:
    with ray_session(config.address):
        share = device_share(config.num_workers)
        require(Need(num_workers=config.num_workers, cpus=share.cpus, gpus=share.gpus))
        for folder in (config.prepared, config.artefact, config.output):
            require_shared(folder)
        pool = ActorPool(
            worker=ScoreWorker,
            arguments=_worker_arguments(config),
            num_workers=config.num_workers,
            num_cpus=share.cpus,
            num_gpus=share.gpus,
        )
        shard_progress(pending, pool, label="score", unit="documents", num_done=num_done)


def _worker_arguments(config: ScoreJob) -> dict[str, Any]:
    return {
        "prepared": str(config.prepared.resolve()),
        "artefact": str(config.artefact.resolve()),
        "output": str(config.output.resolve()),
        "max_tokens_per_batch": config.max_tokens_per_batch,
        "long_documents": config.long_documents,
    }


class ScoreWorker:
    """Scores the candidates of a shard's queries and commits them; built once per actor."""

    def __init__(
        self,
        *,
        prepared: str,
        artefact: str,
        output: str,
        max_tokens_per_batch: int,
        long_documents: LongDocuments,
    ) -> None:
        folder = Path(prepared)
        documents = read_documents(folder / "corpus.parquet")
        self._queries = read_queries(folder / "queries.parquet")
        self._candidates = read_candidates(folder / "candidates.parquet", documents)
        self._scorer = load_artefact(
            Path(artefact),
            device=device_here(),
            max_tokens_per_batch=max_tokens_per_batch,
            long_documents=long_documents,
        )
        self._output = Path(output)

    def __call__(self, shard: Shard) -> int:
        query_ids = [query_id for (query_id,) in shard.keys]
        lists = [(query_id, self._candidates[query_id]) for query_id in query_ids]
        pairs = [
            (self._queries[query_id], candidate.document)
            for query_id, candidates in lists
            for candidate in candidates
        ]
        scored = map(score_and_cut, self._scorer.readings(pairs))
        rows: list[tuple[object, ...]] = []
        quarantined: list[Quarantined] = []
        for query_id, candidates in lists:
            own = {candidate.document.doc_id: next(scored) for candidate in candidates}
            try:
                rows += ranked_rows(query_id, candidates, own, digest=self._scorer.digest)
            except DataError as error:  # a score that is not finite
                quarantined.append(Quarantined((query_id,), str(error)))
        table = table_of(rows, RUN_COLUMNS)
        commit_shard(self._output, shard, table, key_columns=("query_id",), quarantined=quarantined)
        return len(rows)


def score_and_cut(readings: Sequence[Reading]) -> tuple[float, bool]:
    """Return a document's score, and whether something of it, or of the query, was not read at all."""
    return best_reading(readings).score, any(reading.is_truncated for reading in readings)


def ranked_rows(
    query_id: str, candidates: Sequence[Candidate], scored: Mapping[str, tuple[float, bool]], *, digest: str
) -> list[tuple[object, ...]]:
    """Return the rows of one query's ranking, best first, in the order of `RUN_COLUMNS`.

    `scored` maps each doc_id to its score and whether it was truncated.
    """
    by_doc = {candidate.document.doc_id: candidate for candidate in candidates}
    doc_ids = list(by_doc)
    ranking = rank(
        query_id,
        doc_ids,
        scores=[scored[doc_id][0] for doc_id in doc_ids],
        first_stage_ranks=[by_doc[doc_id].first_stage_rank for doc_id in doc_ids],
    )
    rows: list[tuple[object, ...]] = []
    for place, (doc_id, score) in enumerate(zip(ranking.doc_ids, ranking.scores, strict=True), start=1):
        first = by_doc[doc_id]
        is_truncated = scored[doc_id][1]
        rows.append(
            (
                query_id,
                doc_id,
                first.first_stage_rank,
                first.first_stage_score,
                score,
                place,
                digest,
                is_truncated,
            )
        )
    return rows
