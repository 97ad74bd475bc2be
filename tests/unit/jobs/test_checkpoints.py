"""A checkpoint is used only where every file is as it was written."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
import torch
from datasets import Dataset
from ray.train import Checkpoint
from ray.train.v2.api.reported_checkpoint import ReportedCheckpoint, ReportedCheckpointStatus
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments

from jobs.checkpoints import (
    best_first,
    checkpoint_metrics,
    find_fault,
    first_intact,
    go_no_further_than,
    newest_first,
    write_digests,
)
from jobs.objective_trainer import HELD_OUT_NDCG
from jobs.stage import Worker
from jobs.train import read_log

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "global_step3").mkdir()
    (tmp_path / "global_step3" / "shard_0.pt").write_bytes(b"weights")
    (tmp_path / "trainer_state.json").write_text("{}")
    write_digests(tmp_path, rank=0)
    return tmp_path


def test_files_as_they_were_written_have_no_fault(checkpoint: Path) -> None:
    assert find_fault(checkpoint, rank=0) is None


def test_what_another_worker_adds_is_its_own_affair(checkpoint: Path) -> None:
    (checkpoint / "global_step3" / "shard_1.pt").write_bytes(b"more")
    assert find_fault(checkpoint, rank=0) is None
    assert find_fault(checkpoint, rank=1) == f"{checkpoint / 'digests-1.json'} is missing"


@pytest.mark.parametrize("damage", ["cut", "changed", "deleted", "digests"])
def test_a_damaged_file_is_named(checkpoint: Path, damage: str) -> None:
    path = checkpoint / ("digests-0.json" if damage == "digests" else "global_step3/shard_0.pt")
    if damage == "deleted":
        path.unlink()
    else:
        path.write_bytes({"cut": b"wei", "changed": b"Weights", "digests": b"{"}[damage])
    fault = find_fault(checkpoint, rank=0)
    assert fault is not None
    assert str(path) in fault


# --- the choice among several


def reported(folder: Path, epoch: int, ndcg: float) -> ReportedCheckpoint:
    """Return what Ray Train has after an epoch of ten steps."""
    folder.mkdir()
    (folder / "weights").write_text(folder.name)
    write_digests(folder, rank=0)
    history = [{HELD_OUT_NDCG: 0.0}, {HELD_OUT_NDCG: ndcg}, {"loss": 1.0}]
    state = TrainerState(global_step=10 * epoch, epoch=float(epoch), log_history=history)
    checkpoint = Checkpoint.from_directory(str(folder))
    return ReportedCheckpoint(checkpoint, checkpoint_metrics(state), ReportedCheckpointStatus.COMMITTED)


def names(checkpoints: list[ReportedCheckpoint]) -> list[str]:
    return [one.checkpoint.path.rpartition("/")[2] for one in checkpoints]


def test_the_newest_checkpoint_is_that_of_the_last_step_and_of_its_last_report(tmp_path: Path) -> None:
    given = [reported(tmp_path / name, int(name[0]), 0.5) for name in ("1", "3", "2 damaged", "2 again")]
    assert names(newest_first(given)) == ["3", "2 again", "2 damaged", "1"]


def test_the_best_checkpoint_is_the_earliest_of_equals_and_of_its_last_report(tmp_path: Path) -> None:
    given = [reported(tmp_path / name, int(name[0]), 0.9) for name in ("4", "2 damaged", "2 again")]
    given = [reported(tmp_path / "1", 1, 0.5), *given, reported(tmp_path / "500", 500, 0.900001)]
    assert names(best_first(given)) == ["500", "2 again", "2 damaged", "4", "1"]


def test_without_an_ndcg_a_checkpoint_states_its_step_alone() -> None:
    assert checkpoint_metrics(TrainerState(global_step=7, epoch=1.0)) == {"step": 7, "epoch": 1.0}


def test_damaged_checkpoints_are_passed_over_with_a_line_each(tmp_path: Path) -> None:
    given = [reported(tmp_path / str(epoch), epoch, 0.5) for epoch in (3, 2, 1)]
    log, worker = tmp_path / "log.jsonl", Worker(rank=0, world=1)
    for name in ("3", "2"):
        (tmp_path / name / "weights").write_text("cut")
    with ExitStack() as stack:
        assert first_intact(given, log, stage="rm", worker=worker, stack=stack) == (10, tmp_path / "1")
        assert first_intact(given[:2], log, stage="rm", worker=worker, stack=stack) is None
    assert [line["step"] for line in read_log(log)] == [30, 20, 30, 20]
    assert read_log(log)[0] == {
        "stage": "rm",
        "event": "damaged checkpoint",
        "step": 30,
        "reason": f"{tmp_path / '3' / 'weights'} is not as it was written",
    }


# --- where training goes on


class Slope(torch.nn.Module):
    """One weight that learns to be 2."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": ((self.weight * x - 2 * x) ** 2).mean()}


class StopAfter(TrainerCallback):
    """Stops behind a step, as an early stop and the limit on KL do."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop |= state.global_step >= self._step


def slope_trainer(folder: Path, *, stop_after: int) -> Trainer:
    settings = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=4,
        per_device_train_batch_size=2,
        learning_rate=0.1,
        save_strategy="epoch",
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    rows = Dataset.from_dict({"x": [1.0, 2.0, 3.0, 4.0]})
    return Trainer(Slope(), settings, train_dataset=rows, callbacks=[StopAfter(stop_after)])


def weight_of(trainer: Trainer) -> float:
    assert isinstance(trainer.model, Slope)
    return trainer.model.weight.item()


def resumed(folder: Path, step: int, *, stop_after: int) -> Trainer:
    """Return a new trainer that went on from a checkpoint."""
    trainer = slope_trainer(folder, stop_after=stop_after)
    start = folder / f"checkpoint-{step}"
    assert go_no_further_than(trainer, start) == step
    trainer.train(resume_from_checkpoint=str(start))
    return trainer


@pytest.mark.parametrize(
    "step", [1, 3, 4, 8]
)  # within the first of four epochs of two steps, and a later one
def test_training_that_had_stopped_is_not_taken_further(tmp_path: Path, step: int) -> None:
    first = slope_trainer(tmp_path, stop_after=step)
    first.train()
    again = resumed(tmp_path, step, stop_after=step)
    assert again.state.global_step == first.state.global_step == step
    assert weight_of(again) == weight_of(first) != 0


def test_training_that_was_interrupted_goes_on_to_its_end(tmp_path: Path) -> None:
    slope_trainer(tmp_path, stop_after=8).train()
    assert resumed(tmp_path, 2, stop_after=8).state.global_step == 8
