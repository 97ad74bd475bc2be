"""Checkpoints that are whole or not used: written with digests, and chosen among those that match them."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers

from jobs.manifest import file_digest
from jobs.objective_trainer import HELD_OUT_NDCG, append_line, gathered

if TYPE_CHECKING:
    from jobs.stage import Worker


class CheckpointReport(transformers.TrainerCallback):
    """Every worker hands its part of a checkpoint to Ray Train, which merges the parts."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Report what transformers has just saved; a barrier over all workers."""
        import ray.train

        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        write_digests(folder, rank=self._worker.rank)
        metrics = {"step": state.global_step, "epoch": state.epoch}
        values = [entry[HELD_OUT_NDCG] for entry in state.log_history if HELD_OUT_NDCG in entry]
        if values:
            metrics[HELD_OUT_NDCG] = values[-1]
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(str(folder)))
        shutil.rmtree(folder)


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
        if start is not None and worker.rank == 0:
            state = json.loads((start / "trainer_state.json").read_text(encoding="utf-8"))
            append_line(log, {"stage": stage, "event": "resumed", "step": state["global_step"]})
        trainer.train(resume_from_checkpoint=None if start is None else str(start))


def newest_intact_checkpoint(log: Path, *, stage: str, worker: Worker, stack: ExitStack) -> Path | None:
    """Return the folder of the newest checkpoint whose files are all as they were written, None without one.

    Every worker checks the part it wrote and all agree. A damaged checkpoint is passed over with a line in
    the log. The folder lasts as long as `stack`.
    """
    for reported in sorted(_reported(), key=_step, reverse=True):
        folder = Path(stack.enter_context(reported.checkpoint.as_directory()))
        faults = [fault for fault in gathered(find_fault(folder, rank=worker.rank), worker=worker) if fault]
        if not faults:
            return folder
        if worker.rank == 0:
            line = {"stage": stage, "event": "damaged checkpoint", "step": _step(reported)}
            append_line(log, line | {"reason": faults[0]})
    return None


def best_checkpoint(*, stack: ExitStack) -> tuple[int, Path]:
    """Return step and folder of the checkpoint with the best held-out NDCG, the earliest of equals."""
    best = min(_reported(), key=lambda reported: (-reported.metrics[HELD_OUT_NDCG], _step(reported)))
    return _step(best), Path(stack.enter_context(best.checkpoint.as_directory()))


def _reported() -> list[Any]:
    import ray.train

    mode = ray.train.CheckpointConsistencyMode.COMMITTED
    return list(ray.train.get_all_reported_checkpoints(consistency_mode=mode))


def _step(reported: Any) -> int:
    return int(reported.metrics["step"])
