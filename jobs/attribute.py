"""Attribute the scores of a run's top documents on Ray Data, shard by shard."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from jobs.attribution_folders import ATTRIBUTOR_SETTINGS
from jobs.audit import (
    MAX_EVALS,
    AuditSummary,
    RunningError,
    audit_record,
    audit_shard,
    is_audited,
    summarise_audit,
    write_audit,
)
from jobs.deletions import document_deletion
from jobs.manifest import (
    QUERY_WORDS_FOLDER,
    RANK_FLIPS_FOLDER,
    SHARDS,
    finish_output,
    folder_digest,
    opened_output,
    other_inputs,
    require_finished,
    text_digests,
)
from jobs.progress import shard_progress
from jobs.ray_session import Need, device_here, device_share, ray_session, require, require_shared
from jobs.reuse import check_reusable_attributions, reusable_attributions
from jobs.run_folders import long_documents_of
from jobs.shards import (
    ActorPool,
    Key,
    Quarantined,
    Shard,
    commit_shard,
    pending_shards,
    plan_shards,
    read_quarantine,
)
from rerank_core.attribution.build import build_attributor
from rerank_core.attribution.contract import check_residual
from rerank_core.attribution.rank_flip import find_rank_flip
from rerank_core.attribution.rank_flip_table import rank_flips_table
from rerank_core.attribution.table import attributions_table
from rerank_core.errors import ConfigError, JobError, WhyrankError
from rerank_core.formats import RUN, read_documents, read_queries, read_run, read_shards, rows_of, write_table
from rerank_core.models.artefact import artefact_digest, check_artefact, load_artefact

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from jobs.config import AttributeJob
    from rerank_core.attribution.rank_flip import RankFlip
    from rerank_core.models.scorer import LongDocuments
    from rerank_core.records import Attribution, Document, Query, Run

logger = logging.getLogger("whyrank.attribute")


@dataclass(frozen=True, slots=True)
class AttributeResult:
    """Where the attributions are, of how many documents, those cut among them, and how many more failed.

    `num_without_query_words` documents lack the values of the query's words, where these were asked for.
    """

    attributions: Path
    num_documents: int
    num_truncated: int
    num_quarantined: int
    num_without_query_words: int = 0


def run_attribute(config: AttributeJob) -> AttributeResult:
    """Attribute what is not attributed yet, and return where the attributions are.

    Raises:
        WhyrankError: an input is missing or wrong, the run has another artefact or other texts, the cluster
            is too small, or attribution failed for good.
    """
    keys = planned_keys(config)
    inputs = {
        **text_digests(config.prepared),
        "artefact": artefact_digest(config.artefact),
        "run": folder_digest(config.run, patterns=SHARDS),
    }
    if (rule := long_documents_of(config.run)) != "truncate":
        inputs["long_documents"] = rule
    with opened_output(config.output, job="attribute", config=config, inputs=inputs) as state:
        if state == "finished":
            logger.info("%s is finished: nothing to do", config.output)
        else:
            check_reusable_attributions(config, inputs=inputs)
            _attribute_pending(config, keys)
        result = _result(config.output, num_planned=len(keys))
        if state != "finished":
            finish_output(
                config.output,
                results={
                    "documents": result.num_documents,
                    "truncated": result.num_truncated,
                    "quarantined": result.num_quarantined,
                    **({"without_query_words": result.num_without_query_words} if config.query_words else {}),
                    **audit_record(summarise_audit(config.output)),
                },
            )
    logger.info("%s", _counts_line(result))
    audited = summarise_audit(config.output)
    if audited:
        logger.info("%s", _audit_line(audited))
    return result


def _result(output: Path, *, num_planned: int) -> AttributeResult:
    quarantined = read_quarantine(output)
    if len(quarantined) == num_planned:
        first = quarantined[0]
        raise JobError(
            f"no document could be attributed: {output / 'quarantine'} holds all {num_planned}; the first,"
            f" {first.key}: {first.reason}; mend the cause, delete {output} and attribute again"
        )
    truncated = read_shards(output / "data", {"is_truncated": pa.bool_()}).column("is_truncated")
    return AttributeResult(
        attributions=output,
        num_documents=num_planned - len(quarantined),
        num_truncated=sum(truncated.to_pylist()),
        num_quarantined=len(quarantined),
        num_without_query_words=len(read_quarantine(output / QUERY_WORDS_FOLDER)),
    )


def _counts_line(result: AttributeResult) -> str:
    num_planned = result.num_documents + result.num_quarantined
    where = f" (reasons in {result.attributions / 'quarantine'})" if result.num_quarantined else ""
    without = (
        f"; {result.num_without_query_words} without values for the query's words (reasons in"
        f" {result.attributions / QUERY_WORDS_FOLDER / 'quarantine'})"
        if result.num_without_query_words
        else ""
    )
    return (
        f"{result.attributions}: {result.num_documents} of {num_planned} documents attributed,"
        f" {result.num_truncated} of them truncated, {result.num_quarantined} quarantined{where}{without}"
    )


def _audit_line(audited: AuditSummary) -> str:
    bound = "" if audited.bound_kept is None else f", bound kept by {audited.bound_kept:.0%}"
    return (
        f"audit of {audited.documents} documents against exact values:"
        f" relative error {audited.relative_l2:.2f}, Kendall's tau {audited.kendall_tau:.2f},"
        f" {audited.top_5:.0%} of the top 5 words{bound}"
    )


def planned_keys(config: AttributeJob) -> list[Key]:
    """Return (query_id, doc_id) of the documents to attribute: the top of the run, those of a query together.

    Raises:
        DataError: an input folder is missing, unfinished or broken.
        ArtefactError: the artefact is not one.
        ConfigError: the run was scored with another artefact, or on another corpus or other queries.
        JobError: the run ranks nothing.
    """
    require_finished(config.prepared, job="prepare")
    scored = require_finished(config.run, job="score")
    _refuse_other_texts(config, scored)
    check_artefact(config.artefact)
    rows = list(
        rows_of(read_shards(config.run / "data", RUN).select(["rank", "query_id", "doc_id", "model_digest"]))
    )
    if not rows:
        raise JobError(f"{config.run} ranks nothing to attribute; see why in {config.run / 'quarantine'}")
    _refuse_other_model(config, {row[3] for row in rows})
    chosen = set(sorted({row[1] for row in rows})[: config.max_queries])
    top = sorted((row for row in rows if row[0] <= config.top_k and row[1] in chosen), key=itemgetter(0, 1))[
        : config.max_documents
    ]
    return [(query_id, doc_id) for _, query_id, doc_id, _ in sorted(top, key=itemgetter(1, 0))]


def _refuse_other_texts(config: AttributeJob, scored: Mapping[str, Any]) -> None:
    others = other_inputs(scored, text_digests(config.prepared))
    if others:
        raise ConfigError(
            f"the run {config.run} was scored on another {', '.join(others)} than that of {config.prepared};"
            " pass the prepared folder of that run"
        )


def _refuse_other_model(config: AttributeJob, scored: Collection[str]) -> None:
    given = artefact_digest(config.artefact)
    others = sorted(set(scored) - {given})
    if others:
        raise ConfigError(
            f"the run {config.run} was scored with the model {others[0]}, but {config.artefact} is {given};"
            " pass that run's artefact, or score with this one first"
        )


def _attribute_pending(config: AttributeJob, keys: Sequence[Key]) -> None:
    shards = plan_shards(config.output, keys, size=config.shard_documents)
    pending = pending_shards(config.output, shards)
    if not pending:
        return
    with ray_session(config.address):
        share = device_share(config.num_workers)
        require(Need(num_workers=config.num_workers, cpus=share.cpus, gpus=share.gpus))
        flipped = (config.run,) if config.rank_flips else ()
        for folder in (config.prepared, config.artefact, config.output, *config.reuse, *flipped):
            require_shared(folder)
        pool = ActorPool(
            worker=AttributeWorker,
            arguments={
                "prepared": str(config.prepared.resolve()),
                "artefact": str(config.artefact.resolve()),
                "output": str(config.output.resolve()),
                "long_documents": long_documents_of(config.run),
                "settings": attributor_settings(config),
                "audit_share": config.audit_share,
                "seed": config.seed,
                "reuse": [str(folder.resolve()) for folder in config.reuse],
                "run": str(config.run.resolve()) if config.rank_flips else None,
                "query_words": config.query_words,
            },
            num_workers=config.num_workers,
            num_cpus=share.cpus,
            num_gpus=share.gpus,
        )
        shard_progress(
            pending,
            pool,
            label="attribute",
            unit="documents",
            num_done=len(shards) - len(pending),
            note=RunningError(config.output),
        )


def attributor_settings(config: AttributeJob) -> dict[str, Any]:
    """Return the arguments of `build_attributor` that a job names."""
    return {name: getattr(config, name) for name in ATTRIBUTOR_SETTINGS}


class AttributeWorker:
    """Attributes the documents of a shard and commits them; built once per actor."""

    def __init__(  # noqa: PLR0913 - an actor is given plain values, not the job
        self,
        *,
        prepared: str,
        artefact: str,
        output: str,
        settings: Mapping[str, Any],
        audit_share: float,
        seed: int,
        long_documents: LongDocuments,
        reuse: Sequence[str] = (),
        run: str | None = None,
        query_words: bool = False,
    ) -> None:
        """`long_documents` is how the run was scored, `settings` are those of `build_attributor`.

        Of the folders `reuse` attributions are taken over. With a `run` the few words are searched that hold
        each document at its rank there; with `query_words` the query's words are attributed too.
        """
        self._documents = read_documents(Path(prepared) / "corpus.parquet")
        self._queries = read_queries(Path(prepared) / "queries.parquet")
        self._scorer = load_artefact(Path(artefact), device=device_here(), long_documents=long_documents)
        self._attributor = build_attributor(self._scorer, **settings)
        unbounded = {**settings, "max_evals": MAX_EVALS, "max_error": 0.0}
        self._exactly = build_attributor(self._scorer, **unbounded)
        self._audit_share = audit_share
        self._output = Path(output)
        self._seed = seed
        self._reusable = reusable_attributions(map(Path, reuse))
        self._run = read_run(Path(run), "run") if run else None
        self._attributes_queries = query_words

    def __call__(self, shard: Shard) -> int:
        known = {key: self._reusable[key] for key in shard.keys if key in self._reusable}
        pairs = [
            (self._queries[query_id], self._documents[doc_id])
            for query_id, doc_id in shard.keys
            if (query_id, doc_id) not in known
        ]
        computed, quarantined = attribute_pairs(self._attributor.attribute, pairs, seed=self._seed)
        by_key = known | {(found.query_id, found.doc_id): found for found in computed}
        done = [by_key[key] for key in shard.keys if key in by_key]
        table = attributions_table(done, model_digest=self._scorer.digest)
        audited = [attribution for attribution in done if is_audited(attribution, share=self._audit_share)]
        if audited:
            found = audit_shard(audited, self._exactly, queries=self._queries, documents=self._documents)
            write_audit(self._output, found, shard=shard.index)
        if self._run is not None:
            flips = rank_flips_table(self._flips(done, self._run))
            folder = self._output / RANK_FLIPS_FOLDER
            folder.mkdir(exist_ok=True)
            write_table(flips, folder / f"shard-{shard.index:05d}.parquet")
        if self._attributes_queries:
            self._commit_query_words(done, shard=shard)
        commit_shard(self._output, shard, table, key_columns=("query_id", "doc_id"), quarantined=quarantined)
        return len(done)

    def _commit_query_words(self, attributions: Sequence[Attribution], *, shard: Shard) -> None:
        """Attribute the words of queries next to documents whose own words were attributed."""
        keys = tuple((found.query_id, found.doc_id) for found in attributions)
        pairs = [(self._queries[query_id], self._documents[doc_id]) for query_id, doc_id in keys]
        done, quarantined = attribute_pairs(self._attributor.attribute_query, pairs, seed=self._seed)
        commit_shard(
            self._output / QUERY_WORDS_FOLDER,
            Shard(shard.index, keys),
            attributions_table(done, model_digest=self._scorer.digest),
            key_columns=("query_id", "doc_id"),
            quarantined=quarantined,
        )

    def _flips(self, attributions: Sequence[Attribution], run: Run) -> dict[tuple[str, str], RankFlip]:
        flips = {}
        for found in attributions:
            query, document = self._queries[found.query_id], self._documents[found.doc_id]
            deletion, worths = document_deletion(found, query, document, scorer=self._scorer, run=run)
            flip = find_rank_flip(deletion, found.values, worths)
            if flip:
                flips[found.query_id, found.doc_id] = flip
        return flips


class Attribute(Protocol):
    """What an attributor does with documents of one query: `attribute`, or `attribute_query`."""

    def __call__(self, query: Query, documents: Sequence[Document], *, seed: int) -> list[Attribution]: ...


def attribute_pairs(
    attribute: Attribute, pairs: Sequence[tuple[Query, Document]], *, seed: int
) -> tuple[list[Attribution], list[Quarantined]]:
    """Return the attributions that add up to their scores, and the other pairs with the reason, in order."""
    done: list[Attribution] = []
    quarantined: list[Quarantined] = []
    for query, group in groupby(pairs, key=itemgetter(0)):
        more, failed = _attribute_together(attribute, query, [document for _, document in group], seed=seed)
        done += more
        quarantined += failed
    return done, quarantined


def _attribute_together(
    attribute: Attribute, query: Query, documents: Sequence[Document], *, seed: int
) -> tuple[list[Attribution], list[Quarantined]]:
    """Attribute documents of one query; where that fails, halve them, down to the one that is to blame."""
    try:
        attributions = attribute(query, documents, seed=seed)
    except WhyrankError as error:
        if len(documents) == 1:
            return [], [Quarantined((query.query_id, documents[0].doc_id), str(error))]
        half = len(documents) // 2
        first = _attribute_together(attribute, query, documents[:half], seed=seed)
        second = _attribute_together(attribute, query, documents[half:], seed=seed)
        return first[0] + second[0], first[1] + second[1]
    return _sorted_out(attributions)


def _sorted_out(attributions: Sequence[Attribution]) -> tuple[list[Attribution], list[Quarantined]]:
    """Return the attributions that add up to their scores, and the others with the reason."""
    done: list[Attribution] = []
    quarantined: list[Quarantined] = []
    for attribution in attributions:
        try:
            check_residual(attribution)
        except WhyrankError as error:
            quarantined.append(Quarantined((attribution.query_id, attribution.doc_id), str(error)))
        else:
            done.append(attribution)
    return done, quarantined
