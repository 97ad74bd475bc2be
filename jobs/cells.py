"""The cells of a comparison, each one model, seed and fold, trained and scored as Ray tasks."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from jobs.config import ScoreJob
from jobs.progress import progress_bar
from jobs.ray_session import Need, num_at_once, num_gpus, require, require_shared
from jobs.score import run_score_here
from jobs.shards import root_cause
from jobs.train import (
    TRAIN_LOG,
    UNTRAINED,
    can_choose_epochs,
    check_training,
    progress_text,
    read_log,
    run_train,
    tell,
)
from jobs.training_config import Objective, ScorerTraining, TrainJob
from rerank_core.errors import ConfigError, JobError
from rerank_core.models.pretrained import resolve_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.progress import Progress

    from jobs.training_config import CompareJob, Method

logger = logging.getLogger("whyrank.compare")

POLL_INTERVAL_S = 1.0


@dataclass(frozen=True, slots=True)
class Cell:
    """What is trained together: the methods of one model, seed and fold, which share their first stages."""

    model: str  # its label
    seed: int
    fold: int
    can_choose_epochs: bool  # whether a dev query of the fold has a relevant candidate
    folder: Path

    @property
    def name(self) -> str:
        """How a person tells it from the others."""
        return f"{self.model}, seed {self.seed}, fold {self.fold}"


def plan_cells(config: CompareJob) -> list[Cell]:
    """Return the cells of a comparison, in the order in which they start.

    Raises:
        ConfigError: two models would have the same folder.
    """
    labels = [model_label(model) for model in config.models]
    folders = [config.output / "cells" / folder_name(label) for label in labels]
    for label, folder in zip(labels, folders, strict=True):
        if folders.count(folder) > 1:
            raise ConfigError(f"two of the models would have the folder {folder}; rename {label!r}")
    summary = json.loads((config.prepared / "summary.json").read_text(encoding="utf-8"))
    can_choose = [can_choose_epochs(config.prepared, fold=fold) for fold in range(summary["num_folds"])]
    return [
        Cell(label, seed, fold, can_choose[fold], folder / f"seed-{seed}-fold-{fold}")
        for label, folder in zip(labels, folders, strict=True)
        for seed in config.seeds
        for fold in range(summary["num_folds"])
    ]


def folder_name(label: str) -> str:
    """Return a model's label as the name of a folder or file."""
    return label.replace(":", "-")


def model_label(model: str) -> str:
    """Return what a model is called in tables and folders: the last part of a path or hub name."""
    return model.rstrip("/").rpartition("/")[2]


def name_and_layers(model: str) -> tuple[str, int | None]:
    """Return a model's name, and how many of its layers are kept: `NAME:N` keeps the first N."""
    name, _, layers = model.rpartition(":")
    return (name, int(layers)) if name and layers.isdigit() else (model, None)


def objectives_of(methods: Sequence[Method], *, reward: str) -> tuple[Objective, ...]:
    """Return the objectives to train, in order: the methods, what they start from, and PPO's reward model."""
    needed: set[Objective] = {*methods}
    if needed & {"dpo", "ppo"}:
        needed.add("sft")
    if "ppo" in needed and reward == "reward_model":
        needed.add("rm")
    return tuple(name for name in get_args(Objective) if name in needed)


def training_job(config: CompareJob, cell: Cell) -> TrainJob:
    """Return the job that trains a cell's methods."""
    objectives = objectives_of(config.methods, reward=config.ppo.reward)
    return _train_job(config, cell, output="train", objectives=objectives)


def artefacts(config: CompareJob, cell: Cell) -> dict[str, Path]:
    """Return a cell's artefact by method, the untrained scorer's among them."""
    folders = {UNTRAINED: cell.folder / UNTRAINED / UNTRAINED}
    for method in config.methods:
        folders[method] = cell.folder / "train" / method
    return folders


def run_folders(config: CompareJob, cell: Cell) -> dict[str, Path]:
    """Return a cell's run folder by method, with the rankings of the fold's test queries."""
    return {method: cell.folder / "runs" / method for method in artefacts(config, cell)}


def _train_job(config: CompareJob, cell: Cell, *, output: str, objectives: tuple[Objective, ...]) -> TrainJob:
    shared = {item.name: getattr(config, item.name) for item in fields(ScorerTraining)}
    model = next(model for model in config.models if model_label(model) == cell.model)
    name, num_layers = name_and_layers(model)
    own = {
        "output": cell.folder / output,
        "fold": cell.fold,
        "seed": cell.seed,
        "patience": config.patience if cell.can_choose_epochs else 0,
    }
    return TrainJob(**(shared | own), model=name, num_layers=num_layers, objectives=objectives)


