"""Objectives as functions of tensors: scores in, one scalar out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def sft_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Pointwise regression on grades: mean of (sigmoid(s) - y)².

    Islam and Zhao (2025, arXiv:2508.18444) regress graded rows so, but do not state the function; this one is
    our reading. It is 0 where sigmoid(s) = y, to which a target of 0 or 1 only tends, and at most 1. Its
    gradient by a score, 2 (sigmoid(s) - y) sigmoid(s) sigmoid(-s) / documents, fades where the sigmoid is
    flat, however wrong the score is there. NaN for no documents.

    Args:
        scores: logits, (documents,).
        targets: grades divided by the largest grade, in [0, 1], (documents,).
    """
    return functional.mse_loss(scores.sigmoid(), targets)


def cross_entropy_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Pointwise cross-entropy with soft targets: mean of -y log sigmoid(s) - (1 - y) log sigmoid(-s).

    For targets of 0 and 1 it is the loss of a pointwise re-ranker (Nogueira and Cho 2019, arXiv:1901.04085),
    and not ListNet's cross-entropy over a list (Cao et al. 2007). Its gradient by a score is
    (sigmoid(s) - y) / documents, which does not fade where the sigmoid is flat. At sigmoid(s) = y it is the
    mean entropy of the targets, not 0, unless they are all 0 or 1. NaN for no documents.

    Args:
        scores: logits, (documents,).
        targets: grades divided by the largest grade, in [0, 1], (documents,).
    """
    return functional.binary_cross_entropy_with_logits(scores, targets)


def bradley_terry_loss(margin: Tensor) -> Tensor:
    """Pairwise logistic loss of a reward model: mean of -log sigmoid(m) (Bradley and Terry 1952).

    It is ln 2 where chosen and rejected score alike, and tends to 0 as the margin grows. Margins alone count:
    the level of a query's scores stays free. NaN for no pairs.

    Args:
        margin: score of the chosen minus that of the rejected document, (pairs,).
    """
    return -functional.logsigmoid(margin).mean()


def dpo_loss(margin: Tensor, reference_margin: Tensor, *, beta: float) -> Tensor:
    """Direct preference optimisation on scores: mean of -log sigmoid(beta * (m - m_ref)).

    With the scores of a query's candidates as the logits of a policy over them, the softmax normaliser
    cancels in log pi(chosen) - log pi(rejected), so this is DPO's loss (Rafailov et al. 2023, equation 7)
    exactly, not an approximation. It is ln 2 where policy and reference agree, and tends to 0 as the margin
    grows beyond the reference's. NaN for no pairs.

    Args:
        margin: the policy's score of the chosen minus that of the rejected document, (pairs,).
        reference_margin: the same of the frozen reference, (pairs,).
        beta: strength of the pull towards the reference, positive.
    """
    return bradley_terry_loss(beta * (margin - reference_margin))


def softmax_dpo_loss(margin: Tensor, reference_margin: Tensor, *, chosen: Tensor, beta: float) -> Tensor:
    """DPO of each chosen document against all its rejected ones at once (S-DPO, Chen et al. 2024).

    The mean over chosen documents c of -log sigmoid(-log sum_d exp(-beta * (m_cd - m_ref_cd))), d running
    over the documents rejected for c. With one rejected document for each chosen one it is `dpo_loss`; where
    policy and reference agree it is the mean of log(1 + number of rejected documents). NaN for no pairs.

    Args:
        margin: the policy's score of the chosen minus that of the rejected document, (pairs,).
        reference_margin: the same of the frozen reference, (pairs,).
        chosen: which document is the chosen one of each pair, (pairs,); equal numbers belong together.
        beta: strength of the pull towards the reference, positive.
    """
    gain = beta * (margin - reference_margin)
    is_own = chosen == chosen.unique().unsqueeze(1)  # (chosen documents, pairs)
    rivals = (-gain).expand_as(is_own).masked_fill(~is_own, -torch.inf).logsumexp(dim=1)
    return bradley_terry_loss(-rivals)


def contrastive_loss(scores: Tensor, relevant: Tensor) -> Tensor:
    """Softmax cross-entropy of the one relevant document against the others: -log softmax(s)[relevant].

    InfoNCE (van den Oord et al. 2018, arXiv:1807.03748) of one query, with the scores as log f and without a
    temperature. It is ln n where all n documents score alike, tends to 0 as the relevant one leads, and
    is 0 for a list of one. The level of the scores stays free.

    Args:
        scores: logits of one query's documents, (documents,).
        relevant: index of the relevant one, a scalar.
    """
    return functional.cross_entropy(scores.unsqueeze(0), relevant.unsqueeze(0))


def list_mle_loss(scores: Tensor, grades: Tensor) -> Tensor:
    """Negative log-likelihood of the graded order under Plackett–Luce (ListMLE, Xia et al. 2008).

    The sum over documents i of -log(exp(s_i) / (exp(s_i) + sum_j exp(s_j))), j running over the documents of
    strictly lower grade. For distinct grades these are the stages of Plackett–Luce, so this is exactly
    -log P(best first). Documents of equal grade are never compared: each term is the probability that i comes
    before everything graded below it, and their product a composite likelihood (Varin et al. 2011). So the
    loss does not depend on the order in which equals are listed, and is 0 where all grades are equal.

    Args:
        scores: logits of one query's documents, (documents,).
        grades: their grades, (documents,).
    """
    is_self = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    is_rival = is_self | (grades < grades.unsqueeze(1))  # (document, its rivals and itself)
    rivals = scores.expand_as(is_rival).masked_fill(~is_rival, -torch.inf).logsumexp(dim=1)
    return (rivals - scores).sum()


def lambda_loss(scores: Tensor, grades: Tensor) -> Tensor:
    """Pairwise logistic loss weighted by what a swap would change in NDCG (LambdaLoss, Wang et al. 2018).

    The sum over pairs with grade_i > grade_j of |dNDCG_ij| * log(1 + exp(-(s_i - s_j))): LambdaRank's weights
    in the LambdaLoss framework, with natural logarithm and unit slope. |dNDCG_ij| is exact: what NDCG (gain
    2^g - 1, discount 1 / log2(rank + 1), no cut) loses or gains if i and j swap places in the present
    ranking. The weights are constants of the gradient. Equal scores rank in the order given. The loss is 0
    where all grades are equal.

    Args:
        scores: logits of one query's documents, (documents,).
        grades: their grades, at least 0, (documents,).
    """
    discount = 1.0 / torch.arange(2, len(scores) + 2, device=scores.device).to(scores.dtype).log2()
    gains = exponential_gains(grades.to(scores.dtype))
    places = scores.detach().argsort(descending=True, stable=True).argsort()  # (documents,), from 0
    ideal = gains.sort(descending=True).values @ discount
    own_discount = discount[places]
    swap = (gains.unsqueeze(1) - gains) * (own_discount.unsqueeze(1) - own_discount)  # (documents, documents)
    weight = swap.abs() / ideal.clamp_min(torch.finfo(scores.dtype).tiny)  # no gain at all: 0, not NaN
    is_pair = grades.unsqueeze(1) > grades
    return -(functional.logsigmoid(scores.unsqueeze(1) - scores) * weight * is_pair).sum()


def exponential_gains(grades: Tensor) -> Tensor:
    """Return the gains 2^g - 1 of NDCG (Burges et al. 2005), in the shape of `grades`."""
    return torch.exp2(grades) - 1
