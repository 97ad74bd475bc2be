"""What a comparison trains, and where."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.cells import (
    artefacts,
    check_cells,
    name_and_layers,
    objectives_of,
    plan_cells,
    run_folders,
    training_job,
)
from jobs.train import stage_names
from jobs.training_config import CompareJob, DpoConfig, Method, Objective
from rerank_core.data.splits import members
from rerank_core.errors import ConfigError
from rerank_core.formats import qrels_table, read_qrels, read_split, write_table


@pytest.fixture
def config(prepared_folder: Path, tmp_path: Path) -> CompareJob:
    return CompareJob(
        prepared=prepared_folder,
        output=tmp_path / "out",
        models=("minilm", "hub/smollm2:4"),
        seeds=(3, 5),
        dpo=DpoConfig(beta=0.7),
        max_length=64,
    )


def test_there_is_a_cell_for_every_model_seed_and_fold_each_in_a_folder_of_its_own(
    config: CompareJob,
) -> None:
    cells = plan_cells(config)
    assert [(cell.model, cell.seed, cell.fold) for cell in cells] == [
        (model, seed, fold) for model in ("minilm", "smollm2:4") for seed in (3, 5) for fold in range(5)
    ]
    assert len({cell.folder for cell in cells}) == 20
    assert cells[-1].folder == config.output / "cells" / "smollm2-4" / "seed-5-fold-4"
    assert cells[-1].name == "smollm2:4, seed 5, fold 4"


def test_a_cell_is_trained_with_the_settings_of_the_comparison(config: CompareJob) -> None:
    job = training_job(config, plan_cells(config)[-1])
    assert (job.model, job.num_layers, job.seed, job.fold) == ("hub/smollm2", 4, 5, 4)
    assert (job.dpo.beta, job.max_length, job.patience) == (0.7, 64, 2)
    assert stage_names(job) == ("sft", "rm", "dpo", "ppo")


def test_every_method_and_the_untrained_scorer_have_an_artefact_and_a_run(config: CompareJob) -> None:
    cell = plan_cells(config)[0]
    found = artefacts(config, cell)
    assert list(found) == list(run_folders(config, cell)) == ["untrained", "sft", "rm", "dpo", "ppo"]
    assert found["dpo"] == training_job(config, cell).output / "dpo"


@pytest.mark.parametrize(
    ("methods", "reward", "expected"),
    [
        (("sft",), "reward_model", ("sft",)),
        (("rm",), "reward_model", ("rm",)),
        (("dpo",), "reward_model", ("sft", "dpo")),
        (("ppo",), "reward_model", ("sft", "rm", "ppo")),
        (("ppo",), "grades", ("sft", "ppo")),
        (("ppo", "dpo", "rm"), "grades", ("sft", "rm", "dpo", "ppo")),
    ],
)
def test_what_a_method_builds_on_is_trained_before_it(
    methods: tuple[Method, ...], reward: str, expected: tuple[Objective, ...]
) -> None:
    assert objectives_of(methods, reward=reward) == expected


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("smollm2:4", ("smollm2", 4)),
        ("minilm", ("minilm", None)),
        ("a:b/c", ("a:b/c", None)),
        (":4", (":4", None)),
    ],
)
def test_a_number_behind_the_name_is_the_layers_kept(model: str, expected: tuple[str, int | None]) -> None:
    assert name_and_layers(model) == expected


def test_models_that_a_table_could_not_tell_apart_are_refused(config: CompareJob) -> None:
    for models in (("a/llama", "b/llama/"), ("llama:4", "a/llama-4")):
        alike = replace(config, models=models)
        with pytest.raises(ConfigError, match=r"two of the models would have the folder .*; rename 'llama"):
            plan_cells(alike)


def test_where_no_dev_query_has_a_relevant_candidate_all_epochs_are_trained(
    config: CompareJob, tmp_path: Path
) -> None:
    prepared = tmp_path / "prepared"
    shutil.copytree(config.prepared, prepared)
    dev = members(read_split(prepared / "fold-2" / "split.parquet"))["dev"]
    qrels = read_qrels(prepared / "qrels.parquet")
    ungraded = {q: {d: 0 if q in dev else grade for d, grade in own.items()} for q, own in qrels.items()}
    write_table(qrels_table(ungraded), prepared / "qrels.parquet")
    config = replace(config, prepared=prepared)
    cells = [cell for cell in plan_cells(config) if cell.seed == 3 and cell.model == "minilm"]
    assert [cell.can_choose_epochs for cell in cells] == [True, True, False, True, True]
    assert [training_job(config, cell).patience for cell in cells] == [2, 2, 0, 2, 2]


def test_a_setting_that_no_cell_could_be_trained_with_is_refused_before_any_starts(
    config: CompareJob, model_folder: Path
) -> None:
    odd = replace(config, models=(str(model_folder),), num_workers=3)
    with pytest.raises(ConfigError, match=r"queries_per_step 4 is no multiple of 3"):
        check_cells(odd, plan_cells(odd))
    none = replace(config, models=(f"{model_folder}:0",))
    with pytest.raises(ConfigError, match="num_layers must be at least 1, got 0"):
        check_cells(none, plan_cells(none))
