"""What each Ray Train worker does for one stage of training."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed
import transformers
from torch import Tensor
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from jobs.config import DpoConfig, Objective, StageConfig
from jobs.zero import ZeroStage, zero_config
from rerank_core.data.warm_up import title_examples
from rerank_core.errors import DataError, JobError
from rerank_core.formats import read_documents, read_pairs, read_pointwise, read_queries
from rerank_core.models.artefact import is_artefact, load_artefact, save_artefact
from rerank_core.models.build import build_encoder, build_model, load_tokenizer
from rerank_core.models.scorer import HeadKind, LanguageModelScorer, PairEncoder, SingleNeuronModel
from rerank_core.retrieval.bm25 import Bm25Retriever
from rerank_core.training.batching import (
    RankingCollator,
    RankingExample,
    RankingExamples,
    Texts,
    contrastive_example,
    ranking_examples,
    with_reference,
)
from rerank_core.training.steps import (
    QueryLoss,
    batch_loss,
    contrastive_query_loss,
    dpo_query_loss,
    sft_query_loss,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rerank_core.records import Document, Query

logger = logging.getLogger("whyrank.train")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTask:
    """One stage, as it is sent to the workers."""

    name: Objective
    settings: StageConfig
    prepared: str
    fold: int
    start: str  # an artefact, or a model folder
    artefact: str  # where the result goes
    log: str  # JSONL that worker 0 appends to
    head: HeadKind
    num_layers: int | None
    max_length: int
    bf16: bool
    lora_rank: int
    zero_stage: ZeroStage
    seed: int
    provenance: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The training split of one fold, with its texts."""

    texts: Texts
    folder: Path


def train_stage(task: StageTask) -> None:
    """Train one stage on this worker; worker 0 writes the artefact at the end."""
    import deepspeed
    import ray.train

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    append_line(Path(task.log), {"stage": task.name, "event": "started", "rank": rank, "pid": os.getpid()})
    deepspeed.init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo")
    transformers.set_seed(task.seed)
    scorer = start_scorer(task)
    data = read_training_data(task)
    examples = stage_examples(task, data, scorer, rank=rank, world=world)
    golden = golden_pairs(data, seed=task.seed)
    with tempfile.TemporaryDirectory(prefix="whyrank-train-") as scratch:
        trainer = _build_trainer(task, scorer, examples, world=world, scratch=Path(scratch))
        _run(trainer, task, rank=rank)
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # gathers what ZeRO-3 has sharded
    unset_hf_deepspeed_config()  # else ZeRO-3 would shard the model that worker 0 alone is about to load
    if rank == 0:
        save_artefact(
            _trained_scorer(task, scorer, state),
            Path(task.artefact),
            head=task.head,
            golden=golden,
            provenance=task.provenance,
        )
    torch.distributed.barrier()  # nobody leaves before the artefact is whole


def read_training_data(task: StageTask) -> TrainingData:
    """Return the texts of a task's prepared folder, and where the training rows of its fold are."""
    prepared = Path(task.prepared)
    texts = Texts(read_queries(prepared / "queries.parquet"), read_documents(prepared / "corpus.parquet"))
    return TrainingData(texts, prepared / f"fold-{task.fold}" / "train")


def start_scorer(task: StageTask) -> LanguageModelScorer:
    """Return the scorer that a stage starts from: an artefact's, or an untrained one on a language model."""
    start = Path(task.start)
    if is_artefact(start):
        return load_artefact(start)
    model = build_model(start, head=task.head, num_layers=task.num_layers, seed=task.seed)
    encoder = build_encoder(load_tokenizer(start), model.config, head=task.head, max_length=task.max_length)
    return LanguageModelScorer(model, encoder, digest="untrained")


def stage_examples(
    task: StageTask, data: TrainingData, scorer: LanguageModelScorer, *, rank: int, world: int
) -> list[RankingExample]:
    """Return the training examples of a stage; every worker gets the same list.

    Raises:
        DataError: there is nothing to learn from.
    """
    if task.name == "warmup":
        documents = [document for _, document in sorted(data.texts.documents.items())]
        found = title_examples(documents, Bm25Retriever(documents), rng=np.random.default_rng(task.seed))
        examples = [contrastive_example(e.query, e.documents, encoder=scorer.encoder) for e in found]
    else:
        examples = _graded_examples(data, scorer.encoder)
    if task.name == "dpo":
        examples = [example for example in examples if example.chosen]
        examples = with_reference(examples, _reference_scores(scorer, examples, rank=rank, world=world))
    if not examples:
        raise DataError(
            f"{data.folder} holds nothing for the stage {task.name!r}; look at summary.json of the prepared"
            " folder"
        )
    return examples


def _graded_examples(data: TrainingData, encoder: PairEncoder) -> list[RankingExample]:
    rows = read_pointwise(data.folder / "pointwise.parquet")
    max_grade = max((row.grade for row in rows), default=0)
    if max_grade == 0:
        raise DataError(
            f"{data.folder / 'pointwise.parquet'}: no training document has a grade above 0; raise"
            " --train-candidates"
        )
    return ranking_examples(
        rows,
        read_pairs(data.folder / "pairs.parquet"),
        texts=data.texts,
        encoder=encoder,
        max_grade=max_grade,
    )


def _reference_scores(
    scorer: LanguageModelScorer, examples: Sequence[RankingExample], *, rank: int, world: int
) -> list[list[float]]:
    """Each worker scores its part with the frozen reference; all get all."""
    mine = {
        place: scorer.score_encoded(examples[place].documents) for place in range(rank, len(examples), world)
    }
    parts: list[dict[int, list[float]]] = [{} for _ in range(world)]
    torch.distributed.all_gather_object(parts, mine)
    together = {place: scores for part in parts for place, scores in part.items()}
    return [together[place] for place in range(len(examples))]


