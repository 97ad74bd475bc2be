"""One objective per name, each with its terms; a batch's terms are means over queries."""

import math
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch

from rerank_core.errors import ConfigError
from rerank_core.models.scorer import EncodedPair
from rerank_core.training.batching import RankingExample
from rerank_core.training.losses import (
    bradley_terry_loss,
    cross_entropy_loss,
    dpo_loss,
    lambda_loss,
    list_mle_loss,
    sft_loss,
    softmax_dpo_loss,
)
from rerank_core.training.policy import plackett_luce_kl, sample_rankings
from rerank_core.training.steps import (
    DpoLoss,
    PpoQueryLoss,
    QueryLoss,
    RewardModelLoss,
    SftLoss,
    batch_loss,
    contrastive_query_loss,
    dpo_query_loss,
    reward_model_query_loss,
    sft_query_loss,
)

DOCUMENT = EncodedPair((0,), 0, 1, False)
SCORES = torch.tensor([0.5, -1.0, 2.0])


def example_of(grades: tuple[int, ...], *, query_id: str = "q") -> RankingExample:
    """Return a query with every pair of unequal grades; reference and reward model prefer the first."""
    pairs = [(c, r) for c, above in enumerate(grades) for r, below in enumerate(grades) if above > below]
    falling = tuple(-0.25 * place for place in range(len(grades)))
    return RankingExample(
        query_id=query_id,
        documents=(DOCUMENT,) * len(grades),
        grades=grades,
        max_grade=4,
        chosen=tuple(c for c, _ in pairs),
        rejected=tuple(r for _, r in pairs),
        reference_scores=falling,
        reward_scores=falling,
    )


EXAMPLE = example_of((2, 0, 1))
CHOSEN, REJECTED = torch.tensor([0, 0, 2]), torch.tensor([1, 2, 1])
MARGIN = SCORES[CHOSEN] - SCORES[REJECTED]
REFERENCE_MARGIN = torch.tensor([0.25, 0.5, -0.25])


def ppo(**settings: Any) -> PpoQueryLoss:
    defaults: dict[str, Any] = {
        "num_rankings": 8,
        "clip": 0.2,
        "kl_weight": 0.1,
        "reward": "grades",
        "updates_per_rollout": 2,
        "seed": 0,
    }
    return PpoQueryLoss(**(defaults | settings))


# --- objectives by name


def test_sft_reads_grades_as_shares_of_the_largest_or_as_an_order() -> None:
    grades = torch.tensor([2.0, 0.0, 1.0])
    expected = {
        "mse": sft_loss(SCORES, grades / 4),
        "cross_entropy": cross_entropy_loss(SCORES, grades / 4),
        "list_mle": list_mle_loss(SCORES, grades),
        "lambda": lambda_loss(SCORES, grades),
    }
    assert set(expected) == set(get_args(SftLoss))
    for name in get_args(SftLoss):
        assert sft_query_loss(name)(SCORES, EXAMPLE, step=0) == {"loss": expected[name]}


def test_a_reward_model_learns_pairs_or_grades() -> None:
    expected = {
        "bradley_terry": bradley_terry_loss(MARGIN),
        "mse": sft_loss(SCORES, torch.tensor([0.5, 0.0, 0.25])),
    }
    assert set(expected) == set(get_args(RewardModelLoss))
    for name in get_args(RewardModelLoss):
        assert reward_model_query_loss(name)(SCORES, EXAMPLE, step=0) == {"loss": expected[name]}


def test_dpo_reads_margin_and_reference_of_the_same_pair() -> None:
    expected = {
        "sigmoid": dpo_loss(MARGIN, REFERENCE_MARGIN, beta=0.3),
        "softmax": softmax_dpo_loss(MARGIN, REFERENCE_MARGIN, chosen=CHOSEN, beta=0.3),
    }
    assert set(expected) == set(get_args(DpoLoss))
    for name in get_args(DpoLoss):
        assert dpo_query_loss(name, beta=0.3)(SCORES, EXAMPLE, step=0) == {"loss": expected[name]}


def test_dpo_starts_at_ln_2() -> None:
    scores = torch.tensor(EXAMPLE.reference_scores)
    loss = dpo_query_loss("sigmoid", beta=0.1)(scores, EXAMPLE, step=0)["loss"]
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)


def test_the_warm_up_sets_the_document_of_the_largest_grade_against_the_others() -> None:
    terms = contrastive_query_loss(SCORES, example_of((0, 0, 1)), step=0)
    assert terms["loss"].item() == pytest.approx(-SCORES.log_softmax(0)[2].item())


# --- batches


