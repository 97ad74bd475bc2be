"""What training starts from, learns from and leaves; the parts that need neither Ray nor a second process."""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed

from jobs.config import DpoConfig, StageConfig, TrainJob
from jobs.leakage import judged
from jobs.manifest import read_manifest
from jobs.train import (
    UNTRAINED,
    _task,
    check_inputs,
    read_log,
    run_train,
    stage_names,
    stages,
    write_untrained,
)
from jobs.train_worker import (
    StageTask,
    TrainingData,
    _query_loss,
    _trained_scorer,
    append_line,
    disable_dropout,
    golden_pairs,
    read_training_data,
    stage_examples,
    start_scorer,
    with_adapters,
)
from rerank_core.errors import ConfigError, DataError
from rerank_core.formats import pairs_table, pointwise_table, read_pointwise, read_split, write_table
from rerank_core.models.artefact import artefact_digest, load_artefact, read_spec, save_artefact
from rerank_core.models.pretrained import resolve_model
from rerank_core.records import Document
from rerank_core.training.steps import contrastive_query_loss, sft_query_loss

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rerank_core.training.batching import RankingExample


@pytest.fixture
def config(prepared_folder: Path, model_folder: Path, tmp_path: Path) -> TrainJob:
    return TrainJob(
        prepared=prepared_folder,
        output=tmp_path / "train",
        model=str(model_folder),
        fold=1,
        max_length=64,
        objectives=(),
        seed=7,
    )


@pytest.fixture
def task(config: TrainJob, tmp_path: Path) -> StageTask:
    return StageTask(
        name="sft",
        settings=StageConfig(),
        prepared=str(config.prepared),
        fold=config.fold,
        start=config.model,
        artefact=str(tmp_path / "sft"),
        log=str(tmp_path / "train_log.jsonl"),
        head="linear",
        num_layers=None,
        max_length=64,
        bf16=False,
        lora_rank=0,
        zero_stage=2,
        seed=7,
        provenance={},
    )


def checked(config: TrainJob) -> dict[str, str]:
    return check_inputs(config, resolve_model(config.model))


@pytest.fixture
def data(task: StageTask) -> TrainingData:
    return read_training_data(task)


# --- the job


def test_stages_come_in_the_order_of_the_objectives_with_their_own_settings(config: TrainJob) -> None:
    config = replace(config, objectives=("warmup", "sft", "dpo"))
    assert stages(config) == [("warmup", config.warmup), ("sft", config.sft), ("dpo", config.dpo)]
    assert stage_names(config) == ("warmup", "sft", "dpo")
    assert stage_names(replace(config, objectives=("dpo",))) == ("dpo",)


def test_without_objectives_the_only_artefact_is_the_untrained_one(config: TrainJob) -> None:
    assert (stages(config), stage_names(config)) == ([], (UNTRAINED,))


def test_steps_that_cannot_be_divided_among_the_workers_are_refused(config: TrainJob) -> None:
    config = replace(config, objectives=("sft", "dpo"), dpo=DpoConfig(queries_per_step=6))
    checked(replace(config, num_workers=2))
    with pytest.raises(ConfigError, match=r"dpo\.queries_per_step 6 is no multiple of 4 workers; change it"):
        checked(replace(config, num_workers=4))


def test_a_folder_that_prepare_has_not_finished_is_refused(config: TrainJob, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"run `whyrank prepare --output .*` first"):
        checked(replace(config, prepared=tmp_path))


def test_a_fold_that_is_not_there_is_refused(config: TrainJob) -> None:
    with pytest.raises(DataError, match=r"fold-9/split\.parquet is missing: .* pass a smaller --fold"):
        checked(replace(config, fold=9))


def test_a_model_that_was_trained_on_another_fold_is_not_trained_further(
    config: TrainJob, task: StageTask, data: TrainingData, tmp_path: Path
) -> None:
    provenance = {"judged": [asdict(judged(config.prepared, fold=0))], "fold": 0}
    golden = golden_pairs(data, seed=0)
    save_artefact(start_scorer(task), tmp_path / "sft", head="linear", golden=golden, provenance=provenance)
    config = replace(config, model=str(tmp_path / "sft"), objectives=("dpo",))
    checked(replace(config, fold=0))
    with pytest.raises(ConfigError, match=r"another split of this collection \(fold 0\)"):
        checked(config)


