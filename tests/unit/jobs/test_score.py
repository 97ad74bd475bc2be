"""Which queries are scored, in which order their documents come out, and what a shard holds; without Ray."""

from __future__ import annotations

import logging
import math
import shutil
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest
import torch

from jobs.config import ScoreJob
from jobs.leakage import judged
from jobs.manifest import opened_output, read_manifest, scoring_digests
from jobs.score import (
    RUN_COLUMNS,
    ScoreResult,
    ScoreWorker,
    ranked_rows,
    run_score,
    selected_queries,
)
from jobs.shards import Shard, plan_shards, read_quarantine
from rerank_core.errors import ArtefactError, ConfigError, DataError, OutputConflictError
from rerank_core.formats import (
    read_candidates,
    read_documents,
    read_queries,
    read_run,
    read_shards,
    read_split,
    read_trec_run,
    rows_of,
    split_table,
    write_table,
)
from rerank_core.models.artefact import artefact_digest, load_artefact, save_artefact
from rerank_core.models.build import build_encoder, build_model, load_tokenizer
from rerank_core.models.scorer import LanguageModelScorer
from rerank_core.ranking.contract import is_permutation
from rerank_core.records import Candidate, Document, Query

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

POISON = "aurora"
"""The artefact's state for this word is not a number, as after an overflow; query q03 alone has it."""


