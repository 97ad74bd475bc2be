"""What each Ray Train worker does for one stage of generative training."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed
import transformers
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from jobs.checkpoints import CheckpointReport, train_or_resume
from jobs.objective_trainer import Diverged, append_line
from jobs.train_worker import join_workers
from jobs.zero import zero_config
from rerank_core.data.preferred_orders import preferred_orders
from rerank_core.explanation.explain import shared_words
from rerank_core.formats import read_documents, read_pointwise, read_queries
from rerank_core.models.writer import Writer, assistant_turn, load_writer, save_writer, user_turn
from rerank_core.prompting.ranking_list import first_words, render_query_prompt, render_ranking
from rerank_core.prompting.render import load_template, render

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from peft import LoraConfig
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.sft_trainer import SFTTrainer

    from jobs.training_config import GenerativeObjective, GenerativeTrainJob, NoisySftConfig, RpoConfig
    from rerank_core.records import Document, Query


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerativeTask:
    """One stage, as it is sent to the workers; the paths of `job` are absolute."""

    job: GenerativeTrainJob
    name: GenerativeObjective
    start: str  # a model folder
    provenance: Mapping[str, Any]

    @property
    def settings(self) -> NoisySftConfig | RpoConfig:
        """How long and how fast this stage is trained."""
        return self.job.sft if self.name == "sft" else self.job.dpo

    @property
    def artefact(self) -> str:
        """Folder that receives the trained model."""
        return str(self.job.output / self.name)

    @property
    def log(self) -> str:
        """JSONL that worker 0 appends to."""
        return str(self.job.output / "train_log.jsonl")


@dataclass(frozen=True, slots=True)
class ListExample:
    """A prompt with the answer that is preferred and one that is worse."""

    query_id: str
    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True)
class ListExamples:
    """What a job learns from, with the queries it leaves out and the listed documents that prompts cut."""

    examples: tuple[ListExample, ...]
    num_left_out: int
    num_cut: int


def train_generative_stage(task: GenerativeTask) -> None:
    """Train one stage on this worker; worker 0 writes the model at the end."""
    log = Path(task.log)
    worker = join_workers(log, stage=task.name, seed=task.job.seed)
    zero = zero_config(task.job.zero_stage, bf16=task.job.precision == "bf16", offload_optimizer=False)
    with tempfile.TemporaryDirectory(prefix="whyrank-train-") as scratch:
        trainer = build_trainer(task, world=worker.world, scratch=Path(scratch), zero=zero)
        trainer.add_callback(StepLog(log, stage=task.name))
        trainer.add_callback(CheckpointReport(worker))
        try:
            train_or_resume(trainer, log=log, stage=task.name, worker=worker)
        except Diverged as error:
            if worker.rank == 0:
                append_line(log, {"stage": task.name, "event": "diverged", "reason": str(error)})
            return
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # gathers what ZeRO-3 has sharded
    unset_hf_deepspeed_config()  # else ZeRO-3 would shard the model that worker 0 alone is about to load
    if worker.rank == 0:
        save_writer(trained_writer(task, state), Path(task.artefact), provenance=task.provenance)
    torch.distributed.barrier()  # nobody leaves before the folder is whole


class StepLog(transformers.TrainerCallback):
    """Worker 0 writes each step's loss; every worker stops at a loss that is not finite."""

    def __init__(self, log: Path, *, stage: str) -> None:
        self._log = log
        self._stage = stage

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Record a step; transformers calls this after each."""
        if "loss" not in logs:
            return
        if state.is_world_process_zero:
            line = {"stage": self._stage, "step": state.global_step, "num_steps": state.max_steps}
            numbers = {name: value for name, value in sorted(logs.items()) if isinstance(value, float)}
            append_line(self._log, line | numbers)
        if not math.isfinite(logs["loss"]):
            raise Diverged(f"the loss of {self._stage} is {logs['loss']} at step {state.global_step}")


def read_examples(job: GenerativeTrainJob, tokenizer: PreTrainedTokenizerBase) -> ListExamples:
    """Return the training queries of a job's fold as prompts and answers; every worker gets the same.

    The candidates are listed in first-stage order. What an answer says of a document is the words that it
    shares with the query, as far as the prompt shows it, and nothing where it shares none.
    """
    rows = read_pointwise(job.prepared / f"fold-{job.fold}" / "train" / "pointwise.parquet")
    queries = read_queries(job.prepared / "queries.parquet")
    documents = read_documents(job.prepared / "corpus.parquet")
    orders = preferred_orders(rows, num_candidates=job.num_candidates, rng=np.random.default_rng(job.seed))
    examples, num_cut = [], 0
    for order in orders:
        query, listed = queries[order.query_id], [documents[doc_id] for doc_id in order.listed]
        prompt = render_query_prompt(
            query, listed, max_words=job.max_words, special_tokens=tokenizer.all_special_tokens
        )
        reasons = shared_word_reasons(query, listed, max_words=job.max_words)
        chosen, rejected = (render_ranking(ids, reasons) for ids in (order.chosen, order.rejected))
        examples.append(ListExample(order.query_id, prompt, chosen, rejected))
        num_cut += sum(first_words(d, max_words=job.max_words) != d.content for d in listed)
    num_queries = len({row.query_id for row in rows})
    return ListExamples(tuple(examples), num_queries - len(examples), num_cut)


def shared_word_reasons(query: Query, documents: Sequence[Document], *, max_words: int) -> dict[str, str]:
    """Return for each document that shares words with the query, in what a prompt shows of it, which."""
    shared = {
        document.doc_id: shared_words(query.text, first_words(document, max_words=max_words))
        for document in documents
    }
    template = load_template("reason_shared")
    return {
        doc_id: render(template, {"words": ", ".join(found)}) for doc_id, found in shared.items() if found
    }


def build_trainer(
    task: GenerativeTask, *, world: int, scratch: Path, zero: Mapping[str, Any] | None
) -> transformers.Trainer:
    """Return TRL's trainer of a stage; without `zero` it is plain torch, in this process alone.

    TRL cuts nothing: `max_length` has been checked against every example before.
    """
    import datasets

    datasets.disable_progress_bars()
    writer = load_writer(Path(task.start))
    examples = read_examples(task.job, writer.tokenizer).examples
    arguments = training_arguments(task, num_examples=len(examples), world=world) | {
        "output_dir": str(scratch),
        "deepspeed": None if zero is None else dict(zero),
    }
    build = _sft_trainer if task.name == "sft" else _dpo_trainer
    return build(task, writer, examples=examples, arguments=arguments)


def training_arguments(task: GenerativeTask, *, num_examples: int, world: int) -> dict[str, Any]:
    """Return what both of TRL's trainers are told."""
    job, settings = task.job, task.settings
    accumulation = settings.queries_per_step // (world * job.queries_per_pass)
    num_steps = settings.num_epochs * -(-num_examples // settings.queries_per_step)
    return {
        "num_train_epochs": settings.num_epochs,
        "per_device_train_batch_size": job.queries_per_pass,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": round(settings.warmup_share * num_steps),
        "weight_decay": settings.weight_decay,
        "max_grad_norm": 1.0,
        "max_length": None,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # a loss that is not a number must be seen
        "save_strategy": "epoch",
        "save_total_limit": 1,
        "save_on_each_node": False,  # Ray Train merges the parts: what all share, one worker adds
        "seed": job.seed,
        "bf16": job.precision == "bf16",
        "gradient_checkpointing": False,
        "use_cpu": not torch.cuda.is_available(),
        "report_to": "none",
        "disable_tqdm": True,
    }


def _sft_trainer(
    task: GenerativeTask, writer: Writer, *, examples: Sequence[ListExample], arguments: Mapping[str, Any]
) -> SFTTrainer:
    """Learn to write the better order; the loss is the mean over all answer tokens of a step.

    NEFTune (Jain et al. 2023): e + (α / sqrt(L * d)) * U(-1, 1) on the input embeddings, with L tokens in the
    padded sequence and width d, in training only.
    """
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    rows = [
        {"prompt": user_turn(example.prompt), "completion": assistant_turn(example.chosen)}
        for example in examples
    ]
    noise_alpha = task.job.sft.noise_alpha
    return SFTTrainer(
        writer.model,
        args=SFTConfig(**arguments, completion_only_loss=True, neftune_noise_alpha=noise_alpha or None),
        train_dataset=Dataset.from_list(rows),
        processing_class=writer.tokenizer,
        peft_config=_adapters(task.job),
    )


def _dpo_trainer(
    task: GenerativeTask, writer: Writer, *, examples: Sequence[ListExample], arguments: Mapping[str, Any]
) -> DPOTrainer:
    """Learn to prefer the better order to the worse by RPO: DPO + α * NLL.

    With r(y) = log p(y) - log p_ref(y), summed over the tokens of an answer y, where p is the policy and
    p_ref the frozen model that the stage starts from:

        mean of -log sigmoid(β * (r(chosen) - r(rejected)))  -  α * (sum of log p(chosen)) / (sum of |chosen|)

    Mean and sums go over the queries of one pass, so that the second term (TRL's loss "sft") gives each
    token of a pass the same weight. RPO divides each answer's log p by its own length instead; that is the
    same with one query per pass, the default. A step of several passes takes the mean over its passes.
    """
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    rows = [
        {
            "prompt": user_turn(example.prompt),
            "chosen": assistant_turn(example.chosen),
            "rejected": assistant_turn(example.rejected),
        }
        for example in examples
    ]
    settings = task.job.dpo
    adapters = _adapters(task.job)
    return DPOTrainer(
        writer.model,
        ref_model=None if adapters else load_writer(Path(task.start)).model,  # else: adapters switched off
        args=DPOConfig(
            **arguments,
            beta=settings.beta,
            loss_type=["sigmoid", "sft"],
            loss_weights=[1.0, settings.nll_weight],
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=writer.tokenizer,
        peft_config=adapters,
    )


def _adapters(job: GenerativeTrainJob) -> LoraConfig | None:
    if not job.lora_rank:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=job.lora_rank,
        lora_alpha=2 * job.lora_rank,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def trained_writer(task: GenerativeTask, state: Mapping[str, Tensor]) -> Writer:
    """Return the writer that a stage started from with the gathered weights, adapters merged, in fp32."""
    writer = load_writer(Path(task.start))
    weights = {name: tensor.float() for name, tensor in state.items()}
    adapters = _adapters(task.job)
    if adapters is None:
        writer.model.load_state_dict(weights)
        return writer
    from peft import get_peft_model

    adapted = get_peft_model(writer.model, adapters)
    adapted.load_state_dict(weights)
    return Writer(adapted.merge_and_unload(), writer.tokenizer)  # type: ignore[arg-type]  # typed as any module
