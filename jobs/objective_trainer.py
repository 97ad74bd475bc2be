"""transformers' trainer with an objective over whole queries, a fixed order, and a record of every step."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed
import transformers
from torch import Tensor
from torch.utils.data import Sampler

from jobs.training_config import DpoConfig, PpoConfig, RewardModelConfig, SftConfig
from jobs.zero import zero_config
from rerank_core.training.batching import RankingExamples
from rerank_core.training.losses import exponential_gains
from rerank_core.training.policy import discounted_rewards
from rerank_core.training.steps import (
    PpoQueryLoss,
    QueryLoss,
    batch_loss,
    contrastive_query_loss,
    dpo_query_loss,
    reward_model_query_loss,
    sft_query_loss,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from jobs.stage import StageExamples, StageTask, Worker
    from rerank_core.training.batching import RankingCollator, RankingExample

HELD_OUT_NDCG = "held_out_ndcg"
"""Name of the mean NDCG over the fold's dev queries, each with its own candidates as the ideal."""


class Diverged(Exception):  # noqa: N818 - says what happened; it never leaves the worker
    """The loss is not a finite number: going on, or starting again, would not help."""


def query_loss(task: StageTask) -> QueryLoss:
    """Return the objective of a stage."""
    settings = task.settings
    if isinstance(settings, SftConfig):
        return sft_query_loss(settings.loss)
    if isinstance(settings, RewardModelConfig):
        return reward_model_query_loss(settings.loss)
    if isinstance(settings, DpoConfig):
        return dpo_query_loss(settings.loss, beta=settings.beta)
    if isinstance(settings, PpoConfig):
        return PpoQueryLoss(
            num_rankings=settings.num_rankings,
            clip=settings.clip,
            kl_weight=settings.kl_weight,
            reward=settings.reward,
            updates_per_rollout=settings.updates_per_rollout,
            seed=task.seed,
        )
    return contrastive_query_loss


def updates_per_rollout(task: StageTask) -> int:
    """Return how many steps in a row see the same queries: PPO updates several times on one rollout."""
    return task.settings.updates_per_rollout if isinstance(task.settings, PpoConfig) else 1


class QueryOrder(Sampler[int]):
    """The order of the queries: shuffled by (seed, epoch), in blocks of one step each.

    Every block is full: the last one is filled up from the epoch's first queries, so that all steps weigh the
    same. Each block is repeated `repeats` times before the next.
    """

    def __init__(self, num_queries: int, *, block: int, repeats: int, seed: int) -> None:
        self._num_queries = num_queries
        self._block = block
        self._repeats = repeats
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; its order depends on nothing read before, so a resumed run repeats it."""
        self._epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self._num_queries / self._block) * self._block * self._repeats

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self._seed, self._epoch]).permutation(self._num_queries)
        full = np.resize(order, math.ceil(self._num_queries / self._block) * self._block)
        for block in full.reshape(-1, self._block).tolist():
            for _ in range(self._repeats):
                yield from block


class ObjectiveTrainer(transformers.Trainer):
    """transformers' trainer with the loss of an objective over whole queries."""

    def __init__(
        self,
        *,
        query_loss: QueryLoss,
        examples: StageExamples,
        collator: RankingCollator,
        order: QueryOrder,
        worker: Worker,
        **settings: Any,
    ) -> None:
        super().__init__(
            data_collator=collator,
            train_dataset=RankingExamples(examples.train),
            eval_dataset=RankingExamples(examples.held_out) if examples.can_be_watched else None,
            **settings,  # what they mean is Trainer's affair
        )
        self._query_loss = query_loss
        self._held_out = examples.held_out
        self._collator = collator
        self._order = order
        self._worker = worker
        self._terms: list[dict[str, float]] = []
        self._step_began: float | None = None
        self.model_accepts_loss_kwargs = False  # so that accumulated losses are averaged, not summed

    def _get_train_sampler(self, train_dataset: Any = None) -> QueryOrder:
        return self._order

    def training_step(self, *inputs: Any, **settings: Any) -> Tensor:
        """Start a step's clock with its first micro-batch: neither evaluation nor saving is in its time."""
        if self._step_began is None:
            self._step_began = time.monotonic()
        loss: Tensor = super().training_step(*inputs, **settings)
        return loss

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the mean objective over the queries of a batch."""
        examples = inputs.pop("examples")
        terms = batch_loss(
            model(**inputs), examples, query_loss=self._query_loss, step=self.state.global_step
        )
        values = {name: float(value) for name, value in terms.items() if name != "loss"}
        self._terms.append(values | {"num_pairs": float(sum(len(example.chosen) for example in examples))})
        return terms["loss"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the objective's terms, averaged over all queries of the step, and what the step took."""
        if "loss" in logs:
            logs |= self._step_terms()
        super().log(logs, start_time)

    def _step_terms(self) -> dict[str, float]:
        parts = gathered(self._terms, worker=self._worker)
        self._terms = []
        found = [terms for part in parts for terms in part]
        now = time.monotonic()
        seconds, self._step_began = now - (self._step_began or now), None
        pairs = sum(terms.pop("num_pairs") for terms in found)
        names = dict.fromkeys(name for terms in found for name in terms)
        means = {name: float(np.mean([t[name] for t in found if name in t])) for name in names}
        return means | {"pairs_per_s": pairs / max(seconds, 1e-9), "step_s": seconds}

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Return the mean NDCG of the held-out queries; transformers calls this after each epoch."""
        scored = zip(self._held_out, self.held_out_scores(), strict=True)
        values = [ndcg(torch.tensor(scores), example) for example, scores in scored if max(example.grades)]
        metrics = {HELD_OUT_NDCG: float(np.mean(values))}
        self.log(dict(metrics))
        return metrics

    @torch.no_grad()
    def held_out_scores(self) -> list[list[float]]:
        """Return the present model's scores of each held-out query's documents.

        Every worker must call it: each scores its part with as many calls as the others, which ZeRO-3 needs.
        """
        self.model_wrapped.eval()
        num, rank, world = len(self._held_out), self._worker.rank, self._worker.world
        places = [(call * world + rank) % num for call in range(math.ceil(num / world))]
        mine = [(place, self.scores(self._held_out[place]).tolist()) for place in places]
        found = dict(pair for part in gathered(mine, worker=self._worker) for pair in part)
        return [found[place] for place in range(num)]

    def scores(self, example: RankingExample) -> Tensor:
        """Return the present model's scores of one query's documents, (documents,)."""
        inputs = self._prepare_inputs(self._collator([example]))
        inputs.pop("examples")
        scores: Tensor = self.model_wrapped(**inputs).float()
        return scores


def ndcg(scores: Tensor, example: RankingExample) -> float:
    """Return the NDCG (gain 2^g - 1, all ranks) of one query's documents in the order of their scores."""
    ranking = scores.argsort(descending=True, stable=True).unsqueeze(0)
    gains = exponential_gains(torch.tensor(example.grades, device=scores.device).float())
    return float(discounted_rewards(ranking, gains)[0])


