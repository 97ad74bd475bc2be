"""From a batch's scores to its loss: the mean over its queries."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor

from rerank_core.errors import ConfigError
from rerank_core.training.batching import RankingExample, split_scores
from rerank_core.training.losses import (
    bradley_terry_loss,
    contrastive_loss,
    cross_entropy_loss,
    dpo_loss,
    exponential_gains,
    lambda_loss,
    list_mle_loss,
    sft_loss,
    softmax_dpo_loss,
)
from rerank_core.training.policy import (
    clip_share,
    discounted_rewards,
    leave_one_out_advantages,
    plackett_luce_kl,
    ppo_loss,
    ranking_log_prob,
    sample_rankings,
)

Terms = Mapping[str, Tensor]
"""`loss`, which has a gradient, and further scalars worth logging, which have none."""

SftLoss = Literal["mse", "cross_entropy", "list_mle", "lambda"]
RewardModelLoss = Literal["bradley_terry", "mse"]
DpoLoss = Literal["sigmoid", "softmax"]
RewardSource = Literal["grades", "reward_model"]


class QueryLoss(Protocol):
    """An objective on one query: its scores, (documents,), in the order of the example's documents."""

    def __call__(self, scores: Tensor, example: RankingExample, *, step: int) -> Terms:
        """Return the loss and what it is made of; `step` counts optimiser steps from 0."""
        ...


def batch_loss(
    scores: Tensor, examples: Sequence[RankingExample], *, query_loss: QueryLoss, step: int
) -> dict[str, Tensor]:
    """Return the mean of every term over those queries of a batch that have it.

    Every query has `loss`, so a query without pairs weighs in with 0 where the objective needs pairs. To the
    objective's own terms come, for queries with pairs, their mean `margin` and `accuracy`: the share of pairs
    in the right order (equal scores are not). Losses are computed in fp32 at least, whatever the model's
    arithmetic.

    Args:
        scores: of the documents of all queries, (documents,).
        examples: the queries, in the order of their scores.
        query_loss: the objective.
        step: the optimiser's step, from 0.
    """
    parts = split_scores(scores.to(torch.promote_types(scores.dtype, torch.float32)), examples)
    found = [
        {**query_loss(part, example, step=step), **_pair_terms(part.detach(), example)}
        for part, example in zip(parts, examples, strict=True)
    ]
    names = dict.fromkeys(name for terms in found for name in terms)
    return {name: torch.stack([terms[name] for terms in found if name in terms]).mean() for name in names}


def sft_query_loss(loss: SftLoss) -> QueryLoss:
    """Return supervised learning of the grades: each by itself, or as an order."""
    return partial(_graded, loss=_LOSS_OF_GRADES[loss])


def reward_model_query_loss(loss: RewardModelLoss) -> QueryLoss:
    """Return a reward model's objective: on preference pairs, or pointwise on the grades."""
    return sft_query_loss("mse") if loss == "mse" else _bradley_terry


def dpo_query_loss(loss: DpoLoss, *, beta: float) -> QueryLoss:
    """Return DPO over one query's pairs: pair by pair, or each chosen document against all its rejected."""
    return partial(_dpo, loss=loss, beta=beta)


def contrastive_query_loss(scores: Tensor, example: RankingExample, *, step: int) -> Terms:
    """The document with the largest grade against the others."""
    return {"loss": contrastive_loss(scores, scores.new_tensor(example.grades).argmax())}