def test_settings_that_contradict_the_artefact_to_start_from_are_refused(
    config: TrainJob, task: StageTask, data: TrainingData, tmp_path: Path
) -> None:
    golden = golden_pairs(data, seed=0)
    save_artefact(start_scorer(task), tmp_path / "sft", head="linear", golden=golden, provenance={})
    config = replace(config, model=str(tmp_path / "sft"), objectives=("dpo",))
    checked(config)
    contradictions = {
        "max_length": replace(config, max_length=32),
        "head": replace(config, head="yes_no"),
        "num_layers": replace(config, num_layers=1),
    }
    for setting, contradiction in contradictions.items():
        with pytest.raises(ConfigError, match=f"whose {setting} is fixed"):
            checked(contradiction)


def test_a_split_without_grades_or_pairs_is_refused_before_training(config: TrainJob, tmp_path: Path) -> None:
    prepared = shutil.copytree(config.prepared, tmp_path / "prepared")
    train = prepared / f"fold-{config.fold}" / "train"
    write_table(pairs_table([]), train / "pairs.parquet")
    config = replace(config, prepared=prepared)
    checked(replace(config, objectives=("sft",)))
    with pytest.raises(DataError, match="no two training documents differ in grade"):
        checked(replace(config, objectives=("sft", "dpo")))
    rows = [replace(row, grade=0) for row in read_pointwise(train / "pointwise.parquet")]
    write_table(pointwise_table(rows), train / "pointwise.parquet")
    with pytest.raises(DataError, match="no training document has a grade"):
        checked(replace(config, objectives=("sft",)))


def test_each_fold_is_another_input_over_the_same_texts(config: TrainJob) -> None:
    first, second = checked(config), checked(replace(config, fold=0))
    assert first["train"] != second["train"]
    assert first["texts"] == second["texts"]


def test_the_untrained_artefact_scores_as_the_model_it_was_built_from(
    config: TrainJob, task: StageTask, data: TrainingData
) -> None:
    write_untrained(config, Path(config.model))
    loaded = load_artefact(config.output / UNTRAINED)
    pairs = golden_pairs(data, seed=0)[:6]
    assert loaded.score_pairs(pairs) == pytest.approx(start_scorer(task).score_pairs(pairs), abs=1e-5)
    assert read_spec(config.output / UNTRAINED).provenance["stage"] == UNTRAINED


def test_a_job_without_objectives_needs_no_ray_and_is_done_once(config: TrainJob) -> None:
    result = run_train(config)
    folder = result.artefacts[UNTRAINED]
    digest = artefact_digest(folder)
    assert read_manifest(config.output)["results"] == {"artefacts": {UNTRAINED: digest}}
    written = folder.stat().st_mtime_ns
    assert run_train(config) == result
    assert folder.stat().st_mtime_ns == written


# --- the log


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    log = tmp_path / "train_log.jsonl"
    assert read_log(log) == []
    append_line(log, {"stage": "sft", "step": 1, "loss": 0.5})
    append_line(log, {"stage": "sft", "step": 2, "loss": 0.25})
    with log.open("a") as stream:
        stream.write('{"stage": "sft", "st')
    assert [line["step"] for line in read_log(log)] == [1, 2]


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
    rows = read_pointwise(data.folder / "pointwise.parquet")
    assert sorted((q.query_id, d.doc_id) for q, d in pairs) == sorted((r.query_id, r.doc_id) for r in rows)
    split_by_query = read_split(Path(task.prepared) / f"fold-{task.fold}" / "split.parquet")
    assert {split_by_query[query.query_id] for query, _ in pairs} == {"train"}


# --- what a stage learns from


def examples_of(task: StageTask, data: TrainingData) -> list[RankingExample]:
    return stage_examples(task, data, start_scorer(task), rank=0, world=1)


def test_sft_learns_from_the_training_queries_and_their_grades(task: StageTask, data: TrainingData) -> None:
    rows = read_pointwise(data.folder / "pointwise.parquet")
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
    drawn = [stage_examples(warm_up, data, scorer, rank=rank, world=2) for rank in (0, 1)]
    assert drawn[0] == drawn[1]


def test_warm_up_without_titles_is_refused(task: StageTask, data: TrainingData) -> None:
    untitled = {doc_id: Document(doc_id, d.text) for doc_id, d in data.texts.documents.items()}
    data = replace(data, texts=replace(data.texts, documents=untitled))
    with pytest.raises(DataError, match="nothing for the stage 'warmup'"):
        examples_of(replace(task, name="warmup"), data)


