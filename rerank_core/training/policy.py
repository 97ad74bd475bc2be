"""The Plackett–Luce policy: a distribution over the rankings of one query's candidates, from their scores.

P(ranking) is the product over places of exp(s of the document there) / sum of exp(s) over those not yet
placed (Luce 1959, Plackett 1975). Rankings are rows of document indices, best first, (rankings, documents);
one candidate alone has one ranking, of probability 1. No text is generated: many rankings share one scoring
pass.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sample_rankings(scores: Tensor, *, num_rankings: int, generator: torch.Generator) -> Tensor:
    """Draw independent rankings, (rankings, documents).

    Sorting scores that Gumbel noise was added to draws from Plackett–Luce exactly (Yellott 1977). Noise is
    drawn on the generator's device, so that a seed gives the same noise wherever the scores are.

    Args:
        scores: logits of one query's documents, (documents,).
        num_rankings: how many to draw.
        generator: the source of randomness.
    """
    noise = torch.empty(num_rankings, len(scores), device=generator.device)
    gumbel = -noise.exponential_(generator=generator).log()
    return (scores.detach() + gumbel.to(scores.device)).argsort(dim=1, descending=True)


def ranking_log_prob(scores: Tensor, rankings: Tensor) -> Tensor:
    """Return log P(ranking) of each ranking, (rankings,).

    Args:
        scores: logits of one query's documents, (documents,).
        rankings: indices of the documents, best first, (rankings, documents).
    """
    ranked = scores[rankings]
    return (ranked - _log_remaining(ranked)).sum(dim=1)


def discounted_rewards(rankings: Tensor, gains: Tensor) -> Tensor:
    """Return each ranking's DCG over the best DCG of the same documents, in [0, 1], (rankings,).

    DCG is the sum of gain / log2(rank + 1) over all ranks. With gains 2^g - 1 this is NDCG with the query's
    own candidates as the ideal. Without any gain every reward is 0.

    Args:
        rankings: indices of the documents, best first, (rankings, documents).
        gains: what each document is worth, at least 0, (documents,).
    """
    discount = 1.0 / torch.arange(2, len(gains) + 2, device=gains.device).to(gains.dtype).log2()
    ideal = gains.sort(descending=True).values @ discount
    return gains[rankings] @ discount / ideal.clamp_min(torch.finfo(gains.dtype).tiny)


def leave_one_out_advantages(rewards: Tensor) -> Tensor:
    """Return each reward minus the mean of the query's other rewards, (rankings,).

    The baseline of a ranking does not depend on that ranking, so the policy gradient stays unbiased (Kool et
    al. 2019). The advantages of a query sum to 0.

    Args:
        rewards: of rankings drawn for one query, at least two, (rankings,).
    """
    others = (rewards.sum() - rewards) / (len(rewards) - 1)
    return rewards - others


def plackett_luce_kl(scores: Tensor, reference: Tensor, *, rankings: Tensor) -> Tensor:
    """Estimate KL(policy || reference) from rankings drawn from the policy, a scalar.

    By the chain rule the divergence is the expected sum over places of the KL between the two softmaxes over
    the documents not yet placed. Each of these is computed in closed form; only what was placed before is
    sampled. So the estimate is unbiased, 0 where the softmaxes agree, and but for rounding never negative.
    Its gradient takes the rankings as given. Rankings of an older policy make it an approximation. Time and
    memory grow as rankings * documents².

    Args:
        scores: the policy's logits of one query's documents, (documents,).
        reference: the frozen reference's, (documents,).
        rankings: indices of the documents, best first, (rankings, documents).
    """
    own, other = scores[rankings], reference[rankings]
    log_own, log_other = _log_remaining(own), _log_remaining(other)  # (rankings, places)
    log_p = own.unsqueeze(1) - log_own.unsqueeze(2)  # (rankings, places, documents as ranked)
    is_placed = torch.ones_like(log_p, dtype=torch.bool).tril(diagonal=-1)
    p = log_p.masked_fill(is_placed, -torch.inf).exp()
    expected = (p @ (own - other).unsqueeze(2)).squeeze(2)  # (rankings, places)
    return (expected - (log_own - log_other)).sum(dim=1).mean()


def ppo_loss(ratio: Tensor, advantages: Tensor, *, clip: float) -> Tensor:
    """Clipped surrogate of PPO: mean of -min(r A, clamp(r, 1 - clip, 1 + clip) A) (Schulman et al. 2017).

    A ranking whose probability has already moved beyond the clip in the direction of its advantage has no
    gradient; one that moved the other way still has.

    Args:
        ratio: P(ranking) under the policy over that under the policy which drew it, (rankings,).
        advantages: of the same rankings, (rankings,).
        clip: how far a ratio may move from 1, positive.
    """
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages).mean()


def clip_share(ratio: Tensor, advantages: Tensor, *, clip: float) -> Tensor:
    """Return the share of the rankings that `ppo_loss` clips, a scalar; arguments as there."""
    is_clipped = ((ratio > 1 + clip) & (advantages > 0)) | ((ratio < 1 - clip) & (advantages < 0))
    return is_clipped.to(ratio.dtype).mean()


def _log_remaining(ranked: Tensor) -> Tensor:
    """Return, at each place, the log of the sum of exp(s) over the documents from there on."""
    return ranked.flip(1).logcumsumexp(dim=1).flip(1)
