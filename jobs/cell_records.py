"""What the cells of a comparison have recorded: times, learning curves, what was read in part."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from jobs.cells import Cell, cell_log, objectives_of, run_folders
from jobs.manifest import read_manifest
from jobs.objective_trainer import HELD_OUT_NDCG
from jobs.train import UNTRAINED, WALL_S
from rerank_core.evaluation.method_comparison import Share
from rerank_core.evaluation.method_pictures import LearningCurve
from rerank_core.formats import read_shards

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jobs.training_config import CompareJob, Method


def cell_seconds(config: CompareJob, cell: Cell) -> float:
    """Return the time from the start of a cell's training to the end of its scoring, pauses included."""
    first = read_manifest(cell.folder / UNTRAINED)["started"]
    last = max(read_manifest(folder)["finished"] for folder in run_folders(config, cell).values())
    return (datetime.fromisoformat(last) - datetime.fromisoformat(first)).total_seconds()


def truncated_in_training(cells: Sequence[Cell]) -> Share:
    """Return how many documents of the training queries were read in part, over all cells and stages."""
    lines = [line for cell in cells for line in cell_log(cell) if line.get("event") == "examples"]
    return Share(sum(line["truncated"] for line in lines), sum(line["documents"] for line in lines))


def truncated_in_test(config: CompareJob, cells: Sequence[Cell]) -> Share:
    """Return how many (query, document) pairs the scorers read in part, of those they ranked."""
    flags = [
        flag
        for cell in cells
        for folder in run_folders(config, cell).values()
        for flag in read_shards(folder / "data", {"is_truncated": pa.bool_()})
        .column("is_truncated")
        .to_pylist()
    ]
    return Share(sum(flags), len(flags))


def training_seconds(config: CompareJob, cells: Sequence[Cell]) -> dict[str, dict[str, float]]:
    """Return the mean training time of each model and method over its cells."""
    found: dict[str, dict[str, list[float]]] = {}
    for cell in cells:
        step_s = steps_by_stage(cell_log(cell), key="step_s")
        own = found.setdefault(cell.model, {method: [] for method in config.methods})
        for method in config.methods:
            stages = objectives_of((method,), reward=config.ppo.reward)
            own[method].append(sum(sum(step_s[stage].values()) for stage in stages))
    return {model: {m: float(np.mean(s)) for m, s in own.items()} for model, own in found.items()}


def stage_seconds(config: CompareJob, cells: Sequence[Cell]) -> dict[str, dict[str, tuple[float, ...]]]:
    """Return how long each model's and method's own stage took, from workers' start to artefact, by cell.

    The stages that a method builds on are trained once for all of them, and are not in it. Of a stage that
    was interrupted, or finished again after its artefact was lost, the trainings that went to their end are
    summed; what an interrupted one took is nowhere recorded. A cell without such a training has no value.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for cell in cells:
        own = found.setdefault(cell.model, {method: [] for method in config.methods})
        lines = [line for line in cell_log(cell) if WALL_S in line]
        for method, seconds in own.items():
            if of_stage := [line[WALL_S] for line in lines if line["stage"] == method]:
                seconds.append(sum(of_stage))
    return {model: {m: tuple(s) for m, s in own.items()} for model, own in found.items()}


def learning_curves(config: CompareJob, cells: Sequence[Cell]) -> dict[str, tuple[LearningCurve, ...]]:
    """Return a curve per model, method and seed: the mean over the folds that can be watched, epoch by epoch.

    It ends with the epoch that all folds reached, so that no point is the mean of fewer folds than another.
    """
    values: dict[tuple[str, Method, int], list[list[float]]] = {}
    for cell in cells:
        by_stage = steps_by_stage(cell_log(cell), key=HELD_OUT_NDCG)
        for method in config.methods:
            if by_step := by_stage.get(method):
                own = [by_step[step] for step in sorted(by_step)]
                values.setdefault((cell.model, method, cell.seed), []).append(own)
    curves: dict[str, tuple[LearningCurve, ...]] = {}
    for (model, method, seed), folds in values.items():
        means = [float(np.mean(epoch)) for epoch in zip(*folds, strict=False)]
        curve = LearningCurve(method, seed, tuple(range(1, len(means) + 1)), tuple(means))
        curves[model] = (*curves.get(model, ()), curve)
    return curves


def steps_by_stage(log: Sequence[Mapping[str, Any]], *, key: str) -> dict[str, dict[int, float]]:
    """Return `values[stage][step]` of a logged quantity; where a resumed stage repeated a step, the last."""
    values: dict[str, dict[int, float]] = {}
    for line in log:
        if key in line:
            values.setdefault(line["stage"], {})[line["step"]] = line[key]
    return values