def gathered(mine: Any, *, worker: Worker) -> list[Any]:
    """Return what every worker holds, in the order of their ranks."""
    if worker.world == 1:
        return [mine]
    parts = [None] * worker.world
    torch.distributed.all_gather_object(parts, mine)
    return parts


def training_arguments(
    task: StageTask, *, worker: Worker, num_queries: int, can_be_watched: bool, scratch: Path
) -> Any:
    """Return transformers' settings for a stage; one query is a micro-batch."""
    settings = task.settings
    steps_per_epoch = math.ceil(num_queries / settings.queries_per_step) * updates_per_rollout(task)
    return transformers.TrainingArguments(
        output_dir=str(scratch),
        num_train_epochs=settings.num_epochs,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=settings.queries_per_step // worker.world,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=round(settings.warmup_share * settings.num_epochs * steps_per_epoch),
        weight_decay=settings.weight_decay,
        max_grad_norm=1.0,
        logging_steps=1,
        logging_nan_inf_filter=False,  # a loss that is not a number must be seen
        eval_strategy="epoch" if can_be_watched else "no",
        save_strategy="epoch",
        save_total_limit=1,
        save_on_each_node=False,  # Ray Train merges the parts: what all share, one worker adds
        seed=task.seed,
        bf16=task.bf16,
        use_cpu=not torch.cuda.is_available(),
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        deepspeed=zero_config(task.zero_stage, bf16=task.bf16, offload_optimizer=task.offload_optimizer),
    )


def append_line(path: Path, values: Mapping[str, Any]) -> None:
    """Append one JSON object to a JSONL file."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(values) + "\n")


class ProgressRecord(transformers.TrainerCallback):
    """Worker 0 writes each step and epoch as JSONL and for TensorBoard; all stop where going on is no use."""

    def __init__(self, task: StageTask, *, is_writer: bool) -> None:
        self._task = task
        self._log = Path(task.log) if is_writer else None
        self._board: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open TensorBoard's file; what a resumed stage will write again is struck out there."""
        if self._log is not None:
            from tensorboardX import SummaryWriter

            folder = self._log.parent / "tensorboard" / self._task.name
            self._board = SummaryWriter(str(folder), purge_step=state.global_step + 1)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Record a step or an epoch; transformers calls this after each."""
        if "loss" not in logs and HELD_OUT_NDCG not in logs:
            return
        if self._log is not None:
            line = {"stage": self._task.name, "step": state.global_step, "num_steps": state.max_steps}
            append_line(self._log, line | {name: logs[name] for name in sorted(logs)})
            for name, value in logs.items():
                self._board.add_scalar(name, value, state.global_step)
        if not math.isfinite(logs.get("loss", 0.0)):
            raise Diverged(f"the loss of {self._task.name} is {logs['loss']} at step {state.global_step}")
        if reason := self._reason_to_stop(state.log_history):
            self._stop(control, reason)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close TensorBoard's file."""
        if self._board is not None:
            self._board.close()

    def _reason_to_stop(self, history: Sequence[Mapping[str, float]]) -> str | None:
        settings, last = self._task.settings, history[-1]
        if isinstance(settings, PpoConfig) and last.get("kl", 0.0) > settings.max_kl:
            return f"KL {last['kl']:.3g} exceeds max_kl {settings.max_kl:g}"
        if self._task.patience and HELD_OUT_NDCG in last and is_out_of_patience(history, self._task.patience):
            return f"no better NDCG on the dev queries for {self._task.patience} epochs"
        return None

    def _stop(self, control: Any, reason: str) -> None:
        control.should_training_stop = True
        if self._log is not None:
            append_line(self._log, {"stage": self._task.name, "event": "stopped early", "reason": reason})


def is_out_of_patience(history: Sequence[Mapping[str, float]], patience: int) -> bool:
    """Return whether the best held-out NDCG lies `patience` epochs or more behind the last."""
    values = [entry[HELD_OUT_NDCG] for entry in history if HELD_OUT_NDCG in entry]
    return len(values) - 1 - values.index(max(values)) >= patience
