"""Train the scorer, one stage after the other, each under Ray Train and DeepSpeed."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.checkpoints import EARLIEST_BEST
from jobs.leakage import judged, learnt_from, refuse_other_split
from jobs.manifest import (
    finish_output,
    folder_digest,
    opened_output,
    require_finished,
    scoring_digests,
)
from jobs.objective_trainer import HELD_OUT_NDCG, append_line
from jobs.progress import progress_bar
from jobs.ray_session import Need, num_gpus, ray_session, require, require_shared
from jobs.shards import root_cause
from jobs.stage import (
    StageTask,
    golden_pairs,
    held_out_rows,
    learns_from_pairs,
    read_training_data,
    start_scorer,
)
from jobs.train_worker import train_stage
from rerank_core.errors import ConfigError, DataError, JobError
from rerank_core.formats import read_documents, read_pairs, read_pointwise
from rerank_core.models.artefact import (
    artefact_digest,
    check_artefact,
    is_artefact,
    load_artefact,
    read_spec,
    save_artefact,
)
from rerank_core.models.build import yes_no_tokens
from rerank_core.models.pretrained import resolve_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from rich.progress import Progress

    from jobs.train_generative_worker import GenerativeTask
    from jobs.training_config import GenerativeTrainJob, Objective, StageConfig, TrainJob

logger = logging.getLogger("whyrank.train")

UNTRAINED = "untrained"
TRAIN_LOG = "train_log.jsonl"
WALL_S = "wall_s"
"""In the log of a finished stage: seconds from the start of its workers to their end, in that command."""

POLL_INTERVAL_S = 0.5


@dataclass(frozen=True, slots=True)
class TrainResult:
    """The artefacts by the name of their stage, in the order of training."""

    artefacts: Mapping[str, Path]


def run_train(config: TrainJob) -> TrainResult:
    """Train every stage that is not done yet, and return the artefacts.

    Raises:
        WhyrankError: an input is missing or wrong, the cluster is too small, or training failed for good.
    """
    model_folder = resolve_model(config.model)
    inputs = check_inputs(config, model_folder)
    with opened_output(config.output, job="train", config=config, inputs=inputs) as state:
        names = stage_names(config)
        if state == "finished":
            logger.info("%s is finished: nothing to do", config.output)
            return TrainResult({name: config.output / name for name in names})
        if names == (UNTRAINED,):
            write_untrained(config, model_folder)
        else:
            with ray_session(config.address):
                _train_stages(config, model_folder)
        artefacts = {name: config.output / name for name in names}
        digests = {name: artefact_digest(folder) for name, folder in artefacts.items()}
        finish_output(config.output, results={"artefacts": digests})
    return TrainResult(artefacts)


def check_inputs(config: TrainJob, model_folder: Path) -> dict[str, str]:
    """Return the digests of what training reads: the model, the texts, and the queries of one fold.

    Raises:
        ConfigError: the steps cannot be divided among the workers, or the model learnt from another split.
        DataError: the prepared folder is unfinished, lacks the fold, or holds nothing to learn from.
    """
    check_training(config, model_folder)
    digests = {
        "train": folder_digest(config.prepared / f"fold-{config.fold}" / "train"),
        **scoring_digests(config.prepared, fold=config.fold),
        "held_out": held_out_digest(config.prepared, fold=config.fold),
    }
    if "ppo" in config.objectives and config.ppo.reward_model is not None:
        digests["reward_model"] = artefact_digest(config.ppo.reward_model)
    return digests | {"model": artefact_digest(model_folder)}


def check_training(config: TrainJob, model_folder: Path) -> None:
    """Check what can be checked of a training before hours are spent, without reading the model's weights.

    Raises:
        ConfigError: the steps cannot be divided among the workers, the model learnt from another split, or
            it cannot have the head.
        DataError: the prepared folder is unfinished, lacks the fold, or holds nothing to learn from.
    """
    for name, stage in stages(config):
        if stage.queries_per_step % config.num_workers:
            raise ConfigError(
                f"{name}.queries_per_step {stage.queries_per_step} is no multiple of {config.num_workers}"
                " workers; change it or --num-workers"
            )
    require_finished(config.prepared, job="prepare")
    here = judged(config.prepared, fold=config.fold)
    refuse_other_split(model_folder, here)
    refuse_other_shape(config, model_folder)
    if config.head == "yes_no" and not is_artefact(model_folder):
        yes_no_tokens(model_folder)
    refuse_nothing_to_learn(config)
    if "ppo" in config.objectives and config.ppo.reward_model is not None:
        check_artefact(config.ppo.reward_model)
        refuse_other_split(config.ppo.reward_model, here)


def refuse_other_shape(config: TrainJob, model_folder: Path) -> None:
    """Check that settings of a new scorer do not contradict the artefact that training starts from.

    Raises:
        ConfigError: names the setting that the artefact has fixed.
    """
    if not is_artefact(model_folder):
        return
    spec = read_spec(model_folder)
    fixed = {"head": spec.head, "max_length": spec.max_length, "num_layers": None}
    for name, value in fixed.items():
        if getattr(config, name) != value:
            raise ConfigError(
                f"{config.model} is an artefact whose {name} is fixed, so it cannot be"
                f" {getattr(config, name)}; leave it at {value}"
            )


def refuse_nothing_to_learn(config: TrainJob) -> None:
    """Check that every objective has something to learn from.

    Raises:
        DataError: no training document has a grade, or no training query has a pair.
    """
    train = config.prepared / f"fold-{config.fold}" / "train"
    from_pairs = [learns_from_pairs(settings) for name, settings in stages(config) if name != "warmup"]
    if not all(from_pairs) and not any(row.grade for row in read_pointwise(train / "pointwise.parquet")):
        raise DataError(
            f"{train}: no training document has a grade above 0; prepare with more --train-candidates"
        )
    if any(from_pairs) and not read_pairs(train / "pairs.parquet"):
        raise DataError(
            f"{train}: no two training documents differ in grade; prepare with more --train-candidates"
        )
    if config.patience and not can_choose_epochs(config.prepared, fold=config.fold):
        raise DataError(
            f"{config.prepared}: no candidate of a dev query of fold {config.fold} has a grade above 0, so no"
            " epoch can be chosen; leave --patience at 0, or prepare with more --eval-candidates"
        )


def held_out_digest(prepared: Path, *, fold: int) -> str:
    """Return a digest of the dev queries' graded candidates, which no grade of a test query changes."""
    documents = read_documents(prepared / "corpus.parquet")
    rows = held_out_rows(prepared, fold=fold, documents=documents)
    content = json.dumps([(row.query_id, row.doc_id, row.grade) for row in rows])
    return hashlib.sha256(content.encode()).hexdigest()