def test_the_loss_of_a_batch_is_the_mean_over_queries_not_documents() -> None:
    examples = [example_of((4,)), example_of((2, 0))]
    terms = batch_loss(torch.zeros(3), examples, query_loss=sft_query_loss("mse"), step=0)
    assert terms["loss"].item() == pytest.approx((0.25 + (0.0 + 0.25) / 2) / 2)


def test_a_batch_reports_the_margin_and_accuracy_of_its_pairs() -> None:
    examples = [EXAMPLE, example_of((1, 0))]
    scores = torch.cat([SCORES, torch.tensor([1.0, 1.0])])
    terms = batch_loss(scores, examples, query_loss=sft_query_loss("mse"), step=0)
    assert terms["accuracy"].item() == pytest.approx((2 / 3 + 0) / 2)
    assert terms["margin"].item() == pytest.approx((1.5 - 1.5 + 3.0) / 3 / 2)


@pytest.mark.parametrize(
    "query_loss", [reward_model_query_loss("bradley_terry"), dpo_query_loss("softmax", beta=0.1)]
)
def test_a_query_without_pairs_has_loss_0_and_no_say_in_the_other_terms(query_loss: QueryLoss) -> None:
    scores = torch.tensor([*SCORES, 5.0, 6.0], requires_grad=True)
    alone = batch_loss(SCORES, [EXAMPLE], query_loss=query_loss, step=0)
    terms = batch_loss(scores, [EXAMPLE, example_of((3, 3))], query_loss=query_loss, step=0)
    terms["loss"].backward()
    assert terms["loss"].item() == pytest.approx(alone["loss"].item() / 2)
    assert terms["accuracy"] == alone["accuracy"]
    assert scores.grad is not None
    assert scores.grad[3:].tolist() == [0.0, 0.0]


def test_a_batch_without_any_pair_has_a_loss_and_no_accuracy() -> None:
    scores = torch.zeros(2, requires_grad=True)
    terms = batch_loss(
        scores, [example_of((3, 3))], query_loss=reward_model_query_loss("bradley_terry"), step=0
    )
    terms["loss"].backward()
    assert terms.keys() == {"loss"}
    assert terms["loss"].item() == 0


def test_only_the_loss_of_a_batch_has_a_gradient() -> None:
    scores = SCORES.clone().requires_grad_()
    terms = batch_loss(scores, [EXAMPLE], query_loss=ppo(), step=0)
    assert [name for name, term in terms.items() if term.requires_grad] == ["loss"]


def test_scores_of_half_precision_are_compared_in_single_precision() -> None:
    scores = SCORES.to(torch.bfloat16)
    terms = batch_loss(scores, [EXAMPLE], query_loss=sft_query_loss("list_mle"), step=0)
    expected = list_mle_loss(scores.float(), torch.tensor([2.0, 0.0, 1.0]))
    assert terms["loss"].item() == expected.item()


# --- PPO


def test_ppo_starts_at_ratio_1_without_clipping() -> None:
    terms = ppo()(SCORES, EXAMPLE, step=0)
    assert (terms["ratio"].item(), terms["clip_share"].item()) == (1.0, 0.0)
    assert terms["policy_loss"].item() == pytest.approx(0, abs=1e-6)  # advantages sum to 0


def test_ppo_starts_without_divergence_where_the_policy_is_the_reference() -> None:
    terms = ppo()(torch.tensor(EXAMPLE.reference_scores), EXAMPLE, step=0)
    assert terms["kl"].item() == 0


def test_the_loss_of_ppo_is_the_surrogate_plus_the_weighted_divergence() -> None:
    terms = ppo(kl_weight=0.5)(SCORES, EXAMPLE, step=0)
    assert terms["kl"].item() > 0
    assert terms["loss"].item() == pytest.approx(terms["policy_loss"].item() + 0.5 * terms["kl"].item())


def test_the_first_gradient_of_ppo_is_that_of_the_expected_reward() -> None:
    scores = torch.zeros(3, dtype=torch.double, requires_grad=True)
    ppo(num_rankings=20_000, kl_weight=0.0)(scores, EXAMPLE, step=0)["loss"].backward()
    gains = (3.0, 0.0, 1.0)
    discounts = [1 / math.log2(rank + 1) for rank in (1, 2, 3)]
    ideal = 3.0 + discounts[1]
    orders = [(a, b, 3 - a - b) for a in range(3) for b in range(3) if a != b]
    exact = [0.0, 0.0, 0.0]
    for order in orders:  # each of probability 1 / 6, with d log P / d s by hand
        reward = sum(gains[d] * discount for d, discount in zip(order, discounts, strict=True)) / ideal
        slopes = (1 - 1 / 3, 1 - 1 / 3 - 1 / 2, 1 - 1 / 3 - 1 / 2 - 1)
        for document, slope in zip(order, slopes, strict=True):
            exact[document] -= reward * slope / 6
    assert scores.grad is not None
    assert scores.grad.tolist() == pytest.approx(exact, abs=0.01)


