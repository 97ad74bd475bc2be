"""What each Ray Train worker does for one stage of training."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed
import transformers
from torch import Tensor
from transformers.integrations.deepspeed import deepspeed_load_checkpoint, unset_hf_deepspeed_config

from jobs.checkpoints import CheckpointReport, best_checkpoint, train_or_resume
from jobs.objective_trainer import (
    Diverged,
    ObjectiveTrainer,
    ProgressRecord,
    QueryOrder,
    append_line,
    query_loss,
    training_arguments,
    updates_per_rollout,
)
from jobs.stage import (
    StageExamples,
    StageTask,
    Worker,
    golden_pairs,
    read_training_data,
    stage_examples,
    start_scorer,
)
from rerank_core.errors import ConfigError, DataError, JobError
from rerank_core.evaluation.calibration import fit_platt
from rerank_core.models.artefact import save_artefact
from rerank_core.models.scorer import LanguageModelScorer, SingleNeuronModel, pair_batches
from rerank_core.training.batching import (
    RankingCollator,
    RankingExample,
)
from rerank_core.training.list_model import ListModel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rerank_core.records import Calibration

EXPORT_TOLERANCE = 1e-4
"""How far the artefact's scores may lie from those of the model in training, in fp32."""


def train_stage(task: StageTask) -> None:
    """Train one stage on this worker; worker 0 writes the artefact at the end.

    A loss that is not finite ends the stage without an artefact, and with a line in the log.
    """
    worker = join_workers(Path(task.log), stage=task.name, seed=task.seed)
    scorer = start_scorer(task)
    data = read_training_data(task)
    examples = stage_examples(task, data, scorer, worker=worker)
    golden = golden_pairs(data, seed=task.seed)
    if task.zero_stage == 3 and worker.world > 1:
        refuse_uneven_passes(
            task, examples, can_pack=scorer.model.can_pack, pad_id=scorer.tokenizer.pad_token_id
        )
    if worker.rank == 0:
        append_line(Path(task.log), {"stage": task.name, "event": "examples", **examples.counts()})
    with tempfile.TemporaryDirectory(prefix="whyrank-train-") as scratch, ExitStack() as stack:
        trainer = _build_trainer(task, scorer, examples, worker=worker, scratch=Path(scratch))
        try:
            train_or_resume(trainer, log=Path(task.log), stage=task.name, worker=worker)
            if task.patience:
                _return_to_best(trainer, task, worker=worker, stack=stack)
            trained = _scores_in_training(trainer, examples.train[0])
            held_out = trainer.held_out_scores()
            if not np.isfinite([*trained, *(score for own in held_out for score in own)]).all():
                raise Diverged(f"the scores of {task.name} are no numbers after its last step")
        except Diverged as error:
            if worker.rank == 0:
                append_line(Path(task.log), {"stage": task.name, "event": "diverged", "reason": str(error)})
            return
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # gathers what ZeRO-3 has sharded
    unset_hf_deepspeed_config()  # else ZeRO-3 would shard the model that worker 0 alone is about to load
    if worker.rank == 0:
        exported = trained_scorer(task, scorer, state)
        _check_export(task, exported, examples.train[0], trained)
        save_artefact(
            exported,
            Path(task.artefact),
            head=task.head,
            golden=golden,
            provenance=task.provenance,
            calibration=stage_calibration(task, held_out, examples.held_out),
        )
    torch.distributed.barrier()  # nobody leaves before the artefact is whole


def refuse_uneven_passes(task: StageTask, examples: StageExamples, *, can_pack: bool, pad_id: int) -> None:
    """Check that every list is scored in one pass, as ZeRO 3 gathers weights from all workers in each pass.

    Raises:
        ConfigError: a list is beyond the token budget; workers with other numbers of passes would wait for
            each other for ever.
    """
    for example in [*examples.train, *examples.held_out]:
        batches = pair_batches(
            example.documents, can_pack=can_pack, max_tokens=task.max_tokens_per_batch, pad_id=pad_id
        )
        if len(list(batches)) > 1:
            raise ConfigError(
                f"the documents of query {example.query_id!r} take more than --max-tokens-per-batch"
                f" {task.max_tokens_per_batch}, and --zero-stage 3 needs them in one pass; raise the one or"
                " choose --zero-stage 2"
            )


def join_workers(log: Path, *, stage: str, seed: int) -> Worker:
    """Set this process up and meet the other workers; return this one's place."""
    import deepspeed
    import ray.train

    context = ray.train.get_context()
    worker = Worker(rank=context.get_world_rank(), world=context.get_world_size())
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    append_line(log, {"stage": stage, "event": "started", "rank": worker.rank, "pid": os.getpid()})
    deepspeed.init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo")
    transformers.set_seed(seed)
    return worker


