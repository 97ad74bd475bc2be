"""What the cells of a comparison recorded, put together over folds and seeds."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.cell_records import (
    learning_curves,
    stage_seconds,
    steps_by_stage,
    training_seconds,
    truncated_in_training,
)
from jobs.cells import Cell
from jobs.training_config import CompareJob
from rerank_core.evaluation.method_comparison import Share
from rerank_core.evaluation.method_pictures import LearningCurve


@pytest.fixture
def config(tmp_path: Path) -> CompareJob:
    return CompareJob(prepared=tmp_path / "in", output=tmp_path, methods=("sft", "ppo"), seeds=(0, 1))


def cell(root: Path, lines: list[dict[str, Any]], *, seed: int = 0, fold: int = 0) -> Cell:
    """A cell whose training has written the lines."""
    folder = root / f"{seed}-{fold}"
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "train_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Cell("tiny", seed, fold, can_choose_epochs=True, folder=folder)


def epochs(stage: str, *values: float) -> list[dict[str, Any]]:
    return [
        {"stage": stage, "step": 5 * n, "held_out_ndcg": value} for n, value in enumerate(values, start=1)
    ]


def test_a_step_that_was_trained_again_counts_once() -> None:
    log = [
        {"stage": "sft", "step": 1, "step_s": 2.0},
        {"stage": "sft", "event": "resumed", "step": 0},
        {"stage": "sft", "step": 1, "step_s": 3.0},
        {"stage": "dpo", "step": 1, "step_s": 5.0},
    ]
    assert steps_by_stage(log, key="step_s") == {"sft": {1: 3.0}, "dpo": {1: 5.0}}


def test_a_method_costs_what_the_stages_below_it_cost_too(config: CompareJob, tmp_path: Path) -> None:
    cells = [
        cell(
            tmp_path,
            [
                {"stage": stage, "step": step, "step_s": seconds * factor}
                for stage, seconds in (("sft", 1.0), ("rm", 10.0), ("ppo", 100.0))
                for step in (1, 2)
            ],
            fold=factor,
        )
        for factor in (1, 3)
    ]
    assert training_seconds(config, cells) == {"tiny": {"sft": 4.0, "ppo": 444.0}}


def test_a_stage_that_finished_twice_is_one_value_of_its_cell(config: CompareJob, tmp_path: Path) -> None:
    def finished(stage: str, wall_s: float) -> dict[str, Any]:
        return {"stage": stage, "event": "finished", "wall_s": wall_s}

    cells = [
        cell(tmp_path, [finished("sft", 10.0), finished("rm", 5.0), finished("sft", 2.5)], fold=0),
        cell(tmp_path, [finished("sft", 8.0), finished("ppo", 30.0)], fold=1),
    ]
    assert stage_seconds(config, cells) == {"tiny": {"sft": (12.5, 8.0), "ppo": (30.0,)}}


def test_a_curve_is_the_mean_over_the_folds_up_to_the_epoch_that_all_reached(
    config: CompareJob, tmp_path: Path
) -> None:
    cells = [
        cell(tmp_path, epochs("sft", 0.2, 0.4, 0.9), seed=0, fold=0),
        cell(tmp_path, epochs("sft", 0.4, 0.8), seed=0, fold=1),
        cell(tmp_path, epochs("sft", 0.5), seed=1, fold=0),
        cell(tmp_path, [], seed=1, fold=1),  # no dev query of this fold could be measured
    ]
    first, second = learning_curves(config, cells)["tiny"]
    assert (first.method, first.seed, first.steps) == ("sft", 0, (1, 2))
    assert first.values == pytest.approx((0.3, 0.6))
    assert second == LearningCurve("sft", 1, (1,), (0.5,))


def test_documents_read_in_part_are_counted_over_all_stages(tmp_path: Path) -> None:
    lines = [{"stage": "sft", "event": "examples", "documents": 170, "truncated": 66}]
    lines += [{"stage": "dpo", "event": "examples", "documents": 90, "truncated": 4}]
    assert truncated_in_training([cell(tmp_path, [*lines, *epochs("sft", 0.1)])]) == Share(70, 260)
