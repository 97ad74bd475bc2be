"""Checkpoints that are whole or not used: written with digests, and chosen among those that match them."""

from __future__ import annotations

import json
import math
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers

from jobs.manifest import file_digest
from jobs.objective_trainer import HELD_OUT_NDCG, append_line, gathered
from rerank_core.errors import JobError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from jobs.stage import Worker

EARLIEST_BEST = "earliest_best"
"""Name of the number that the best checkpoint has most of: its held-out NDCG, less `EPOCH_COST` per epoch."""

EPOCH_COST = 1e-9
"""So little that it only decides between equals: of those Ray Train keeps the latest, and we the earliest."""


class CheckpointReport(transformers.TrainerCallback):
    """Every worker hands its part of a checkpoint to Ray Train, which merges the parts."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Report what transformers has just saved; a barrier over all workers."""
        import ray.train

        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        write_digests(folder, rank=self._worker.rank)
        checkpoint = ray.train.Checkpoint.from_directory(str(folder))
        ray.train.report(checkpoint_metrics(state), checkpoint=checkpoint)
        shutil.rmtree(folder)


def checkpoint_metrics(state: transformers.TrainerState) -> dict[str, float]:
    """Return what Ray Train is told of a checkpoint; its NDCG is the last one measured, if any was."""
    metrics = {"step": state.global_step, "epoch": state.epoch}
    values = [entry[HELD_OUT_NDCG] for entry in state.log_history if HELD_OUT_NDCG in entry]
    if not values:
        return metrics
    return metrics | {HELD_OUT_NDCG: values[-1], EARLIEST_BEST: values[-1] - EPOCH_COST * state.epoch}


def write_digests(folder: Path, *, rank: int) -> None:
    """Write down the digest of every file that this worker adds to a checkpoint."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {path.relative_to(folder).as_posix(): file_digest(path) for path in files}
    (folder / _digests_name(rank)).write_text(json.dumps(digests), encoding="utf-8")


def find_fault(folder: Path, *, rank: int) -> str | None:
    """Return what is wrong with a worker's part of a checkpoint, None where all is as it was written."""
    listed = folder / _digests_name(rank)
    if not listed.is_file():
        return f"{listed} is missing"
    try:
        digests = json.loads(listed.read_text(encoding="utf-8"))
    except ValueError:
        return f"{listed} is no JSON"
    for name, digest in digests.items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        if file_digest(path) != digest:
            return f"{path} is not as it was written"
    return None


def _digests_name(rank: int) -> str:
    return f"digests-{rank}.json"


def train_or_resume(trainer: transformers.Trainer, *, log: Path, stage: str, worker: Worker) -> None:
    """Train from the newest intact checkpoint that Ray Train has, or from the beginning."""
    with ExitStack() as stack:
        start = newest_intact_checkpoint(log, stage=stage, worker=worker, stack=stack)
        if start is None:
            trainer.train()
            return
        step = go_no_further_than(trainer, start)
        if worker.rank == 0:
            append_line(log, {"stage": stage, "event": "resumed", "step": step})
        trainer.train(resume_from_checkpoint=str(start))


def go_no_further_than(trainer: transformers.Trainer, start: Path) -> int:
    """Return the step of a checkpoint; one at which training had stopped is the end for `trainer` too.

    transformers keeps that it stopped, but does not look at it before the next step.
    """
    state = json.loads((start / "trainer_state.json").read_text(encoding="utf-8"))
    step: int = state["global_step"]
    if state["stateful_callbacks"]["TrainerControl"]["args"]["should_training_stop"]:
        trainer.args.num_train_epochs = math.floor(state["epoch"])  # none is left, also of a part of one
    return step


def newest_intact_checkpoint(log: Path, *, stage: str, worker: Worker, stack: ExitStack) -> Path | None:
    """Return the folder of the newest checkpoint whose files are all as they were written, None without one.

    Every worker checks the part it wrote and all agree, as in `first_intact`.
    """
    found = first_intact(newest_first(_reported()), log, stage=stage, worker=worker, stack=stack)
    return None if found is None else found[1]


def best_checkpoint(log: Path, *, stage: str, worker: Worker, stack: ExitStack) -> tuple[int, Path]:
    """Return step and folder of the intact checkpoint with the best held-out NDCG, the earliest of equals.

    Every worker checks the part it wrote and all agree, as in `first_intact`.

    Raises:
        JobError: all are damaged.
    """
    found = first_intact(best_first(_reported()), log, stage=stage, worker=worker, stack=stack)
    if found is None:
        raise JobError(f"every checkpoint of {stage!r} is damaged; look at the disk, run the command again")
    return found


def newest_first(reported: Sequence[Any]) -> list[Any]:
    """Return checkpoints, in Ray Train's order, by falling step; of one step the last reported first.

    A step is reported again where its checkpoint was damaged and training went on from the one before.
    """
    return sorted(reversed(reported), key=_step, reverse=True)


def best_first(reported: Sequence[Any]) -> list[Any]:
    """Return checkpoints, in Ray Train's order, by falling `EARLIEST_BEST`; of one step as `newest_first`."""
    return sorted(reversed(reported), key=lambda one: one.metrics[EARLIEST_BEST], reverse=True)


def first_intact(
    checkpoints: Iterable[Any], log: Path, *, stage: str, worker: Worker, stack: ExitStack
) -> tuple[int, Path] | None:
    """Return step and folder of the first checkpoint that all workers find as they wrote it, None without.

    Those passed over get a line in the log. The folders last as long as `stack`.
    """
    for reported in checkpoints:
        folder = Path(stack.enter_context(reported.checkpoint.as_directory()))
        faults = [fault for fault in gathered(find_fault(folder, rank=worker.rank), worker=worker) if fault]
        if not faults:
            return _step(reported), folder
        if worker.rank == 0:
            line = {"stage": stage, "event": "damaged checkpoint", "step": _step(reported)}
            append_line(log, line | {"reason": faults[0]})
    return None


def _reported() -> list[Any]:
    """Return the checkpoints that Ray Train has, by rising score; of equals the first reported is first."""
    import ray.train

    mode = ray.train.CheckpointConsistencyMode.COMMITTED
    return list(ray.train.get_all_reported_checkpoints(consistency_mode=mode))


def _step(reported: Any) -> int:
    return int(reported.metrics["step"])
