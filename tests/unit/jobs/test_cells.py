"""What a comparison trains, and where."""

import json
from pathlib import Path

import pytest

from jobs.cells import (
    artefacts,
    name_and_layers,
    objectives_of,
    plan_cells,
    run_folders,
    steps_by_stage,
    training,
)
from jobs.train import stage_names
from jobs.training_config import CompareJob, DpoConfig, Method, Objective
from rerank_core.errors import ConfigError


@pytest.fixture
def config(tmp_path: Path) -> CompareJob:
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    (prepared / "summary.json").write_text(json.dumps({"num_folds": 2}))
    return CompareJob(
        prepared=prepared,
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
        (model, seed, fold) for model in ("minilm", "smollm2:4") for seed in (3, 5) for fold in (0, 1)
    ]
    assert len({cell.folder for cell in cells}) == 8
    assert cells[-1].folder == config.output / "cells" / "smollm2-4" / "seed-5-fold-1"
    assert cells[-1].name == "smollm2:4, seed 5, fold 1"


def test_a_cell_is_trained_with_the_settings_of_the_comparison(config: CompareJob) -> None:
    job = training(config, plan_cells(config)[-1])
    assert (job.model, job.num_layers, job.seed, job.fold) == ("hub/smollm2", 4, 5, 1)
    assert (job.dpo.beta, job.max_length, job.patience) == (0.7, 64, 2)
    assert stage_names(job) == ("sft", "rm", "dpo", "ppo")


def test_every_method_and_the_untrained_scorer_have_an_artefact_and_a_run(config: CompareJob) -> None:
    cell = plan_cells(config)[0]
    found = artefacts(config, cell)
    assert list(found) == list(run_folders(config, cell)) == ["untrained", "sft", "rm", "dpo", "ppo"]
    assert found["dpo"] == training(config, cell).output / "dpo"


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
    alike = CompareJob(prepared=config.prepared, output=config.output, models=("a/llama", "b/llama/"))
    with pytest.raises(ConfigError, match="two of the models are called 'llama'"):
        plan_cells(alike)


def test_a_step_that_was_trained_again_counts_once() -> None:
    log = [
        {"stage": "sft", "step": 1, "step_s": 2.0},
        {"stage": "sft", "event": "resumed", "step": 0},
        {"stage": "sft", "step": 1, "step_s": 3.0},
        {"stage": "dpo", "step": 1, "step_s": 5.0},
    ]
    assert steps_by_stage(log, key="step_s") == {"sft": {1: 3.0}, "dpo": {1: 5.0}}