def can_choose_epochs(prepared: Path, *, fold: int) -> bool:
    """Return whether a dev query of a fold has a relevant candidate, so that its NDCG says something."""
    documents = read_documents(prepared / "corpus.parquet")
    return any(row.grade for row in held_out_rows(prepared, fold=fold, documents=documents))


def stages(config: TrainJob) -> list[tuple[Objective, StageConfig]]:
    """Return the stages of a job in order, each with its settings."""
    settings: dict[Objective, StageConfig] = {
        "warmup": config.warmup,
        "sft": config.sft,
        "rm": config.rm,
        "dpo": config.dpo,
        "ppo": config.ppo,
    }
    return [(name, settings[name]) for name in config.objectives]


def stage_names(config: TrainJob) -> tuple[str, ...]:
    """Return the names of a job's artefacts, in the order of training."""
    return tuple(name for name, _ in stages(config)) or (UNTRAINED,)


def write_untrained(config: TrainJob, model_folder: Path) -> None:
    """Write the artefact of the scorer as it is before any training: the honest baseline."""
    task = _task(config, name="sft", settings=config.sft, start=str(model_folder), artefact=UNTRAINED)
    data = read_training_data(task)
    save_artefact(
        start_scorer(task),
        config.output / UNTRAINED,
        head=config.head,
        golden=golden_pairs(data, seed=config.seed),
        provenance=task.provenance,
    )