def _build_trainer(
    task: StageTask,
    scorer: LanguageModelScorer,
    examples: StageExamples,
    *,
    worker: Worker,
    scratch: Path,
) -> ObjectiveTrainer:
    model = scorer.model.train()
    disable_dropout(model)
    trainable = with_adapters(model, rank=task.lora_rank) if task.lora_rank else model
    if task.gradient_checkpointing:
        checkpoint_layers(trainable)
    order = QueryOrder(
        len(examples.train),
        block=task.settings.queries_per_step,
        repeats=updates_per_rollout(task),
        seed=task.seed,
    )
    return ObjectiveTrainer(
        query_loss=query_loss(task),
        examples=examples,
        order=order,
        worker=worker,
        model=ListModel(trainable),
        args=training_arguments(
            task,
            worker=worker,
            num_queries=len(examples.train),
            can_be_watched=examples.can_be_watched,
            scratch=scratch,
        ),
        collator=RankingCollator(
            pad_id=scorer.tokenizer.pad_token_id,
            can_pack=scorer.model.can_pack,
            max_tokens=task.max_tokens_per_batch,
        ),
        callbacks=[ProgressRecord(task, is_writer=worker.rank == 0), CheckpointReport(worker)],
    )


def disable_dropout(model: torch.nn.Module) -> None:
    """Set every dropout to zero: a score is then the same in training and after, and DPO starts at ln 2.

    Some models keep a rate as a number of a module (Llama's attention), where no `Dropout` would show it.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def checkpoint_layers(model: SingleNeuronModel) -> None:
    """Let the backbone recompute its layers' activations in the backward pass."""
    model.backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def with_adapters(model: SingleNeuronModel, *, rank: int) -> SingleNeuronModel:
    """Put LoRA adapters on all linear layers of the backbone, in place; the head stays fully trained."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear")
    model.backbone = get_peft_model(model.backbone, config)  # type: ignore[assignment]  # a wrapper
    return model


def trained_scorer(
    task: StageTask, start: LanguageModelScorer, state: Mapping[str, Tensor]
) -> LanguageModelScorer:
    """Return a scorer with a `ListModel`'s gathered weights in fp32, adapters merged unless they are kept."""
    model = start_scorer(task).model
    if task.lora_rank:
        with_adapters(model, rank=task.lora_rank)
    ListModel(model).load_state_dict({name: tensor.float() for name, tensor in state.items()})
    if task.lora_rank and not task.keeps_adapter:
        model.backbone = model.backbone.merge_and_unload()  # type: ignore[operator]  # peft's class
    return LanguageModelScorer(model, start.encoder, digest="in training")


def _return_to_best(trainer: ObjectiveTrainer, task: StageTask, *, worker: Worker, stack: ExitStack) -> None:
    """Load the weights of the epoch with the best held-out NDCG, where it is not the last."""
    step, best = best_checkpoint(Path(task.log), stage=task.name, worker=worker, stack=stack)
    if step != trainer.state.global_step:
        deepspeed_load_checkpoint(trainer.model_wrapped, str(best))
    if worker.rank == 0:
        append_line(Path(task.log), {"stage": task.name, "event": "best epoch", "step": step})


@torch.no_grad()
def _scores_in_training(trainer: ObjectiveTrainer, example: RankingExample) -> list[float]:
    """Return the trained model's scores of one query's documents, before it is exported."""
    trainer.model_wrapped.eval()
    scores: list[float] = trainer.scores(example).tolist()
    return scores


def stage_calibration(
    task: StageTask, scores: Sequence[Sequence[float]], held_out: Sequence[RankingExample]
) -> Calibration | None:
    """Return the calibration of a trained scorer, fitted on the candidates of the dev queries.

    Targets are shares of the highest grade of the training and dev rows. None where it cannot be fitted, with
    a line in the log; and for the warm-up, which uses no judgement.
    """
    if task.name == "warmup":
        return None
    targets = [grade / example.max_grade for example in held_out for grade in example.grades]
    try:
        return fit_platt([score for own in scores for score in own], targets)
    except DataError as error:
        append_line(Path(task.log), {"stage": task.name, "event": "not calibrated", "reason": str(error)})
        return None


def _check_export(
    task: StageTask, exported: LanguageModelScorer, example: RankingExample, trained: Sequence[float]
) -> None:
    """Compare the scorer that is about to be written with the model it was trained as.

    Raises:
        JobError: in fp32 a score differs by more than `EXPORT_TOLERANCE`.
    """
    scores = exported.score_encoded(example.documents)
    largest = max(abs(a - b) for a, b in zip(scores, trained, strict=True))
    append_line(Path(task.log), {"stage": task.name, "event": "exported", "largest_difference": largest})
    if not task.bf16 and not largest <= EXPORT_TOLERANCE:
        raise JobError(
            f"stage {task.name!r}: the exported scorer differs by {largest:.3g} from the trained one; another"
            " --zero-stage or --lora-rank 0 may help, and this is worth reporting"
        )