def test_training_rows_without_any_grade_are_refused(
    task: StageTask, data: TrainingData, tmp_path: Path
) -> None:
    rows = read_pointwise(data.folder / "pointwise.parquet")
    write_table(pointwise_table([replace(row, grade=0) for row in rows]), tmp_path / "pointwise.parquet")
    with pytest.raises(DataError, match="no training document has a grade above 0"):
        examples_of(task, replace(data, folder=tmp_path))


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    method = f"file://{tmp_path / 'rendezvous'}"
    torch.distributed.init_process_group("gloo", init_method=method, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_dpo_starts_at_ln_2_because_its_reference_is_the_scorer_it_starts_from(
    task: StageTask, data: TrainingData
) -> None:
    task = replace(task, name="dpo", settings=DpoConfig(beta=0.5))
    scorer = start_scorer(task)
    examples = stage_examples(task, data, scorer, rank=0, world=1)
    loss = _query_loss(task)
    for example in examples:
        scores = torch.tensor(scorer.score_encoded(example.documents))
        assert loss(scores, example).item() == pytest.approx(math.log(2), abs=1e-5)
    assert examples


# --- how a stage learns


def test_each_objective_has_its_own_loss(task: StageTask) -> None:
    assert _query_loss(task) is sft_query_loss
    assert _query_loss(replace(task, name="warmup")) is contrastive_query_loss
    dpo: Any = _query_loss(replace(task, name="dpo", settings=DpoConfig(beta=0.3)))
    assert dpo.keywords == {"beta": 0.3}


def test_without_dropout_a_model_in_training_scores_as_it_does_afterwards(
    task: StageTask, data: TrainingData
) -> None:
    scorer = start_scorer(task)
    pairs = golden_pairs(data, seed=0)[:4]
    scores = scorer.score_pairs(pairs)
    scorer.model.train()
    assert scorer.score_pairs(pairs) != pytest.approx(scores, abs=1e-4)
    disable_dropout(scorer.model)
    assert scorer.score_pairs(pairs) == pytest.approx(scores, abs=1e-5)


# --- adapters


def test_fresh_adapters_change_no_score_and_leave_only_themselves_and_the_head_to_train(
    task: StageTask, data: TrainingData
) -> None:
    scorer = start_scorer(task)
    pairs = golden_pairs(data, seed=0)[:6]
    scores = scorer.score_pairs(pairs)
    with_adapters(scorer.model, rank=2)
    assert scorer.score_pairs(pairs) == pytest.approx(scores, abs=1e-5)
    trained = {name for name, weight in scorer.model.named_parameters() if weight.requires_grad}
    assert {name for name in trained if "lora_" not in name} == {"head.weight", "head.bias"}
    assert len(trained) > 2


def test_merged_adapters_score_as_the_adapters_did_in_training(task: StageTask, data: TrainingData) -> None:
    task = replace(task, lora_rank=2)
    start, trained = start_scorer(task), start_scorer(task)
    with_adapters(trained.model, rank=2)
    with torch.no_grad():
        for name, weight in trained.model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    pairs = golden_pairs(data, seed=0)[:6]
    merged = _trained_scorer(task, start, trained.model.state_dict())
    assert merged.score_pairs(pairs) == pytest.approx(trained.score_pairs(pairs), abs=1e-4)
    assert merged.score_pairs(pairs) != pytest.approx(start.score_pairs(pairs), abs=1e-2)
    assert not any("lora" in name for name in merged.model.state_dict())


def test_weights_trained_in_half_precision_are_kept_in_single_precision(task: StageTask) -> None:
    start = start_scorer(task)
    half = {name: tensor.bfloat16() for name, tensor in start.model.state_dict().items()}
    trained = _trained_scorer(task, start, half)
    assert {weight.dtype for weight in trained.model.parameters()} == {torch.float32}


def test_an_artefact_names_the_judgements_it_has_learnt_from(config: TrainJob) -> None:
    task = _task(config, name="sft", settings=config.sft, start=config.model, artefact="sft")
    assert task.provenance["judged"] == [asdict(judged(config.prepared, fold=config.fold))]
    assert task.provenance["fold"] == config.fold


def test_a_warm_up_adds_no_judgement_but_keeps_those_of_its_start(
    config: TrainJob, task: StageTask, data: TrainingData, tmp_path: Path
) -> None:
    known = [{"texts": "other", "split": "s"}]
    save_artefact(
        start_scorer(task),
        tmp_path / "start",
        head="linear",
        golden=golden_pairs(data, seed=0),
        provenance={"judged": known},
    )
    for start, learnt in ((config.model, []), (str(tmp_path / "start"), known)):
        warmed = _task(config, name="warmup", settings=config.warmup, start=start, artefact="warmup")
        assert warmed.provenance["judged"] == learnt
