"""Plackett–Luce by vectorised formulas, against the enumeration of all rankings."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rerank_core.training.policy import (
    clip_share,
    discounted_rewards,
    leave_one_out_advantages,
    plackett_luce_kl,
    ppo_loss,
    ranking_log_prob,
    sample_rankings,
)

SCORES = torch.tensor([0.7, -1.0, 2.0, 0.0], dtype=torch.double)
REFERENCE = torch.tensor([0.0, 0.5, 1.0, -2.0], dtype=torch.double)


def all_rankings(num_documents: int) -> Tensor:
    return torch.tensor(list(permutations(range(num_documents))))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- probabilities


@pytest.mark.parametrize("num_documents", [1, 2, 3, 4, 5])
def test_the_probabilities_of_all_rankings_sum_to_1(num_documents: int) -> None:
    scores = 3 * torch.randn(num_documents, dtype=torch.double)
    total = ranking_log_prob(scores, all_rankings(num_documents)).exp().sum()
    assert total.item() == pytest.approx(1.0, abs=1e-12)


def test_a_ranking_is_drawn_document_by_document_in_proportion_to_exp_of_the_score() -> None:
    rankings = all_rankings(4)
    weights = SCORES.exp()[rankings].tolist()
    expected = [math.prod(w / sum(row[place:]) for place, w in enumerate(row)) for row in weights]
    assert ranking_log_prob(SCORES, rankings).exp().tolist() == pytest.approx(expected)


def test_probabilities_do_not_depend_on_the_level_of_the_scores() -> None:
    rankings = all_rankings(4)
    shifted = ranking_log_prob(SCORES + 500, rankings)
    assert shifted.tolist() == pytest.approx(ranking_log_prob(SCORES, rankings).tolist())


def test_the_log_probability_has_the_gradient_of_its_differences() -> None:
    scores = SCORES.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: ranking_log_prob(s, all_rankings(4)), (scores,))


# --- sampling


def test_samples_follow_the_probabilities_of_the_rankings() -> None:
    num_rankings = 20_000
    drawn = sample_rankings(SCORES, num_rankings=num_rankings, generator=generator())
    expected = ranking_log_prob(SCORES, all_rankings(4)).exp()
    counts = torch.stack([(drawn == ranking).all(dim=1).sum() for ranking in all_rankings(4)])
    spread = (num_rankings * expected * (1 - expected)).sqrt()
    assert ((counts - num_rankings * expected).abs() < 4 * spread + 1).all()


def test_every_sample_is_a_permutation() -> None:
    drawn = sample_rankings(torch.randn(30), num_rankings=8, generator=generator())
    assert drawn.shape == (8, 30)
    assert drawn.sort(dim=1).values.tolist() == [list(range(30))] * 8


def test_equal_seeds_draw_equal_rankings() -> None:
    draws = [sample_rankings(SCORES, num_rankings=50, generator=generator(seed)) for seed in (7, 7, 8)]
    assert draws[0].tolist() == draws[1].tolist() != draws[2].tolist()


# --- rewards and advantages


def test_the_reward_of_a_ranking_is_its_ndcg() -> None:
    gains = torch.tensor([7.0, 0.0, 1.0])
    (best, other) = discounted_rewards(torch.tensor([[0, 2, 1], [1, 2, 0]]), gains).tolist()
    ideal = 7 + 1 / math.log2(3)
    assert best == pytest.approx(1)
    assert other == pytest.approx((1 / math.log2(3) + 7 / 2) / ideal)


def test_without_any_gain_every_reward_is_0() -> None:
    assert discounted_rewards(all_rankings(3), torch.zeros(3)).tolist() == [0.0] * 6


@given(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=20))
def test_the_advantages_of_a_query_sum_to_0(rewards: list[float]) -> None:
    assert leave_one_out_advantages(torch.tensor(rewards)).sum().item() == pytest.approx(0, abs=1e-5)


def test_an_advantage_is_the_reward_minus_the_mean_of_the_others() -> None:
    found = leave_one_out_advantages(torch.tensor([1.0, 0.0, 0.5])).tolist()
    assert found == pytest.approx([1 - 0.25, 0 - 0.75, 0.5 - 0.5])


# --- divergence


def exact_kl(scores: Tensor, reference: Tensor) -> float:
    rankings = all_rankings(len(scores))
    log_p, log_q = ranking_log_prob(scores, rankings), ranking_log_prob(reference, rankings)
    return float((log_p.exp() * (log_p - log_q)).sum())


def test_the_kl_estimate_is_unbiased() -> None:
    rankings = all_rankings(4)
    probabilities = ranking_log_prob(SCORES, rankings).exp()
    estimates = torch.stack([plackett_luce_kl(SCORES, REFERENCE, rankings=row[None]) for row in rankings])
    assert (probabilities @ estimates).item() == pytest.approx(exact_kl(SCORES, REFERENCE))


def test_the_kl_estimate_varies_less_than_the_difference_of_log_probabilities() -> None:
    rankings = all_rankings(4)
    probabilities = ranking_log_prob(SCORES, rankings).exp()
    ours = torch.stack([plackett_luce_kl(SCORES, REFERENCE, rankings=row[None]) for row in rankings])
    plain = ranking_log_prob(SCORES, rankings) - ranking_log_prob(REFERENCE, rankings)
    mean = exact_kl(SCORES, REFERENCE)
    assert probabilities @ (ours - mean) ** 2 < 0.5 * probabilities @ (plain - mean) ** 2


def test_the_kl_estimate_of_several_rankings_is_the_mean_of_theirs() -> None:
    rankings = sample_rankings(SCORES, num_rankings=5, generator=generator())
    each = [plackett_luce_kl(SCORES, REFERENCE, rankings=row[None]).item() for row in rankings]
    together = plackett_luce_kl(SCORES, REFERENCE, rankings=rankings)
    assert together.item() == pytest.approx(np.mean(each))


def test_the_kl_is_0_and_flat_where_policy_and_reference_agree() -> None:
    scores = SCORES.clone().requires_grad_()
    divergence = plackett_luce_kl(scores, SCORES + 3, rankings=all_rankings(4))
    divergence.backward()
    assert scores.grad is not None
    assert divergence.item() == pytest.approx(0, abs=1e-12)
    assert scores.grad.tolist() == pytest.approx([0.0] * 4, abs=1e-12)


scores_of_five = st.lists(st.floats(-20, 20), min_size=5, max_size=5)


@given(scores_of_five, scores_of_five, st.permutations(range(5)))
def test_the_kl_of_any_ranking_is_never_negative(
    scores: list[float], reference: list[float], ranking: list[int]
) -> None:
    divergence = plackett_luce_kl(
        torch.tensor(scores, dtype=torch.double),
        torch.tensor(reference, dtype=torch.double),
        rankings=torch.tensor([ranking]),
    )
    assert divergence.item() >= -1e-12


def test_the_kl_has_the_gradient_of_its_differences() -> None:
    scores = SCORES.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s: plackett_luce_kl(s, REFERENCE, rankings=all_rankings(4)[::5]), (scores,)
    )


def test_far_apart_scores_give_finite_divergence_and_gradient() -> None:
    scores = torch.tensor([300.0, -300.0, 0.0], requires_grad=True)
    divergence = plackett_luce_kl(scores, torch.zeros(3), rankings=torch.tensor([[0, 2, 1], [1, 2, 0]]))
    divergence.backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    assert divergence.item() == pytest.approx((2 * math.log(3) + 2 * math.log(2)) / 2, abs=1e-4)


# --- the clipped surrogate


def test_at_ratio_1_the_gradient_is_that_of_reinforce() -> None:
    log_prob = torch.tensor([-1.0, -2.0], requires_grad=True)
    advantages = torch.tensor([0.5, -0.25])
    loss = ppo_loss((log_prob - log_prob.detach()).exp(), advantages, clip=0.2)
    loss.backward()
    assert log_prob.grad is not None
    assert log_prob.grad.tolist() == pytest.approx((-advantages / 2).tolist())


@pytest.mark.parametrize(
    ("ratio", "advantage", "moves"),
    [
        (1.3, 1.0, False),  # already likelier, as the advantage asks
        (0.7, -1.0, False),  # already unlikelier, as the advantage asks
        (1.3, -1.0, True),  # moved the wrong way: must come back
        (0.7, 1.0, True),
        (1.1, 1.0, True),  # inside the clip
        (0.9, -1.0, True),
    ],
)
def test_the_clip_stops_only_what_has_moved_far_enough_in_the_advantages_direction(
    ratio: float, advantage: float, moves: bool
) -> None:
    ratios, advantages = torch.tensor([ratio], requires_grad=True), torch.tensor([advantage])
    ppo_loss(ratios, advantages, clip=0.2).backward()
    assert ratios.grad is not None
    assert ratios.grad.item() == (-advantage if moves else 0)
    assert clip_share(ratios, advantages, clip=0.2).item() == (0 if moves else 1)


def test_the_clip_bounds_what_a_good_ranking_can_earn() -> None:
    loss = ppo_loss(torch.tensor([50.0]), torch.tensor([2.0]), clip=0.2)
    assert loss.item() == pytest.approx(-1.2 * 2.0)


def test_the_clip_share_counts_rankings() -> None:
    ratio, advantages = torch.tensor([1.5, 1.5, 1.0, 0.5]), torch.tensor([1.0, -1.0, 1.0, 0.0])
    assert clip_share(ratio, advantages, clip=0.2).item() == 0.25


# --- one candidate


def test_a_single_candidate_has_one_ranking_and_nothing_to_learn() -> None:
    score = torch.tensor([1.7], requires_grad=True)
    rankings = sample_rankings(score, num_rankings=3, generator=generator())
    rewards = discounted_rewards(rankings, torch.tensor([3.0]))
    assert rankings.tolist() == [[0]] * 3
    assert ranking_log_prob(score, rankings).tolist() == [0.0] * 3
    assert rewards.tolist() == [1.0] * 3
    assert leave_one_out_advantages(rewards).tolist() == [0.0] * 3
    assert plackett_luce_kl(score, torch.tensor([-2.0]), rankings=rankings).item() == 0