@dataclass(slots=True, kw_only=True)
class PpoQueryLoss:
    """PPO with a Plackett–Luce policy over one query's candidates: clipped surrogate + kl_weight * KL.

    Steps come in rollouts of `updates_per_rollout`. In the first step of a rollout that brings a query, it
    draws rankings from the scores, with a seed of its own for (seed, step, query), and rewards them; further
    steps of the rollout reuse them for that query. So more than one update per rollout needs batches that
    repeat their queries from step to step. A query met in the middle of a rollout, as after a resume, is
    sampled there. Only the present rollout is kept.

    The rewards are NDCG by the true grades, or the same with the frozen reward model's scores above the
    query's lowest as gains: in [0, 1]. Advantages are not divided by their spread, so `kl_weight` is relative
    to that scale. The KL is that of the policy from the reference, estimated on the same rankings.

    Raises:
        ConfigError: a setting is out of its range.
    """

    num_rankings: int
    clip: float
    kl_weight: float
    reward: RewardSource
    updates_per_rollout: int
    seed: int
    _rollout: int = field(default=-1, init=False)
    _samples: dict[str, _Sample] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        for name, smallest in (("num_rankings", 2), ("updates_per_rollout", 1)):
            if getattr(self, name) < smallest:
                raise ConfigError(f"{name} must be at least {smallest}, got {getattr(self, name)}")
        if not 0 < self.clip < 1:
            raise ConfigError(f"clip must lie between 0 and 1, got {self.clip}")
        if self.kl_weight < 0:
            raise ConfigError(f"kl_weight must not be negative, got {self.kl_weight}")

    def __call__(self, scores: Tensor, example: RankingExample, *, step: int) -> Terms:
        """Return the loss with its terms and the mean reward, ratio and share of clipped rankings."""
        sample = self._sample(scores.detach(), example, step=step)
        ratio = (ranking_log_prob(scores, sample.rankings) - sample.log_prob).exp()
        policy_loss = ppo_loss(ratio, sample.advantages, clip=self.clip)
        reference = scores.new_tensor(example.reference_scores)
        kl = plackett_luce_kl(scores, reference, rankings=sample.rankings)
        return {
            "loss": policy_loss + self.kl_weight * kl,
            "policy_loss": policy_loss.detach(),
            "kl": kl.detach(),
            "reward": sample.reward,
            "ratio": ratio.detach().mean(),
            "clip_share": clip_share(ratio.detach(), sample.advantages, clip=self.clip),
        }

    def _sample(self, scores: Tensor, example: RankingExample, *, step: int) -> _Sample:
        if step // self.updates_per_rollout != self._rollout:
            self._rollout = step // self.updates_per_rollout
            self._samples.clear()
        if example.query_id not in self._samples:
            self._samples[example.query_id] = self._draw(scores, example, step=step)
        return self._samples[example.query_id]

    def _draw(self, scores: Tensor, example: RankingExample, *, step: int) -> _Sample:
        # Python's hash() of a string differs from process to process.
        seed = zlib.crc32(f"{self.seed} {step} {example.query_id}".encode())
        rankings = sample_rankings(
            scores, num_rankings=self.num_rankings, generator=torch.Generator().manual_seed(seed)
        )
        rewards = discounted_rewards(rankings, _GAINS[self.reward](scores, example))
        log_prob = ranking_log_prob(scores, rankings)
        return _Sample(rankings, log_prob, leave_one_out_advantages(rewards), rewards.mean())


@dataclass(frozen=True, slots=True)
class _Sample:
    """Rankings of one query, with what the policy that drew them made of them; nothing has a gradient."""

    rankings: Tensor  # (rankings, documents)
    log_prob: Tensor  # (rankings,)
    advantages: Tensor  # (rankings,)
    reward: Tensor  # the mean, a scalar


def _graded(
    scores: Tensor, example: RankingExample, *, step: int, loss: Callable[[Tensor, Tensor, int], Tensor]
) -> Terms:
    return {"loss": loss(scores, scores.new_tensor(example.grades), example.max_grade)}


_LOSS_OF_GRADES: dict[SftLoss, Callable[[Tensor, Tensor, int], Tensor]] = {
    "mse": lambda scores, grades, max_grade: sft_loss(scores, grades / max_grade),
    "cross_entropy": lambda scores, grades, max_grade: cross_entropy_loss(scores, grades / max_grade),
    "list_mle": lambda scores, grades, _: list_mle_loss(scores, grades),
    "lambda": lambda scores, grades, _: lambda_loss(scores, grades),
}

_GAINS: dict[RewardSource, Callable[[Tensor, RankingExample], Tensor]] = {
    "grades": lambda like, example: exponential_gains(like.new_tensor(example.grades)),
    "reward_model": lambda like, example: _above_the_lowest(like.new_tensor(example.reward_scores)),
}


def _above_the_lowest(scores: Tensor) -> Tensor:
    """Only differences of a reward model's scores mean anything, so a query's lowest is worth nothing."""
    return scores - scores.min()


def _bradley_terry(scores: Tensor, example: RankingExample, *, step: int) -> Terms:
    if not example.chosen:
        return _nothing_to_learn(scores)
    return {"loss": bradley_terry_loss(_margin(scores, example))}


def _dpo(scores: Tensor, example: RankingExample, *, step: int, loss: DpoLoss, beta: float) -> Terms:
    if not example.chosen:
        return _nothing_to_learn(scores)
    margin = _margin(scores, example)
    reference_margin = _margin(scores.new_tensor(example.reference_scores), example)
    if loss == "sigmoid":
        return {"loss": dpo_loss(margin, reference_margin, beta=beta)}
    chosen = torch.tensor(example.chosen, device=scores.device)
    return {"loss": softmax_dpo_loss(margin, reference_margin, chosen=chosen, beta=beta)}


def _nothing_to_learn(scores: Tensor) -> Terms:
    """A loss of 0 with a gradient of 0: a worker whose batch has no pair must still take part in the step."""
    return {"loss": 0.0 * scores.sum()}


def _margin(scores: Tensor, example: RankingExample) -> Tensor:
    chosen = torch.tensor(example.chosen, device=scores.device)
    rejected = torch.tensor(example.rejected, device=scores.device)
    return scores[chosen] - scores[rejected]


def _pair_terms(scores: Tensor, example: RankingExample) -> Terms:
    if not example.chosen:
        return {}
    margin = _margin(scores, example)
    return {"margin": margin.mean(), "accuracy": (margin > 0).to(margin.dtype).mean()}
