"""Each objective against its closed form."""

import math

import pytest
import torch

from rerank_core.training.losses import contrastive_loss, dpo_loss, sft_loss


def test_sft_is_the_squared_error_of_the_sigmoid() -> None:
    loss = sft_loss(torch.tensor([0.0, math.log(3)]), torch.tensor([0.0, 1.0]))
    assert loss.item() == pytest.approx((0.5**2 + 0.25**2) / 2)


def test_dpo_is_ln_2_where_policy_and_reference_agree() -> None:
    margin = torch.tensor([3.0, -2.0, 0.0])
    assert dpo_loss(margin, margin, beta=0.1).item() == pytest.approx(math.log(2), abs=1e-6)


def test_dpo_is_the_log_of_one_plus_exp_of_minus_beta_times_the_gain() -> None:
    loss = dpo_loss(torch.tensor([5.0]), torch.tensor([2.0]), beta=0.5)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-0.5 * 3.0)))


def test_dpo_equals_the_loss_on_log_probabilities_of_the_candidate_policy() -> None:
    scores, reference = torch.tensor([1.0, -0.5, 2.0]), torch.tensor([0.3, 0.2, -1.0])
    log_pi, log_ref = scores.log_softmax(0), reference.log_softmax(0)
    textbook = -torch.nn.functional.logsigmoid(0.7 * ((log_pi[0] - log_ref[0]) - (log_pi[2] - log_ref[2])))
    ours = dpo_loss(scores[:1] - scores[2:], reference[:1] - reference[2:], beta=0.7)
    assert ours.item() == pytest.approx(textbook.item(), abs=1e-6)


def test_dpo_pushes_chosen_up_and_rejected_down_by_half_beta_at_the_start() -> None:
    scores = torch.tensor([1.0, 1.0], requires_grad=True)
    dpo_loss(scores[:1] - scores[1:], torch.zeros(1), beta=0.1).backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == pytest.approx([-0.05, 0.05])


def test_contrastive_loss_of_equal_scores_is_the_log_of_their_number() -> None:
    assert contrastive_loss(torch.zeros(8), torch.tensor(3)).item() == pytest.approx(math.log(8))
