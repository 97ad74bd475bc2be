"""Run folders in, the rankings of the test queries out: each query by the run of its own fold."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from jobs.manifest import other_inputs, require_finished, scoring_digests
from jobs.shards import read_quarantine
from rerank_core.data.splits import members
from rerank_core.errors import ConfigError, DataError
from rerank_core.evaluation.baselines import first_stage_rankings
from rerank_core.evaluation.comparison import check_candidates, fused_rankings
from rerank_core.formats import read_candidates, read_documents, read_qrels, read_run, read_split

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from rerank_core.data.splits import Fold
    from rerank_core.models.scorer import LongDocuments
    from rerank_core.records import Candidate, Qrels, Ranking

logger = logging.getLogger("whyrank.runs")


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a prepared folder says about the queries that are evaluated."""

    candidates: Mapping[str, Sequence[Candidate]]
    qrels: Qrels
    folds: Mapping[int, Fold]
    relevant_from: int


@dataclass(frozen=True, slots=True)
class NamedRun:
    """The run folders of one name, by fold, read and checked; how many test queries have no ranking."""

    name: str
    rankings_by_fold: Mapping[int, Mapping[str, Ranking]]
    num_quarantined: int


def long_documents_of(run: Path) -> LongDocuments:
    """Return what a finished run made of documents that did not fit: what explains it has to do the same."""
    rule: LongDocuments = require_finished(run, job="score")["config"].get("long_documents", "truncate")
    return rule


def checked_fold(name: str, folder: Path, *, prepared: Path) -> int:
    """Return the fold that a run folder was scored for, after a check that it was this fold of this folder.

    Raises:
        DataError: the run is unfinished, or names no fold.
        ConfigError: it was scored on another split, other texts or candidates.
    """
    manifest = require_finished(folder, job="score")
    fold = manifest["config"].get("fold")
    if not isinstance(fold, int):
        raise DataError(f"{folder / 'manifest.json'} names no fold; score again with `whyrank score --fold`")
    others = other_inputs(manifest, scoring_digests(prepared, fold=fold))
    if others:
        raise ConfigError(
            f"run {name!r} in {folder} was scored on another {', '.join(others)} than fold {fold} of"
            f" {prepared}; pass the prepared folder of that run, or score again"
        )
    return fold


def read_prepared(folder: Path, *, folds: Sequence[int]) -> Prepared:
    """Return candidates and judgements of a prepared folder, and the splits of some of its folds."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return Prepared(
        read_candidates(folder / "candidates.parquet", read_documents(folder / "corpus.parquet")),
        read_qrels(folder / "qrels.parquet"),
        {fold: read_split(folder / f"fold-{fold}" / "split.parquet") for fold in folds},
        summary["relevant_from"],
    )


def read_named(
    name: str, folders: Sequence[Path], *, fold_by_folder: Mapping[Path, int], prepared: Prepared
) -> NamedRun:
    """Return the run folders of one name, one per fold of `prepared`; folders of other folds are passed over.

    A query in quarantine is ranked as the first stage did, after a word on it.

    Raises:
        DataError: two folders are of one fold, a test query is in none of them, all of a fold's test queries
            are in quarantine, or a ranking is not of the query's candidates.
    """
    rankings_by_fold: dict[int, Mapping[str, Ranking]] = {}
    num_quarantined = 0
    for folder in folders:
        fold = fold_by_folder[folder]
        if fold in rankings_by_fold:
            raise DataError(f"run {name!r} has two folders of fold {fold} ({folder} is the second); name one")
        if fold in prepared.folds:
            unranked = _quarantined(folder, prepared)
            num_quarantined += _num_tested(name, folder, unranked=unranked, split=prepared.folds[fold])
            rankings_by_fold[fold] = {**read_run(folder, name).rankings, **unranked}
    for fold, split in prepared.folds.items():
        _check_covers(name, fold, split=split, rankings=rankings_by_fold.get(fold, {}))
        check_candidates(rankings_by_fold[fold], prepared.candidates)
    return NamedRun(name, rankings_by_fold, num_quarantined)


def _quarantined(folder: Path, prepared: Prepared) -> dict[str, Ranking]:
    """The queries of a run folder that got no ranking, in the order of the first stage, with equal scores."""
    query_ids = [row.key[0] for row in read_quarantine(folder)]
    ordered = first_stage_rankings({query_id: prepared.candidates[query_id] for query_id in query_ids})
    # The first stage's scores would be read as the model's by metrics of scores.
    return {q: replace(ranking, scores=(0.0,) * len(ranking.scores)) for q, ranking in ordered.items()}


def _num_tested(name: str, folder: Path, *, unranked: Mapping[str, Ranking], split: Fold) -> int:
    """The number of test queries among those without a ranking, after a word on them."""
    tested = members(split)["test"]
    num = sum(query_id in unranked for query_id in tested)
    where = folder / "quarantine"
    if num and num == len(tested):
        raise DataError(
            f"run {name!r} ranks no test query: {where} holds all {num} of them; mend the cause named there,"
            " and score into another folder"
        )
    if num:
        logger.warning(
            "run %r has no ranking of %d of %d test queries (reasons in %s): they count in the order of the"
            " first stage",
            name,
            num,
            len(tested),
            where,
        )
    return num


def _check_covers(name: str, fold: int, *, split: Fold, rankings: Mapping[str, Ranking]) -> None:
    missing = [query_id for query_id in members(split)["test"] if query_id not in rankings]
    if missing:
        raise DataError(
            f"run {name!r} does not rank test query {missing[0]!r} of fold {fold}; name its folder of that"
            f" fold too, written by `whyrank score --fold {fold} --split test` (or all)"
        )


def pooled_rankings(
    run: NamedRun, prepared: Prepared, *, weights: Mapping[int, float] | None = None
) -> dict[str, Ranking]:
    """Return each test query's ranking by the run of its own fold, fused with the first stage by weights."""
    pooled: dict[str, Ranking] = {}
    for fold, split in prepared.folds.items():
        rankings = rankings_of(run.rankings_by_fold[fold], members(split)["test"])
        if weights is not None:
            rankings = fused_rankings(rankings, prepared.candidates, weight=weights[fold])
        pooled |= rankings
    return pooled


def rankings_of(rankings: Mapping[str, Ranking], query_ids: Sequence[str]) -> dict[str, Ranking]:
    """Return the rankings of some queries."""
    return {query_id: rankings[query_id] for query_id in query_ids}
