"""Objectives as functions of tensors: scores in, one scalar out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor


def sft_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Pointwise regression: mean of (sigmoid(s) - y)².

    Args:
        scores: logits, (documents,).
        targets: grades divided by the largest grade, in [0, 1], (documents,).
    """
    return functional.mse_loss(scores.sigmoid(), targets)


def dpo_loss(margin: Tensor, reference_margin: Tensor, *, beta: float) -> Tensor:
    """Direct preference optimisation on scores: mean of -log sigmoid(beta * (m - m_ref)).

    With the scores of a query's candidates as the logits of a policy over them, the softmax normaliser
    cancels in log pi(chosen) - log pi(rejected), so this is DPO's loss (Rafailov et al. 2023, equation 7)
    exactly, not an approximation. It is ln 2 where policy and reference agree, and tends to 0 as the margin
    grows beyond the reference's.

    Args:
        margin: the policy's score of the chosen minus that of the rejected document, (pairs,).
        reference_margin: the same of the frozen reference, (pairs,).
        beta: strength of the pull towards the reference, positive.
    """
    return -functional.logsigmoid(beta * (margin - reference_margin)).mean()


def contrastive_loss(scores: Tensor, relevant: Tensor) -> Tensor:
    """Softmax cross-entropy of the one relevant document against the others: -log softmax(s)[relevant].

    Args:
        scores: logits of one query's documents, (documents,).
        relevant: index of the relevant one, a scalar.
    """
    return functional.cross_entropy(scores.unsqueeze(0), relevant.unsqueeze(0))
