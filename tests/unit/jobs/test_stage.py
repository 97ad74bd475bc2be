"""What a stage of training starts from and learns from."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from jobs.objective_trainer import query_loss
from jobs.stage import (
    StageTask,
    TrainingData,
    Worker,
    frozen_scores,
    golden_pairs,
    stage_examples,
    start_scorer,
)
from jobs.train import UNTRAINED, write_untrained
from jobs.training_config import DpoConfig, PpoConfig, RewardModelConfig, TrainJob
from rerank_core.data.splits import members
from rerank_core.errors import DataError
from rerank_core.formats import (
    pairs_table,
    pointwise_table,
    read_candidates,
    read_pairs,
    read_pointwise,
    read_qrels,
    read_split,
    write_table,
)
from rerank_core.models.artefact import artefact_digest, load_artefact
from rerank_core.records import Document

if TYPE_CHECKING:
    from rerank_core.training.batching import RankingExample

ALONE = Worker(rank=0, world=1)


# --- what a stage starts from


def test_a_stage_starts_from_a_model_folder_or_an_artefact(config: TrainJob, task: StageTask) -> None:
    write_untrained(config, Path(config.model))
    artefact = config.output / UNTRAINED
    from_folder = start_scorer(task)
    from_artefact = start_scorer(replace(task, start=str(artefact), seed=8))
    assert from_artefact.digest == artefact_digest(artefact)
    assert from_folder.digest == "untrained"
    ours, theirs = from_folder.model.state_dict(), from_artefact.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_golden_pairs_are_drawn_from_the_training_rows_by_the_seed(
    task: StageTask, data: TrainingData
) -> None:
    pairs = golden_pairs(data, seed=3)
    assert golden_pairs(data, seed=3) == pairs
    assert golden_pairs(data, seed=4) != pairs
    rows = read_pointwise(data.rows_path())
    assert sorted((q.query_id, d.doc_id) for q, d in pairs) == sorted((r.query_id, r.doc_id) for r in rows)
    split_by_query = read_split(Path(task.prepared) / f"fold-{task.fold}" / "split.parquet")
    assert {split_by_query[query.query_id] for query, _ in pairs} == {"train"}


# --- what a stage learns from


def examples_of(task: StageTask, data: TrainingData) -> list[RankingExample]:
    return stage_examples(task, data, start_scorer(task), worker=ALONE).train


def test_sft_learns_from_the_training_queries_and_their_grades(task: StageTask, data: TrainingData) -> None:
    rows = read_pointwise(data.rows_path())
    examples = examples_of(task, data)
    assert [example.query_id for example in examples] == sorted({row.query_id for row in rows})
    assert max(max(example.grades) for example in examples) == examples[0].max_grade == 9
    assert sum(len(example.documents) for example in examples) == len(rows)


def test_warm_up_learns_from_titles_and_never_from_a_query(task: StageTask, data: TrainingData) -> None:
    examples = examples_of(replace(task, name="warmup"), data)
    titled = [doc_id for doc_id, document in data.texts.documents.items() if document.title]
    assert [example.query_id for example in examples] == [f"title:{doc_id}" for doc_id in sorted(titled)]
    assert all(example.grades[0] == 1 == sum(example.grades) for example in examples)


def test_every_process_draws_the_same_warm_up(task: StageTask, data: TrainingData) -> None:
    warm_up = replace(task, name="warmup")
    scorer = start_scorer(task)
    drawn = [stage_examples(warm_up, data, scorer, worker=Worker(rank, 2)) for rank in (0, 1)]
    assert drawn[0] == drawn[1]


def test_warm_up_without_titles_is_refused(task: StageTask, data: TrainingData) -> None:
    untitled = {doc_id: Document(doc_id, d.text) for doc_id, d in data.texts.documents.items()}
    data = replace(data, texts=replace(data.texts, documents=untitled))
    with pytest.raises(DataError, match="nothing for the stage 'warmup'"):
        examples_of(replace(task, name="warmup"), data)


def test_training_rows_without_any_grade_are_refused(
    task: StageTask, data: TrainingData, tmp_path: Path
) -> None:
    prepared = tmp_path / "prepared"
    shutil.copytree(data.prepared, prepared)
    ungraded = replace(data, prepared=prepared)
    write_table(pointwise_table([replace(row, grade=0) for row in data.rows()]), ungraded.rows_path())
    with pytest.raises(DataError, match="no training document has a grade above 0"):
        examples_of(task, ungraded)


@pytest.mark.usefixtures("one_process")
def test_dpo_starts_at_ln_2_because_its_reference_is_the_scorer_it_starts_from(
    task: StageTask, data: TrainingData
) -> None:
    task = replace(task, name="dpo", settings=DpoConfig(beta=0.5))
    scorer = start_scorer(task)
    examples = stage_examples(task, data, scorer, worker=ALONE).train
    loss = query_loss(task)
    for example in examples:
        scores = torch.tensor(scorer.score_encoded(example.documents))
        assert loss(scores, example, step=0)["loss"].item() == pytest.approx(math.log(2), abs=1e-5)
    assert examples


@pytest.mark.usefixtures("one_process")
def test_ppo_learns_from_the_frozen_reward_models_scores(
    config: TrainJob, task: StageTask, data: TrainingData
) -> None:
    write_untrained(config, Path(config.model))
    artefact = config.output / UNTRAINED
    task = replace(task, name="ppo", settings=PpoConfig(), reward_model=str(artefact))
    judge = load_artefact(artefact)
    for example in examples_of(task, data):
        assert example.reward_scores == pytest.approx(judge.score_encoded(example.documents), abs=1e-5)
        assert len(example.reference_scores) == len(example.documents)


def test_the_dev_queries_are_held_out_with_the_lists_that_will_be_ranked(
    task: StageTask, data: TrainingData, tmp_path: Path
) -> None:
    prepared = tmp_path / "prepared"
    shutil.copytree(data.prepared, prepared)
    dev = members(read_split(data.folder / "split.parquet"))["dev"]
    (prepared / f"fold-{data.fold}" / "dev" / "pointwise.parquet").unlink()  # shorter lists, for training
    held_out = examples_held_out(task, replace(data, prepared=prepared))
    candidates = read_candidates(prepared / "candidates.parquet", data.texts.documents)
    qrels = read_qrels(prepared / "qrels.parquet")
    assert [example.query_id for example in held_out] == dev
    for example in held_out:
        listed = candidates[example.query_id]
        assert list(example.grades) == [
            qrels[example.query_id].get(candidate.document.doc_id, 0) for candidate in listed
        ]
        assert example.max_grade == 9  # of training and dev rows


def examples_held_out(task: StageTask, data: TrainingData) -> list[RankingExample]:
    return stage_examples(task, data, start_scorer(task), worker=ALONE).held_out


def test_only_an_objective_on_pairs_leaves_queries_without_pairs_out(
    task: StageTask, data: TrainingData, tmp_path: Path
) -> None:
    prepared = tmp_path / "prepared"
    shutil.copytree(data.prepared, prepared)
    data = replace(data, prepared=prepared)
    path = data.folder / "train" / "pairs.parquet"
    pairs = read_pairs(path)
    write_table(pairs_table([pair for pair in pairs if pair.query_id != pairs[0].query_id]), path)
    task = replace(task, name="rm")
    for settings, is_kept in ((RewardModelConfig(), False), (RewardModelConfig(loss="mse"), True)):
        examples = examples_of(replace(task, settings=settings), data)
        assert (pairs[0].query_id in {example.query_id for example in examples}) == is_kept


def test_training_can_be_watched_where_a_held_out_query_has_a_relevant_candidate(
    task: StageTask, data: TrainingData
) -> None:
    found = stage_examples(task, data, start_scorer(task), worker=ALONE)
    assert found.can_be_watched
    without = [replace(example, grades=(0,) * len(example.grades)) for example in found.held_out]
    assert not replace(found, held_out=without).can_be_watched
    assert replace(found, held_out=[*without, *found.held_out]).can_be_watched


# --- frozen scores


@pytest.fixture
def artefact(config: TrainJob) -> Path:
    write_untrained(config, Path(config.model))
    return config.output / UNTRAINED


@pytest.mark.usefixtures("one_process")
def test_frozen_scores_are_computed_once_and_kept_by_the_artefacts_digest(
    artefact: Path, task: StageTask, data: TrainingData
) -> None:
    scorer = load_artefact(artefact)
    examples = examples_of(task, data)
    first = frozen_scores(task, data, scorer, examples, worker=ALONE)
    (kept,) = Path(task.cache).iterdir()
    assert kept.name.startswith(scorer.digest[:16])
    with torch.no_grad():
        scorer.model.head.bias.add_(1.0)  # scoring again would show
    assert frozen_scores(task, data, scorer, examples, worker=ALONE) == first


@pytest.mark.usefixtures("one_process")
def test_kept_scores_that_lack_a_query_are_computed_again(
    artefact: Path, task: StageTask, data: TrainingData
) -> None:
    scorer = load_artefact(artefact)
    examples = examples_of(task, data)
    frozen_scores(task, data, scorer, examples[:2], worker=ALONE)
    assert len(frozen_scores(task, data, scorer, examples, worker=ALONE)) == len(examples)
