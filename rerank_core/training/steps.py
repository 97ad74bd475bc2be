"""From a batch's scores to its loss: the mean over its queries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from rerank_core.training.batching import RankingExample, split_scores
from rerank_core.training.losses import contrastive_loss, dpo_loss, sft_loss

QueryLoss = Callable[[Tensor, RankingExample], Tensor]
"""One query's scores, (documents,), and its example to a scalar."""


def batch_loss(scores: Tensor, examples: Sequence[RankingExample], *, query_loss: QueryLoss) -> Tensor:
    """Return the mean of a loss over the queries of a batch; `scores` is (documents of all queries,)."""
    parts = split_scores(scores, examples)
    return torch.stack(
        [query_loss(part, example) for part, example in zip(parts, examples, strict=True)]
    ).mean()


def sft_query_loss(scores: Tensor, example: RankingExample) -> Tensor:
    """Regression of one query's scores on its grades."""
    return sft_loss(scores, scores.new_tensor(example.grades) / example.max_grade)


def contrastive_query_loss(scores: Tensor, example: RankingExample) -> Tensor:
    """The document with the largest grade against the others."""
    return contrastive_loss(scores, scores.new_tensor(example.grades).argmax())


def dpo_query_loss(*, beta: float) -> QueryLoss:
    """DPO over one query's pairs, each built from scores that were computed once."""
    return partial(_dpo, beta=beta)


def _dpo(scores: Tensor, example: RankingExample, *, beta: float) -> Tensor:
    reference = scores.new_tensor(example.reference_scores)
    chosen = torch.tensor(example.chosen, device=scores.device)
    rejected = torch.tensor(example.rejected, device=scores.device)
    return dpo_loss(scores[chosen] - scores[rejected], reference[chosen] - reference[rejected], beta=beta)