def test_the_reward_does_not_depend_on_the_level_or_scale_of_the_reward_models_scores() -> None:
    moved = replace(EXAMPLE, reward_scores=tuple(5.0 + 3.0 * score for score in EXAMPLE.reward_scores))
    rewards = [
        ppo(reward="reward_model", num_rankings=16)(SCORES, example, step=0)["reward"].item()
        for example in (EXAMPLE, moved)
    ]
    assert rewards[0] == pytest.approx(rewards[1])
    assert 0.5 < rewards[0] < 1.0


def test_rewards_come_from_the_grades_or_from_the_frozen_reward_model() -> None:
    first_is_best = torch.tensor([50.0, 0.0, -50.0])  # draws the same ranking each time
    rewarded = {
        reward: ppo(reward=reward)(first_is_best, EXAMPLE, step=0)["reward"].item()
        for reward in ("grades", "reward_model")
    }
    third = 1 / math.log2(4)
    assert rewarded["grades"] == pytest.approx((3 + third) / (3 + 1 / math.log2(3)))
    assert rewarded["reward_model"] == pytest.approx(1)  # its scores fall along the list


def test_updates_of_one_rollout_reuse_its_rankings() -> None:
    objective = ppo()
    before = objective(SCORES, EXAMPLE, step=4)
    moved = torch.tensor([3.0, -1.0, -2.0])
    after = objective(moved, EXAMPLE, step=5)
    assert after["reward"] == before["reward"]
    assert after["ratio"].item() != 1
    assert after["clip_share"].item() > 0


def test_the_next_rollout_draws_from_the_policy_as_it_has_become() -> None:
    objective = ppo()
    objective(SCORES, EXAMPLE, step=4)
    terms = objective(torch.tensor([9.0, -9.0, 0.0]), EXAMPLE, step=6)
    assert terms["ratio"].item() == 1
    assert terms["reward"].item() == pytest.approx(1, abs=1e-3)


def test_a_rollout_that_was_lost_is_drawn_anew() -> None:
    terms = ppo()(SCORES, EXAMPLE, step=5)
    assert terms["ratio"].item() == 1


def test_only_the_rankings_of_the_present_rollout_are_kept() -> None:
    objective = ppo()
    for step in range(20):
        objective(SCORES, replace(EXAMPLE, query_id=f"q{step}"), step=step)
        assert len(objective._samples) <= 2


def test_rankings_are_drawn_by_seed_step_and_query_and_by_nothing_else() -> None:
    def rewards(*, seed: int, query_id: str, step: int) -> float:
        query = replace(EXAMPLE, query_id=query_id)
        return ppo(seed=seed, num_rankings=64)(SCORES, query, step=step)["reward"].item()

    once = rewards(seed=1, query_id="q1", step=3)
    assert rewards(seed=1, query_id="q1", step=3) == once
    assert once not in {
        rewards(seed=2, query_id="q1", step=3),
        rewards(seed=1, query_id="q2", step=3),
        rewards(seed=1, query_id="q1", step=2),
    }


def test_the_divergence_of_ppo_is_estimated_on_the_rankings_it_drew() -> None:
    terms = ppo(num_rankings=2000)(SCORES, EXAMPLE, step=0)
    drawn = sample_rankings(SCORES, num_rankings=2000, generator=torch.Generator().manual_seed(5))
    other = plackett_luce_kl(SCORES, torch.tensor(EXAMPLE.reference_scores), rankings=drawn)
    assert terms["kl"].item() == pytest.approx(other.item(), rel=0.02)


def test_one_candidate_and_no_gain_teach_ppo_nothing() -> None:
    for example in (example_of((3,)), example_of((0, 0))):
        scores = torch.tensor(example.reference_scores, requires_grad=True)
        ppo()(scores, example, step=0)["loss"].backward()
        assert scores.grad is not None
        assert scores.grad.tolist() == pytest.approx([0.0] * len(example.grades), abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"num_rankings": 1}, "num_rankings must be at least 2, got 1"),
        ({"updates_per_rollout": 0}, "updates_per_rollout must be at least 1, got 0"),
        ({"clip": 0.0}, "clip must lie between 0 and 1, got 0.0"),
        ({"clip": 1.0}, "clip must lie between 0 and 1, got 1.0"),
        ({"kl_weight": -0.1}, "kl_weight must not be negative, got -0.1"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        ppo(**settings)
