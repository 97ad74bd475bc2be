"""What training starts from, learns from and leaves; the parts that need neither Ray nor a second process."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jobs.leakage import judged
from jobs.manifest import read_manifest
from jobs.objective_trainer import append_line
from jobs.stage import (
    StageTask,
    TrainingData,
    Worker,
    golden_pairs,
    read_training_data,
    stage_examples,
    start_scorer,
)
from jobs.train import (
    UNTRAINED,
    _task,
    check_inputs,
    progress_text,
    read_log,
    run_train,
    stage_names,
    stage_reward_model,
    stage_start,
    stages,
    write_untrained,
)
from jobs.training_config import DpoConfig, PpoConfig, TrainJob
from rerank_core.data.splits import members
from rerank_core.errors import ConfigError, DataError
from rerank_core.formats import (
    pairs_table,
    pointwise_table,
    qrels_table,
    read_pointwise,
    read_qrels,
    read_split,
    write_table,
)
from rerank_core.models.artefact import artefact_digest, load_artefact, read_spec, save_artefact
from rerank_core.models.pretrained import resolve_model

if TYPE_CHECKING:
    from rerank_core.records import Split
    from rerank_core.training.batching import RankingExample


def checked(config: TrainJob) -> dict[str, str]:
    return check_inputs(config, resolve_model(config.model))


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
    with pytest.raises(ConfigError, match=r"another split of these queries \(fold 0 "):
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


def test_a_model_that_cannot_have_the_head_is_refused_before_training(config: TrainJob) -> None:
    with pytest.raises(ConfigError, match="is an encoder without output rows for words; use --head linear"):
        checked(replace(config, head="yes_no"))


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
    assert (first["corpus"], first["queries"]) == (second["corpus"], second["queries"])


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


def test_an_artefact_names_the_judgements_it_has_learnt_from(config: TrainJob) -> None:
    task = _task(config, name="sft", settings=config.sft, start=config.model, artefact="sft")
    assert task.provenance["judged"] == [asdict(judged(config.prepared, fold=config.fold))]
    assert task.provenance["fold"] == config.fold


def test_a_warm_up_adds_no_judgement_but_keeps_those_of_its_start(
    config: TrainJob, task: StageTask, data: TrainingData, tmp_path: Path
) -> None:
    known = [{"texts": "other", "split": "s", "trained": "q", "held_out": ""}]
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


def test_dpo_and_ppo_start_from_sft_and_the_reward_model_does_not(config: TrainJob) -> None:
    model, out = Path("model"), config.output
    every = replace(config, objectives=("warmup", "sft", "rm", "dpo", "ppo"))
    starts = {name: stage_start(every, name, model) for name, _ in stages(every)}
    assert starts == {
        "warmup": model,
        "sft": out / "warmup",
        "rm": out / "warmup",
        "dpo": out / "sft",
        "ppo": out / "sft",
    }
    assert stage_start(replace(config, objectives=("dpo",)), "dpo", model) == model


def test_the_reward_model_is_the_jobs_own_or_the_one_it_names(config: TrainJob) -> None:
    own = replace(config, objectives=("rm", "ppo"))
    assert stage_reward_model(own, "ppo") == config.output / "rm"
    assert stage_reward_model(own, "rm") is None
    named = replace(config, objectives=("ppo",), ppo=PpoConfig(reward_model=Path("judge")))
    assert stage_reward_model(named, "ppo") == Path("judge")
    graded = replace(config, objectives=("ppo",), ppo=PpoConfig(reward="grades"))
    assert stage_reward_model(graded, "ppo") is None


def test_the_artefact_of_the_reward_model_is_an_input(config: TrainJob) -> None:
    write_untrained(config, Path(config.model))
    judge = config.output / UNTRAINED
    named = replace(config, objectives=("ppo",), ppo=PpoConfig(reward_model=judge))
    assert checked(named)["reward_model"] == artefact_digest(judge)


@pytest.mark.parametrize(("split", "is_input"), [("test", False), ("dev", True)])
def test_a_grade_of_a_test_query_is_no_input_of_training_and_one_of_a_dev_query_is(
    split: Split, is_input: bool, config: TrainJob, tmp_path: Path
) -> None:
    prepared = tmp_path / "prepared"
    shutil.copytree(config.prepared, prepared)
    changed = members(read_split(prepared / f"fold-{config.fold}" / "split.parquet"))[split]
    qrels = read_qrels(prepared / "qrels.parquet")
    graded = {q: {d: 27 if q in changed else grade for d, grade in own.items()} for q, own in qrels.items()}
    write_table(qrels_table(graded), prepared / "qrels.parquet")
    altered = replace(config, prepared=prepared)
    assert (checked(altered) != checked(config)) == is_input
    assert (held_out(altered) != held_out(config)) == is_input


def held_out(config: TrainJob) -> list[RankingExample]:
    """Return what a stage measures NDCG and fits its calibration on."""
    task = _task(
        config,
        name="sft",
        settings=config.sft,
        start=str(resolve_model(config.model)),
        artefact="sft",
    )
    return stage_examples(task, read_training_data(task), start_scorer(task), worker=Worker(0, 1)).held_out


def test_epochs_cannot_be_chosen_without_a_graded_dev_query(config: TrainJob, tmp_path: Path) -> None:
    prepared = tmp_path / "prepared"
    shutil.copytree(config.prepared, prepared)
    dev = members(read_split(prepared / f"fold-{config.fold}" / "split.parquet"))["dev"]
    qrels = read_qrels(prepared / "qrels.parquet")
    ungraded = {q: {d: 0 if q in dev else grade for d, grade in own.items()} for q, own in qrels.items()}
    write_table(qrels_table(ungraded), prepared / "qrels.parquet")
    config = replace(config, prepared=prepared)
    checked(config)
    with pytest.raises(DataError, match=r"no candidate of a dev query .* leave --patience at 0"):
        checked(replace(config, patience=1))


def test_a_line_that_a_full_disk_cut_off_is_passed_over(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1}\n{"step": {"step": 3}\n{"step": 4}\n{"st')
    assert read_log(log) == [{"step": 1}, {"step": 4}]


def test_the_live_line_shows_loss_held_out_ndcg_and_speed() -> None:
    step = {"stage": "dpo", "step": 1, "loss": 0.6931, "pairs_per_s": 81.4}
    assert progress_text([step]) == "dpo: loss 0.6931, 81 pairs/s"
    epoch = {"stage": "dpo", "step": 1, "held_out_ndcg": 0.71249}
    assert progress_text([step, epoch]) == "dpo: loss 0.6931, dev NDCG 0.712, 81 pairs/s"
