"""Runs evaluated on the test queries of their own fold, beside their baselines."""

from __future__ import annotations

import json
import math
import shutil
from typing import TYPE_CHECKING, Any, Literal

import pyarrow.parquet as pq
import pytest

from jobs.config import EvaluateJob, PrepareJob, ScoreJob
from jobs.evaluate import PER_QUERY, run_evaluate
from jobs.manifest import finish_output, opened_output, scoring_digests, write_json
from jobs.prepare import run_prepare
from jobs.shards import Quarantined, Shard, commit_shard, read_quarantine
from rerank_core import formats
from rerank_core.errors import ConfigError, DataError, OutputConflictError
from rerank_core.evaluation.ranking_metrics import NDCG_BURGES
from rerank_core.ranking.contract import rank

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rerank_core.records import Candidate

Which = Literal["train", "dev", "test", "all"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded sample in five folds."""
    return run_prepare(PrepareJob(output=tmp_path_factory.mktemp("prepared") / "sample")).output


def by_grade(grade: int, candidate: Candidate) -> float:
    return float(grade)


def against_grade(grade: int, candidate: Candidate) -> float:
    return -float(grade)


def constant(grade: int, candidate: Candidate) -> float:
    return 0.0


RULES = {"good": by_grade, "bad": against_grade}


def write_run(
    prepared: Path,
    output: Path,
    *,
    fold: int = 0,
    split: Which = "all",
    score: Callable[[int, Candidate], float] = by_grade,
) -> Path:
    """A run folder as `whyrank score` leaves it, scored by a rule; a query with a NaN is in quarantine."""
    documents = formats.read_documents(prepared / "corpus.parquet")
    candidates = formats.read_candidates(prepared / "candidates.parquet", documents)
    qrels = formats.read_qrels(prepared / "qrels.parquet")
    split_by_query = formats.read_split(prepared / f"fold-{fold}" / "split.parquet")
    rows: list[tuple[object, ...]] = []
    unranked: list[Quarantined] = []
    for query_id, found in candidates.items():
        if split not in ("all", split_by_query[query_id]):
            continue
        ranks = {c.document.doc_id: c.first_stage_rank for c in found}
        scores = [score(qrels[query_id][c.document.doc_id], c) for c in found]
        if any(math.isnan(value) for value in scores):
            unranked.append(Quarantined((query_id,), "not a number"))
            continue
        ranking = rank(query_id, list(ranks), scores=scores, first_stage_ranks=list(ranks.values()))
        for place, (doc_id, value) in enumerate(zip(ranking.doc_ids, ranking.scores, strict=True), start=1):
            rows.append((query_id, doc_id, ranks[doc_id], 0.0, value, place, "digest"))
    config = ScoreJob(prepared=prepared, artefact=output, output=output, fold=fold, split=split)
    with opened_output(output, job="score", config=config, inputs=scoring_digests(prepared, fold=fold)):
        keys = {(str(row[0]),) for row in rows} | {row.key for row in unranked}
        table = formats.table_of(rows, formats.RUN)
        commit_shard(output, Shard(0, tuple(keys)), table, key_columns=("query_id",), quarantined=unranked)
        finish_output(output, results={})
    return output


def evaluated(prepared: Path, output: Path, *runs: str, **settings: Any) -> dict[str, Any]:
    config = EvaluateJob(prepared=prepared, output=output, runs=runs, num_samples=200, **settings)
    return dict(run_evaluate(config).metrics)


def means(metrics: dict[str, Any], metric: str = NDCG_BURGES) -> dict[str, float]:
    return {row["name"]: row["values"][metric]["mean"] for row in metrics["rows"]}


def test_a_run_stands_between_its_baselines_with_gain_in_every_label(prepared: Path, tmp_path: Path) -> None:
    run = write_run(prepared, tmp_path / "run")
    metrics = evaluated(prepared, tmp_path / "metrics", f"oracle={run}")
    assert [(row["name"], row["kind"]) for row in metrics["rows"]] == [
        ("floor", "floor"),
        ("random", "random"),
        ("bm25", "first_stage"),
        ("oracle", "run"),
        ("bm25+oracle", "fusion"),
        ("ideal", "ideal"),
    ]
    found = means(metrics)
    assert found["floor"] < found["random"] < found["bm25"] < found["bm25+oracle"] <= found["oracle"] == 1
    assert found["ideal"] == 1
    assert metrics["labels"][NDCG_BURGES] == "ndcg_burges@10 (gain 2^g-1)"
    assert metrics["labels"]["map"] == "map (grade 5 or more is relevant)"
    difference = metrics["rows"][3]["differences"][NDCG_BURGES]
    assert difference["mean"] == pytest.approx(found["oracle"] - found["bm25"])
    assert 0 < difference["low"] <= difference["mean"] <= difference["high"]


def test_a_run_over_all_queries_counts_only_for_the_test_queries_of_its_fold(
    prepared: Path, tmp_path: Path
) -> None:
    run = write_run(prepared, tmp_path / "run", fold=2)
    metrics = evaluated(prepared, tmp_path / "metrics", f"dpo={run}")
    split_by_query = formats.read_split(prepared / "fold-2" / "split.parquet")
    test = {query_id for query_id, split in split_by_query.items() if split == "test"}
    table = formats.read_table(tmp_path / "metrics" / "per_query.parquet", PER_QUERY)
    assert set(table.column("query_id").to_pylist()) == test
    assert (metrics["folds"], metrics["num_queries"]) == ([2], len(test))


def test_the_folders_of_a_cross_validation_are_pooled_each_for_its_own_fold(
    prepared: Path, tmp_path: Path
) -> None:
    rules = [by_grade, *[against_grade] * 4]
    folders = [
        write_run(prepared, tmp_path / f"f{fold}", fold=fold, score=rule) for fold, rule in enumerate(rules)
    ]
    runs = [f"dpo={folder}" for folder in folders]
    metrics = evaluated(prepared, tmp_path / "metrics", *runs)
    assert metrics["num_queries"] == 94
    assert sorted(metrics["fusion_weights"]["dpo"]) == list("01234")
    rows = formats.rows_of(pq.read_table(tmp_path / "metrics" / "per_query.parquet"))
    values = {
        query_id: value for query_id, run, metric, value in rows if (run, metric) == ("dpo", NDCG_BURGES)
    }
    first = formats.read_split(prepared / "fold-0" / "split.parquet")
    assert {query_id for query_id, value in values.items() if value == 1} == {
        query_id for query_id, split in first.items() if split == "test"
    }
    alone = evaluated(prepared, tmp_path / "alone", *runs, fold=0)
    assert means(alone)["dpo"] == 1


def test_the_fusion_weight_is_chosen_on_dev_queries_and_suits_the_run(prepared: Path, tmp_path: Path) -> None:
    good = write_run(prepared, tmp_path / "good", score=by_grade)
    bad = write_run(prepared, tmp_path / "bad", score=against_grade)
    metrics = evaluated(prepared, tmp_path / "metrics", f"good={good}", f"bad={bad}")
    assert metrics["fusion_weights"]["good"]["0"] > 0.5
    assert metrics["fusion_weights"]["bad"] == {"0": 0.1}


def test_a_fixed_weight_is_taken_and_needs_no_dev_queries(prepared: Path, tmp_path: Path) -> None:
    run = write_run(prepared, tmp_path / "run", split="test", score=constant)
    metrics = evaluated(prepared, tmp_path / "metrics", f"dpo={run}", fusion_weight=0.5)
    assert metrics["fusion_weights"] == {"dpo": {"0": 0.5}}
    assert means(metrics)["bm25+dpo"] == means(metrics)["bm25"]  # equal scores say nothing


def test_without_dev_queries_there_is_no_fusion_and_a_line_says_so(
    prepared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = write_run(prepared, tmp_path / "run", split="test")
    metrics = evaluated(prepared, tmp_path / "metrics", f"dpo={run}")
    assert "bm25+dpo" not in means(metrics)
    assert "run 'dpo' does not cover the dev queries of fold 0: no fusion" in caplog.text


def test_the_written_files_agree(prepared: Path, tmp_path: Path) -> None:
    run = write_run(prepared, tmp_path / "run", split="test", score=against_grade)
    metrics = evaluated(prepared, tmp_path / "metrics", f"dpo={run}")
    written = json.loads((tmp_path / "metrics" / "metrics.json").read_text())
    assert written["rows"] == metrics["rows"]
    rows = list(formats.rows_of(pq.read_table(tmp_path / "metrics" / "per_query.parquet")))
    for name, mean in means(metrics, "map").items():
        values = [value for _, run_name, metric, value in rows if (run_name, metric) == (name, "map")]
        assert sum(values) / len(values) == pytest.approx(mean)


def test_a_second_run_is_finished_and_gives_the_same_metrics(prepared: Path, tmp_path: Path) -> None:
    run = write_run(prepared, tmp_path / "run", split="test")
    config = EvaluateJob(
        prepared=prepared, output=tmp_path / "metrics", runs=(f"dpo={run}",), num_samples=200
    )
    first, second = run_evaluate(config), run_evaluate(config)
    assert (first.state, second.state) == ("new", "finished")
    assert second.metrics == first.metrics


def test_a_run_is_known_by_its_name_and_content_not_by_its_path(prepared: Path, tmp_path: Path) -> None:
    one, other = (write_run(prepared, tmp_path / name, score=rule) for name, rule in RULES.items())
    output = tmp_path / "metrics"
    first = evaluated(prepared, output, f"dpo={one}", f"sft={other}")
    assert evaluated(prepared, output, f"dpo={tmp_path}/./good", f"sft={other}") == first
    one.rename(tmp_path / "kept")
    assert evaluated(prepared, output, f"dpo={tmp_path}/kept", f"sft={other}") == first
    with pytest.raises(OutputConflictError, match=r"another input:dpo/fold-0, input:sft/fold-0;"):
        evaluated(prepared, output, f"dpo={other}", f"sft={tmp_path}/kept")
    with pytest.raises(OutputConflictError, match=r"another input:rm/fold-0, input:sft/fold-0;"):
        evaluated(prepared, output, f"dpo={tmp_path}/kept", f"rm={other}")


def test_a_name_that_looks_like_markup_is_shown_as_it_is(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(prepared, tmp_path / "run", split="test")
    evaluated(prepared, tmp_path / "metrics", f"x [/old]={run}")
    assert "x [/old]" in capsys.readouterr().out


def test_a_reserved_name_is_refused(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run name 'bm25' is taken by a baseline"):
        evaluated(prepared, tmp_path / "metrics", f"bm25={tmp_path}")


def test_a_fold_that_one_run_lacks_is_named_with_the_command(prepared: Path, tmp_path: Path) -> None:
    both = [f"dpo={write_run(prepared, tmp_path / f'dpo{fold}', fold=fold)}" for fold in (0, 1)]
    one = f"sft={write_run(prepared, tmp_path / 'sft', fold=0)}"
    with pytest.raises(DataError, match=r"run 'sft' does not rank test query .* `whyrank score --fold 1"):
        evaluated(prepared, tmp_path / "metrics", *both, one)


def test_a_query_in_quarantine_counts_in_first_stage_order_and_is_counted(
    prepared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    split_by_query = formats.read_split(prepared / "fold-0" / "split.parquet")
    tested, tuned = (
        [q for q, own in sorted(split_by_query.items()) if own == split] for split in ("test", "dev")
    )
    lost = (tested[0], tested[1], tuned[0])
    grades = formats.read_qrels(prepared / "qrels.parquet")
    documents = {doc_id for query_id in lost for doc_id in grades[query_id]}

    def overflowing(grade: int, candidate: Candidate) -> float:
        return math.nan if candidate.document.doc_id in documents else by_grade(grade, candidate)

    run = write_run(prepared, tmp_path / "run", score=overflowing)
    unranked = {row.key[0] for row in read_quarantine(run)}
    metrics = evaluated(prepared, tmp_path / "metrics", f"dpo={run}")
    num_lost = len(unranked.intersection(tested))
    assert 2 <= num_lost < len(tested)
    assert metrics["quarantined"] == {"dpo": num_lost}
    assert metrics["num_queries"] == len(tested)
    assert (
        f"'dpo' has no ranking of {num_lost} of {len(tested)} test queries (reasons in {run}" in caplog.text
    )
    rows = formats.rows_of(pq.read_table(tmp_path / "metrics" / "per_query.parquet"))
    values = {(query_id, name): value for query_id, name, metric, value in rows if metric == NDCG_BURGES}
    for query_id in tested:
        expected = values[query_id, "bm25"] if query_id in unranked else 1
        assert values[query_id, "dpo"] == pytest.approx(expected)
        if query_id in unranked:
            assert values[query_id, "bm25+dpo"] == values[query_id, "bm25"]


def test_a_run_that_ranks_no_test_query_is_refused(prepared: Path, tmp_path: Path) -> None:
    run = write_run(prepared, tmp_path / "run", score=lambda *_: math.nan)
    with pytest.raises(DataError, match=r"'dpo' ranks no test query: .*quarantine holds all \d+ of them"):
        evaluated(prepared, tmp_path / "metrics", f"dpo={run}")
    assert not (tmp_path / "metrics").exists()


def test_a_run_of_train_queries_cannot_be_evaluated(prepared: Path, tmp_path: Path) -> None:
    run = write_run(prepared, tmp_path / "run", split="train")
    with pytest.raises(DataError, match="run 'dpo' does not rank test query"):
        evaluated(prepared, tmp_path / "metrics", f"dpo={run}")


def test_two_folders_of_one_fold_are_refused(prepared: Path, tmp_path: Path) -> None:
    runs = [f"dpo={write_run(prepared, tmp_path / name)}" for name in ("a", "b")]
    with pytest.raises(DataError, match="run 'dpo' has two folders of fold 0"):
        evaluated(prepared, tmp_path / "metrics", *runs)


def test_a_run_whose_manifest_names_no_fold_is_refused(prepared: Path, tmp_path: Path) -> None:
    run = write_run(prepared, tmp_path / "run")
    manifest = json.loads((run / "manifest.json").read_text())
    del manifest["config"]["fold"]
    (run / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="names no fold"):
        evaluated(prepared, tmp_path / "metrics", f"dpo={run}")


def test_a_run_of_other_candidates_is_refused(prepared: Path, tmp_path: Path) -> None:
    run = write_run(prepared, tmp_path / "run")
    path = run / "data" / "shard-00000.parquet"
    rows = list(formats.rows_of(pq.read_table(path)))
    formats.write_table(
        formats.table_of([(*row[:1], f"other-{row[1]}", *row[2:]) for row in rows], formats.RUN), path
    )
    with pytest.raises(DataError, match="does not rank its prepared candidates"):
        evaluated(prepared, tmp_path / "metrics", f"dpo={run}")
    assert not (tmp_path / "metrics").exists()


def test_a_run_of_another_split_is_refused_by_name(prepared: Path, tmp_path: Path) -> None:
    other = run_prepare(PrepareJob(output=tmp_path / "other", seed=1)).output
    runs = [
        f"dpo={write_run(prepared, tmp_path / 'here', fold=0)}",
        f"dpo={write_run(other, tmp_path / 'there', fold=1)}",
    ]
    with pytest.raises(ConfigError, match=r"run 'dpo' in .*there was scored on another split than fold 1 of"):
        evaluated(prepared, tmp_path / "metrics", *runs)
    assert not (tmp_path / "metrics").exists()


@pytest.mark.parametrize("name", ["corpus", "queries", "candidates"])
def test_a_run_of_other_texts_or_candidates_is_refused_by_name(
    prepared: Path, tmp_path: Path, name: str
) -> None:
    run = write_run(prepared, tmp_path / "run")
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["digests"][f"input:{name}"] = "00"
    write_json(run / "manifest.json", manifest)
    with pytest.raises(ConfigError, match=f"scored on another {name} than fold 0 of .*; pass the prepared"):
        evaluated(prepared, tmp_path / "metrics", f"dpo={run}")


def test_metrics_are_not_finished_for_another_grade_of_relevance(prepared: Path, tmp_path: Path) -> None:
    prepared = shutil.copytree(prepared, tmp_path / "prepared")
    run = write_run(prepared, tmp_path / "run")
    evaluated(prepared, tmp_path / "metrics", f"dpo={run}")
    summary = json.loads((prepared / "summary.json").read_text())
    write_json(prepared / "summary.json", summary | {"relevant_from": 1})
    with pytest.raises(OutputConflictError, match="made with another input:prepared"):
        evaluated(prepared, tmp_path / "metrics", f"dpo={run}")


def test_an_unknown_fold_is_refused(prepared: Path, tmp_path: Path) -> None:
    run = write_run(prepared, tmp_path / "run")
    with pytest.raises(DataError, match=r"fold-7.*split\.parquet is missing"):
        evaluated(prepared, tmp_path / "metrics", f"dpo={run}", fold=7)