def _train_stages(config: TrainJob, model_folder: Path) -> None:
    gpus = 1.0 if num_gpus() else 0.0  # two workers cannot train on one GPU
    require(Need(num_workers=config.num_workers, gpus=gpus))
    require_shared(config.prepared)
    require_shared(config.output)
    best_by = EARLIEST_BEST if config.patience else None
    for name, settings in stages(config):
        artefact = config.output / name
        if not artefact.exists():
            start = stage_start(config, name, model_folder)
            task = _task(config, name=name, settings=settings, start=str(start.resolve()), artefact=name)
            started = time.monotonic()
            fit_stage(_worker_loop, config, task, use_gpu=gpus > 0, best_by=best_by)
            wall_s = round(time.monotonic() - started, 1)
            append_line(Path(task.log), {"stage": name, "event": "finished", WALL_S: wall_s})
        load_artefact(artefact)  # the golden pairs must score the same outside the training process
        shutil.rmtree(config.output / "checkpoints" / name, ignore_errors=True)


def stage_start(config: TrainJob, name: Objective, model_folder: Path) -> Path:
    """Return what a stage starts from: SFT's artefact for DPO and PPO, else the warm-up's, else the model."""
    before: tuple[Objective, ...] = ("sft", "warmup") if name in ("dpo", "ppo") else ("warmup",)
    done = [stage for stage in before if stage in config.objectives and stage != name]
    return config.output / done[0] if done else model_folder


def stage_reward_model(config: TrainJob, name: Objective) -> Path | None:
    """Return the artefact whose scores are the reward of a stage, None where it has none."""
    if name != "ppo" or config.ppo.reward != "reward_model":
        return None
    return config.ppo.reward_model or config.output / "rm"


def _task(
    config: TrainJob, *, name: Objective, settings: StageConfig, start: str, artefact: str
) -> StageTask:
    output = config.output.resolve()
    reference = artefact_digest(Path(start)) if is_artefact(Path(start)) else None
    reward_model = stage_reward_model(config, name)
    lineage = {*learnt_from(Path(start))}
    if reward_model is not None:
        lineage |= {*learnt_from(reward_model)}
    if name != "warmup" and artefact != UNTRAINED:
        lineage.add(judged(config.prepared, fold=config.fold))
    return StageTask(
        name=name,
        settings=settings,
        prepared=str(config.prepared.resolve()),
        fold=config.fold,
        start=start,
        reward_model=None if reward_model is None else str(reward_model.resolve()),
        artefact=str(output / artefact),
        log=str(output / TRAIN_LOG),
        cache=str(output / "frozen_scores"),
        head=config.head,
        num_layers=config.num_layers,
        max_length=config.max_length,
        max_tokens_per_batch=config.max_tokens_per_batch,
        patience=config.patience,
        bf16=config.precision == "bf16",
        gradient_checkpointing=config.gradient_checkpointing,
        lora_rank=config.lora_rank,
        keeps_adapter=config.lora_export == "adapter",
        zero_stage=config.zero_stage,
        offload_optimizer=config.offload_optimizer,
        seed=config.seed,
        provenance={
            "model": config.model,
            "stage": artefact,
            "start_digest": reference,
            "judged": sorted((asdict(one) for one in lineage), key=itemgetter("texts", "split")),
            "fold": config.fold,
            "seed": config.seed,
            "num_workers": config.num_workers,
            "zero_stage": config.zero_stage,
        },
    )