@pytest.fixture(scope="module")
def poisoned(prepared_folder: Path, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artefact that scores every query but those with one poisoned word."""
    model = build_model(model_folder, head="linear", num_layers=None, seed=0)
    tokenizer = load_tokenizer(model_folder)
    encoder = build_encoder(tokenizer, model.config, head="linear", max_length=64)
    (token_id,) = tokenizer.encode(POISON, add_special_tokens=False)
    with torch.no_grad():
        model.get_parameter("backbone.embeddings.word_embeddings.weight")[token_id] = math.nan
    golden = [(query, Document("g", "ice")) for query in queries(prepared_folder) if "ice" in query.text]
    folder = tmp_path_factory.mktemp("artefact") / "dpo"
    scorer = LanguageModelScorer(model, encoder, digest="")
    provenance = {"judged": [asdict(judged(prepared_folder, fold=1))], "fold": 1}
    save_artefact(scorer, folder, head="linear", golden=golden, provenance=provenance)
    return folder


def queries(prepared: Path) -> list[Query]:
    return list(read_queries(prepared / "queries.parquet").values())


@pytest.fixture
def config(prepared_folder: Path, poisoned: Path, tmp_path: Path) -> ScoreJob:
    return ScoreJob(
        prepared=prepared_folder, artefact=poisoned, output=tmp_path / "run", fold=1, shard_queries=5
    )


# --- which queries


@pytest.mark.parametrize("fold", [0, 3])
def test_the_queries_of_a_split_are_chosen_by_the_fold(config: ScoreJob, fold: int) -> None:
    config = replace(config, fold=fold)
    split_by_query = read_split(config.prepared / f"fold-{fold}" / "split.parquet")
    for split in ("train", "dev", "test"):
        chosen = selected_queries(replace(config, split=split))
        assert chosen == sorted(q for q, its in split_by_query.items() if its == split)
        assert chosen
    assert selected_queries(replace(config, split="all")) == sorted(split_by_query)


def test_a_fold_that_is_not_there_is_refused(config: ScoreJob) -> None:
    with pytest.raises(DataError, match=r"fold-5/split\.parquet is missing: .* pass a smaller --fold"):
        selected_queries(replace(config, fold=5))


def test_an_artefact_is_scored_on_its_own_fold_only(config: ScoreJob) -> None:
    with pytest.raises(ConfigError, match=r"another split of these queries \(fold 1 "):
        run_score(replace(config, fold=0))
    assert not config.output.exists()


def test_a_missing_artefact_is_refused_before_any_output(config: ScoreJob, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="train one first"):
        run_score(replace(config, artefact=tmp_path / "nothing"))
    assert not config.output.exists()


# --- one query


Scored = dict[str, tuple[float, bool]]


def scored_candidates(score_by_rank: Mapping[int, float]) -> tuple[list[Candidate], Scored]:
    """Return candidates with their scores; the document of rank 2 was cut."""
    found = [Candidate(Document(f"d{rank}", "text"), rank, 10.0 - rank) for rank in score_by_rank]
    return found, {f"d{rank}": (score, rank == 2) for rank, score in score_by_rank.items()}


def test_rows_come_out_by_score_and_ties_in_the_first_stages_order() -> None:
    candidates, scored = scored_candidates({3: 0.5, 1: 0.5, 2: 2.0, 4: -1.0})
    rows = ranked_rows("q", candidates, scored, digest="m")
    names = list(RUN_COLUMNS)
    assert [dict(zip(names, row, strict=True))["doc_id"] for row in rows] == ["d2", "d1", "d3", "d4"]
    assert dict(zip(names, rows[0], strict=True)) == {
        "query_id": "q",
        "doc_id": "d2",
        "first_stage_rank": 2,
        "first_stage_score": 8.0,
        "score": 2.0,
        "rank": 1,
        "model_digest": "m",
        "is_truncated": True,
    }


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_no_ranking(score: float) -> None:
    candidates, scored = scored_candidates({1: 0.5, 2: score})
    with pytest.raises(DataError, match=f"score of document 'd2' for query 'q' is {score}"):
        ranked_rows("q", candidates, scored, digest="m")


# --- a shard, and a whole run


def worker(config: ScoreJob) -> ScoreWorker:
    return ScoreWorker(
        prepared=str(config.prepared),
        artefact=str(config.artefact),
        output=str(config.output),
        max_tokens_per_batch=256,
        long_documents=config.long_documents,
    )


def test_a_shard_holds_an_exact_permutation_of_each_querys_candidates(config: ScoreJob) -> None:
    shard = Shard(0, (("q00",), ("q02",)))
    num_rows = worker(config)(shard)
    documents = read_documents(config.prepared / "corpus.parquet")
    candidates = read_candidates(config.prepared / "candidates.parquet", documents)
    rankings = read_run(config.output, "run").rankings
    assert sorted(rankings) == ["q00", "q02"]
    assert num_rows == sum(len(ranking.doc_ids) for ranking in rankings.values())
    scorer = load_artefact(config.artefact)
    for query_id, ranking in rankings.items():
        assert is_permutation(ranking, [c.document.doc_id for c in candidates[query_id]])
        query = read_queries(config.prepared / "queries.parquet")[query_id]
        scores = scorer.score(query, [documents[doc_id] for doc_id in ranking.doc_ids])
        assert list(ranking.scores) == pytest.approx(scores, abs=1e-5)
        assert list(ranking.scores) == sorted(ranking.scores, reverse=True)


def test_a_document_that_is_too_long_may_have_the_score_of_its_best_chunk(config: ScoreJob) -> None:
    worker(replace(config, long_documents="max_chunk"))(Shard(0, (("q00",), ("q02",))))
    documents = read_documents(config.prepared / "corpus.parquet")
    by_query = read_queries(config.prepared / "queries.parquet")
    cutting = load_artefact(config.artefact)
    chunking = load_artefact(config.artefact, long_documents="max_chunk")
    differing = set()
    for query_id, ranking in read_run(config.output, "run").rankings.items():
        for doc_id, score in zip(ranking.doc_ids, ranking.scores, strict=True):
            pair = (by_query[query_id], documents[doc_id])
            assert score == pytest.approx(chunking.score_pairs([pair])[0], abs=1e-5)
            if abs(score - cutting.score_pairs([pair])[0]) > 1e-4:
                differing.add(doc_id)
    assert differing == {"d05"}
    cut = read_shards(config.output / "data", {"is_truncated": pa.bool_()})
    assert not any(cut.column("is_truncated").to_pylist())


def test_a_query_whose_score_is_not_finite_is_quarantined_and_the_others_are_not(config: ScoreJob) -> None:
    keys = tuple((query.query_id,) for query in queries(config.prepared))
    worker(config)(Shard(0, keys))
    (failed,) = read_quarantine(config.output)
    assert failed.key == ("q03",)
    assert "is nan; score it again" in failed.reason
    assert {(query_id,) for query_id in read_run(config.output, "run").rankings} == {*keys} - {failed.key}


def committed_before_a_kill(config: ScoreJob) -> None:
    """Claim the output and commit every shard, as an execution does that is killed before its last step."""
    inputs = scoring_digests(config.prepared, fold=config.fold)
    inputs["artefact"] = artefact_digest(config.artefact)
    with opened_output(config.output, job="score", config=config, inputs=inputs):
        keys = [(query_id,) for query_id in selected_queries(config)]
        score = worker(config)
        for shard in plan_shards(config.output, keys, size=config.shard_queries):
            score(shard)


def test_a_run_whose_shards_are_all_committed_is_finished_and_counted(
    config: ScoreJob, caplog: pytest.LogCaptureFixture
) -> None:
    committed_before_a_kill(config)
    caplog.set_level(logging.INFO, logger="whyrank.score")
    result = run_score(replace(config, trec=True))
    cut = read_shards(config.output / "data", {"doc_id": pa.string(), "is_truncated": pa.bool_()})
    num_truncated = sum(is_truncated for _, is_truncated in rows_of(cut))
    assert {doc_id for doc_id, is_truncated in rows_of(cut) if is_truncated} == {"d05"}
    assert result == ScoreResult(config.output, 12, 1, num_truncated)
    manifest = read_manifest(config.output)
    assert manifest["status"] == "finished"
    assert manifest["results"] == {"queries": 12, "quarantined": 1, "truncated": num_truncated}
    written = read_trec_run(config.output / "run.trec").rankings
    assert {q: r.doc_ids for q, r in written.items()} == {
        q: r.doc_ids for q, r in read_run(config.output, "run").rankings.items()
    }
    line = (
        f"{config.output}: 11 of 12 queries ranked, {num_truncated} pairs truncated,"
        f" 1 queries quarantined (reasons in {config.output / 'quarantine'})"
    )
    assert caplog.messages == [line]
    caplog.clear()
    assert run_score(config) == result
    assert caplog.messages == [f"{config.output} is finished: nothing to do", line]


def test_a_trec_file_that_cannot_be_written_leaves_a_finished_run(config: ScoreJob, tmp_path: Path) -> None:
    config = replace(config, output=tmp_path / "my run")
    committed_before_a_kill(config)
    with pytest.raises(DataError, match=r"run\.trec: .*'my run'\) has an empty or blank-separated column"):
        run_score(replace(config, trec=True))
    assert read_manifest(config.output)["status"] == "finished"
    assert run_score(config).num_queries == 12


def test_a_run_is_not_finished_for_a_folder_prepared_again_with_another_split(
    config: ScoreJob, tmp_path: Path
) -> None:
    config = replace(config, prepared=shutil.copytree(config.prepared, tmp_path / "prepared"))
    committed_before_a_kill(config)
    run_score(config)
    path = config.prepared / "fold-1" / "split.parquet"
    split_by_query = read_split(path)
    one, other = (next(q for q, s in split_by_query.items() if s == split) for split in ("train", "test"))
    write_table(split_table({**split_by_query, one: "test", other: "train"}), path)
    unlearnt = load_artefact(config.artefact)
    save_artefact(unlearnt, tmp_path / "new", head="linear", golden=[], provenance={})
    with pytest.raises(OutputConflictError, match=r"made with another .*input:split"):
        run_score(replace(config, artefact=tmp_path / "new"))