def train_cell(config: CompareJob, cell: Cell) -> None:
    """Train what is not trained yet; a Ray task that holds nothing itself and waits for its workers."""
    run_train(_train_job(config, cell, output=UNTRAINED, objectives=()))
    run_train(training_job(config, cell))


def score_cell(config: CompareJob, cell: Cell, _trained: None) -> None:
    """Rank the fold's test queries with every artefact of a trained cell; a Ray task."""
    runs = run_folders(config, cell)
    for method, artefact in artefacts(config, cell).items():
        run_score_here(
            ScoreJob(
                prepared=config.prepared,
                artefact=artefact,
                output=runs[method],
                fold=cell.fold,
                split="test",
                max_tokens_per_batch=config.max_tokens_per_batch,
            )
        )


def check_cells(config: CompareJob, cells: Sequence[Cell]) -> None:
    """Check the training of every cell before any of them starts.

    Raises:
        WhyrankError: as `check_training`, for the first cell that could not be trained.
    """
    for cell in cells:
        if cell.seed == config.seeds[0]:  # the others differ in nothing that is checked
            job = training_job(config, cell)
            check_training(job, resolve_model(job.model))


def run_cells(config: CompareJob, cells: Sequence[Cell]) -> None:
    """Train and score every cell that is not finished, some at a time, under a bar.

    A cell that fails does not keep the others from being finished.

    Raises:
        ResourceError: one cell alone needs more than the cluster has.
        JobError: a cell failed for good; names all that did.
    """
    import ray
    from ray.exceptions import RayError

    need = Need(num_workers=config.num_workers, gpus=1.0 if num_gpus() else 0.0)
    require(need)
    for folder in (config.prepared, config.output, *local_models(config)):
        require_shared(folder)
    num_parallel = min(config.parallel_cells, num_at_once(need))
    waiting = list(cells)
    running: dict[Any, _RunningCell] = {}
    failed: dict[str, str] = {}
    with progress_bar() as progress:
        whole = progress.add_task("cells", total=len(cells))
        while waiting or running:
            while waiting and len(running) < num_parallel:
                cell = waiting.pop(0)
                running[_started(config, cell)] = _RunningCell(cell, progress)
            ended, _ = ray.wait(list(running), timeout=POLL_INTERVAL_S)
            for shown in running.values():
                shown.update()
            for reference in ended:
                shown = running.pop(reference)
                try:
                    ray.get(reference)
                except RayError as error:
                    failed[shown.cell.name] = root_cause(error)
                    logger.warning("%s failed: %s", shown.cell.name, failed[shown.cell.name])
                shown.close()
                progress.advance(whole)
    if failed:
        told = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise JobError(
            f"{len(failed)} of {len(cells)} cells failed ({told}); the others are kept, run the same command"
            " again to try these anew"
        )


def _started(config: CompareJob, cell: Cell) -> Any:
    """Start a cell; return the reference of its last task."""
    import ray

    retries = config.max_failures
    trained = ray.remote(train_cell).options(num_cpus=0, max_retries=retries).remote(config, cell)
    score = ray.remote(score_cell).options(num_cpus=1, num_gpus=min(1, num_gpus()), max_retries=retries)
    return score.remote(config, cell, trained)


def local_models(config: CompareJob) -> list[Path]:
    """Return those of the models that are folders."""
    return [folder for model in config.models if (folder := Path(name_and_layers(model)[0])).is_dir()]


class _RunningCell:
    """What a person sees of a cell at work: its progress, and what its training's log says besides."""

    def __init__(self, cell: Cell, progress: Progress) -> None:
        self.cell = cell
        self._progress = progress
        self._line = progress.add_task(cell.name, total=None)
        self._num_told = len(cell_log(cell))  # by an earlier command

    def update(self) -> None:
        """Show the last step, and tell the new lines of the log."""
        logged = cell_log(self.cell)
        for entry in logged[self._num_told :]:
            tell(entry, where=f"{self.cell.name}, ")
        self._num_told = len(logged)
        if steps := [entry for entry in logged if "loss" in entry]:
            last = steps[-1]
            own = [entry for entry in logged if entry["stage"] == last["stage"]]
            text = f"{self.cell.name}: {progress_text(own)}"
            self._progress.update(
                self._line, description=text, completed=last["step"], total=last["num_steps"]
            )

    def close(self) -> None:
        """Take the line away."""
        self._progress.remove_task(self._line)


def cell_log(cell: Cell) -> list[dict[str, Any]]:
    """Return the lines of a cell's training log."""
    return read_log(cell.folder / "train" / TRAIN_LOG)