def fit_stage(
    worker_loop: Callable[[dict[str, Any]], None],
    config: TrainJob | GenerativeTrainJob,
    task: StageTask | GenerativeTask,
    *,
    use_gpu: bool,
    best_by: str | None = None,
) -> None:
    """Run one stage under Ray Train; the same command continues from the last checkpoint.

    With `best_by`, the name of a metric that checkpoints are reported with, the best ones are kept too.

    Raises:
        JobError: the stage failed more often than `config.max_failures`, or its loss was not a number.
    """
    from ray.train import CheckpointConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import FailureConfig
    from ray.train.v2.api.exceptions import TrainingFailedError

    trainer = TorchTrainer(
        worker_loop,
        train_loop_config={"task": task},
        scaling_config=ScalingConfig(num_workers=config.num_workers, use_gpu=use_gpu),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        run_config=RunConfig(
            name=task.name,
            storage_path=str(config.output.resolve() / "checkpoints"),
            failure_config=FailureConfig(
                max_failures=config.max_failures, controller_failure_limit=config.max_failures
            ),
            checkpoint_config=CheckpointConfig(num_to_keep=2, checkpoint_score_attribute=best_by),
        ),
    )
    try:
        with _live_progress(Path(task.log), stage=task.name):
            trainer.fit()
    except TrainingFailedError as error:
        raise JobError(
            f"stage {task.name!r} failed for good: {root_cause(error)}; finished stages and checkpoints in"
            f" {config.output} are kept, run the same command again to continue"
        ) from error
    if not Path(task.artefact).exists():
        told = [line["reason"] for line in read_log(Path(task.log)) if line.get("event") == "diverged"]
        raise JobError(
            f"stage {task.name!r} ended without an artefact: {told[-1]}; lower its learning rate"
            f" (--{task.name}.learning-rate) and train into another folder"
        )


def _worker_loop(settings: dict[str, Any]) -> None:
    """Ray Train calls this on every worker."""
    train_stage(settings["task"])


@contextmanager
def _live_progress(log: Path, *, stage: str) -> Iterator[None]:
    """Show the steps and the loss that worker 0 logs, while the context lasts."""
    done = threading.Event()
    with progress_bar() as progress:
        follower = threading.Thread(target=_follow, args=(log, stage, progress, done), daemon=True)
        follower.start()
        try:
            yield
        finally:
            done.set()
            follower.join()


def _follow(log: Path, stage: str, progress: Progress, done: threading.Event) -> None:
    bar = progress.add_task(f"{stage}: starting workers", total=None)
    num_told = sum(line["stage"] == stage for line in read_log(log))  # by an earlier command
    while True:
        finished = done.wait(POLL_INTERVAL_S)
        lines = [line for line in read_log(log) if line["stage"] == stage]
        for line in lines[num_told:]:
            tell(line)
        num_told = len(lines)
        if steps := [line for line in lines if "loss" in line]:
            last = steps[-1]
            progress.update(
                bar, description=progress_text(lines), completed=last["step"], total=last["num_steps"]
            )
        if finished:
            return


def tell(line: Mapping[str, Any], *, where: str = "") -> None:
    """Say what a person should know of a stage's log besides its steps; `where` stands before the stage."""
    name = f"{where}{line['stage']}"
    match line.get("event"):
        case "resumed":
            logger.info("%s continues from step %d", name, line["step"])
        case "damaged checkpoint":
            reason = line["reason"]
            logger.warning(
                "%s: the damaged checkpoint of step %d is passed over (%s)", name, line["step"], reason
            )
        case "stopped early":
            logger.info("%s stops early: %s", name, line["reason"])
        case "not calibrated":
            logger.warning("%s: its artefact states no calibration: %s", name, line["reason"])
        case "examples" if line["truncated"]:
            truncated, documents = line["truncated"], line["documents"]
            logger.info("%s: %d of %d documents are read in part (--max-length)", name, truncated, documents)


def progress_text(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return what a person wants to see of a stage: its loss, its NDCG on the dev queries, its speed."""
    last = [line for line in lines if "loss" in line][-1]
    ndcg = [line[HELD_OUT_NDCG] for line in lines if HELD_OUT_NDCG in line]
    parts = [f"{last['stage']}: loss {last['loss']:.4f}"]
    if ndcg:
        parts.append(f"dev NDCG {ndcg[-1]:.3f}")
    if "pairs_per_s" in last:
        parts.append(f"{last['pairs_per_s']:.0f} pairs/s")
    return ", ".join(parts)


def read_log(log: Path) -> list[dict[str, Any]]:
    """Return the lines of a training log, without one that is being written, or that a full disk cut off."""
    if not log.exists():
        return []
    lines = []
    for text in log.read_text(encoding="utf-8").split("\n")[:-1]:
        with suppress(json.JSONDecodeError):
            lines.append(json.loads(text))
    return lines
