"""What Ray Train keeps and gives back: the earliest best epoch, and for a damaged one its repetition."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.checkpoints import EARLIEST_BEST
from jobs.train import fit_stage
from jobs.train_generative_worker import GenerativeTask
from jobs.training_config import GenerativeTrainJob

pytestmark = pytest.mark.ray


def test_the_earliest_of_equally_good_epochs_is_kept_and_found_intact(
    ray_instance: None, tmp_path: Path
) -> None:
    def damage_the_second_of_four_epochs(settings: dict[str, Any]) -> None:  # travels with its imports
        import tempfile
        from contextlib import ExitStack
        from types import SimpleNamespace

        from transformers import TrainerState

        from jobs.checkpoints import CheckpointReport, best_checkpoint, newest_intact_checkpoint
        from jobs.objective_trainer import HELD_OUT_NDCG
        from jobs.stage import Worker

        task, worker = settings["task"], Worker(rank=0, world=1)
        log = Path(task.log)
        with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:

            def save(epoch: int, ndcg: float, *, weights: str) -> None:
                folder = Path(scratch) / f"checkpoint-{epoch}"
                folder.mkdir()
                (folder / "weights").write_text(weights)
                history = [{HELD_OUT_NDCG: ndcg}]
                state = TrainerState(global_step=epoch, epoch=float(epoch), log_history=history)
                CheckpointReport(worker).on_save(SimpleNamespace(output_dir=scratch), state, None)

            save(1, 0.5, weights="worse")
            save(2, 0.9, weights="best")
            newest = newest_intact_checkpoint(log, stage=task.name, worker=worker, stack=stack)
            assert newest is not None
            (newest / "weights").write_text("damaged")
            save(2, 0.9, weights="best again")
            save(3, 0.9, weights="as good")
            save(4, 0.9, weights="as good")
            step, best = best_checkpoint(log, stage=task.name, worker=worker, stack=stack)
            Path(task.artefact).write_text(json.dumps([step, (best / "weights").read_text()]))

    job = GenerativeTrainJob(prepared=tmp_path, output=tmp_path / "out", num_workers=1, max_failures=0)
    task = GenerativeTask(job=job, name="sft", start="", provenance={})
    fit_stage(damage_the_second_of_four_epochs, job, task, use_gpu=False, best_by=EARLIEST_BEST)
    assert json.loads(Path(task.artefact).read_text()) == [2, "best again"]