def golden_pairs(data: TrainingData, *, seed: int) -> list[tuple[Query, Document]]:
    """Return training pairs for the artefact's self-check, drawn by the seed."""
    rows = read_pointwise(data.folder / "pointwise.parquet")
    order = np.random.default_rng(seed).permutation(len(rows))
    queries, documents = data.texts.queries, data.texts.documents
    return [(queries[rows[i].query_id], documents[rows[i].doc_id]) for i in order]


class ObjectiveTrainer(transformers.Trainer):
    """transformers' trainer with the loss of an objective over whole queries."""

    def __init__(self, *, query_loss: QueryLoss, **settings: Any) -> None:
        super().__init__(**settings)  # what they mean is Trainer's affair
        self._query_loss = query_loss
        self.model_accepts_loss_kwargs = False  # so that accumulated losses are averaged, not summed

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the mean objective over the queries of a batch."""
        examples = inputs.pop("examples")
        return batch_loss(model(**inputs), examples, query_loss=self._query_loss)


def _query_loss(task: StageTask) -> QueryLoss:
    if isinstance(task.settings, DpoConfig):
        return dpo_query_loss(beta=task.settings.beta)
    return contrastive_query_loss if task.name == "warmup" else sft_query_loss


def _build_trainer(
    task: StageTask,
    scorer: LanguageModelScorer,
    examples: Sequence[RankingExample],
    *,
    world: int,
    scratch: Path,
) -> ObjectiveTrainer:
    settings = task.settings
    accumulation = max(1, settings.queries_per_step // world)
    num_steps = settings.num_epochs * math.ceil(math.ceil(len(examples) / world) / accumulation)
    model = scorer.model.train()
    disable_dropout(model)
    arguments = transformers.TrainingArguments(
        output_dir=str(scratch),
        num_train_epochs=settings.num_epochs,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=round(settings.warmup_share * num_steps),
        weight_decay=settings.weight_decay,
        max_grad_norm=1.0,
        logging_steps=1,
        logging_nan_inf_filter=False,  # a loss that is not a number must be seen
        save_strategy="epoch",
        save_total_limit=1,
        save_on_each_node=True,
        seed=task.seed,
        bf16=task.bf16,
        use_cpu=not torch.cuda.is_available(),
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        deepspeed=zero_config(task.zero_stage, bf16=task.bf16),
    )
    trainable = with_adapters(model, rank=task.lora_rank) if task.lora_rank else model
    return ObjectiveTrainer(
        query_loss=_query_loss(task),
        model=trainable,
        args=arguments,
        data_collator=RankingCollator(pad_id=scorer.tokenizer.pad_token_id),
        train_dataset=RankingExamples(examples),
        callbacks=[_Progress(Path(task.log), stage=task.name), _CheckpointReport()],
    )


def disable_dropout(model: torch.nn.Module) -> None:
    """Set every dropout to zero: a score is then the same in training and after, and DPO starts at ln 2."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def with_adapters(model: SingleNeuronModel, *, rank: int) -> SingleNeuronModel:
    """Put LoRA adapters on all linear layers of the backbone, in place; the head stays fully trained."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear")
    model.backbone = get_peft_model(model.backbone, config)  # type: ignore[assignment]  # a wrapper
    return model


def _trained_scorer(
    task: StageTask, start: LanguageModelScorer, state: Mapping[str, Tensor]
) -> LanguageModelScorer:
    """Return a scorer with the gathered weights, adapters merged, in fp32."""
    model = start_scorer(task).model
    if task.lora_rank:
        with_adapters(model, rank=task.lora_rank)
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    if task.lora_rank:
        model.backbone = model.backbone.merge_and_unload()  # type: ignore[operator]  # peft's class
    return LanguageModelScorer(model, start.encoder, digest="in training")


def _run(trainer: ObjectiveTrainer, task: StageTask, *, rank: int) -> None:
    import ray.train

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        trainer.train()
        return
    with checkpoint.as_directory() as folder:
        if rank == 0:
            step = json.loads((Path(folder) / "trainer_state.json").read_text(encoding="utf-8"))[
                "global_step"
            ]
            append_line(Path(task.log), {"stage": task.name, "event": "resumed", "step": step})
        trainer.train(resume_from_checkpoint=folder)


def append_line(path: Path, values: Mapping[str, Any]) -> None:
    """Append one JSON object to a JSONL file."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(values) + "\n")


class _Progress(transformers.TrainerCallback):
    """Worker 0 writes each step's loss; every worker stops at a loss that is not finite."""

    def __init__(self, log: Path, *, stage: Objective) -> None:
        self._log = log
        self._stage = stage

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Record a step; transformers calls this after each."""
        if "loss" not in logs:
            return
        if state.is_world_process_zero:
            append_line(
                self._log,
                {
                    "stage": self._stage,
                    "step": state.global_step,
                    "num_steps": state.max_steps,
                    "epoch": round(state.epoch, 4),
                    "loss": logs["loss"],
                    "learning_rate": logs.get("learning_rate"),
                },
            )
        if not math.isfinite(logs["loss"]):
            raise JobError(
                f"the loss of {self._stage} is {logs['loss']} at step {state.global_step}; lower its learning"
                " rate"
            )


class _CheckpointReport(transformers.TrainerCallback):
    """Every worker hands its part of a checkpoint to Ray Train, which merges the parts."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Report what transformers has just saved; a barrier over all workers."""
        import ray.train

        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        metrics = {"step": state.global_step, "epoch": state.epoch}
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(str(folder)))
        shutil.rmtree(folder)
