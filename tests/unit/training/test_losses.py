"""Each objective against its closed form."""

import math
from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor

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

Listwise = Callable[[Tensor, Tensor], Tensor]


def gradient(loss: Tensor, scores: Tensor) -> list[float]:
    (found,) = torch.autograd.grad(loss, scores)
    values: list[float] = found.tolist()
    return values


# --- pointwise


def test_sft_is_the_squared_error_of_the_sigmoid() -> None:
    loss = sft_loss(torch.tensor([0.0, math.log(3)]), torch.tensor([0.0, 1.0]))
    assert loss.item() == pytest.approx((0.5**2 + 0.25**2) / 2)


def test_the_gradient_of_sft_fades_where_the_sigmoid_is_flat() -> None:
    scores = torch.tensor([-30.0, math.log(3)], requires_grad=True)
    found = gradient(sft_loss(scores, torch.tensor([1.0, 0.25])), scores)
    assert found == pytest.approx([0.0, (0.75 - 0.25) * 0.75 * 0.25], abs=1e-7)


def test_cross_entropy_is_that_of_two_bernoullis() -> None:
    loss = cross_entropy_loss(torch.tensor([math.log(3), 0.0]), torch.tensor([0.4, 1.0]))
    of_first = -0.4 * math.log(0.75) - 0.6 * math.log(0.25)
    assert loss.item() == pytest.approx((of_first + math.log(2)) / 2)


def test_the_gradient_of_cross_entropy_is_the_error_of_the_sigmoid() -> None:
    scores = torch.tensor([-30.0, math.log(3)], requires_grad=True)
    found = gradient(cross_entropy_loss(scores, torch.tensor([1.0, 0.25])), scores)
    assert found == pytest.approx([-1 / 2, (0.75 - 0.25) / 2])


# --- pairs


def test_bradley_terry_is_the_log_of_one_plus_exp_of_minus_the_margin() -> None:
    loss = bradley_terry_loss(torch.tensor([0.0, 2.0]))
    assert loss.item() == pytest.approx((math.log(2) + math.log1p(math.exp(-2.0))) / 2)


def test_bradley_terry_is_minus_the_log_probability_that_the_chosen_is_drawn_first() -> None:
    scores = torch.tensor([1.5, -0.5])
    expected = -scores.log_softmax(0)[0].item()
    assert bradley_terry_loss(scores[:1] - scores[1:]).item() == pytest.approx(expected)


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
    loss = dpo_loss(scores[:1] - scores[1:], torch.zeros(1), beta=0.1)
    assert gradient(loss, scores) == pytest.approx([-0.05, 0.05])


def test_softmax_dpo_with_one_rejected_document_each_is_dpo() -> None:
    margin, reference_margin = torch.tensor([1.0, -3.0, 0.5]), torch.tensor([0.2, 0.1, 2.0])
    ours = softmax_dpo_loss(margin, reference_margin, chosen=torch.tensor([4, 0, 2]), beta=0.3)
    assert ours.item() == pytest.approx(dpo_loss(margin, reference_margin, beta=0.3).item(), abs=1e-6)


def test_softmax_dpo_sets_each_chosen_document_against_all_its_rejected_ones() -> None:
    scores, reference, beta = [2.0, -1.0, 0.5, 0.0], [0.1, 0.4, -0.3, 1.0], 0.7
    rejected_by_chosen = {2: [0, 1, 3], 0: [3]}
    gain = [score - before for score, before in zip(scores, reference, strict=True)]
    expected = np.mean(
        [
            math.log1p(sum(math.exp(beta * (gain[d] - gain[c])) for d in rejected))
            for c, rejected in rejected_by_chosen.items()
        ]
    )
    pairs = [(c, d) for c, rejected in rejected_by_chosen.items() for d in rejected]
    margin = torch.tensor([scores[c] - scores[d] for c, d in pairs])
    reference_margin = torch.tensor([reference[c] - reference[d] for c, d in pairs])
    chosen = torch.tensor([c for c, _ in pairs])
    ours = softmax_dpo_loss(margin, reference_margin, chosen=chosen, beta=beta)
    assert ours.item() == pytest.approx(expected)


def test_softmax_dpo_starts_at_the_log_of_the_number_of_documents_compared() -> None:
    margin = torch.tensor([0.3, -2.0, 1.0])
    loss = softmax_dpo_loss(margin, margin, chosen=torch.zeros(3, dtype=torch.long), beta=0.1)
    assert loss.item() == pytest.approx(math.log(4))


# --- lists


def test_contrastive_loss_of_equal_scores_is_the_log_of_their_number() -> None:
    assert contrastive_loss(torch.zeros(8), torch.tensor(3)).item() == pytest.approx(math.log(8))


def test_contrastive_loss_counts_leads_alone_and_is_0_without_rivals() -> None:
    scores = torch.tensor([1.5, -0.5, 0.25])
    expected = math.log(math.exp(1.25) + math.exp(-0.75) + 1)
    assert contrastive_loss(scores, torch.tensor(2)).item() == pytest.approx(expected)
    assert contrastive_loss(scores + 7, torch.tensor(2)).item() == pytest.approx(expected)
    assert contrastive_loss(scores[:1], torch.tensor(0)).item() == 0.0


def plackett_luce_probability(scores: list[float], order: tuple[int, ...]) -> float:
    """Draw documents one after the other, each in proportion to exp(score)."""
    weights = [math.exp(scores[i]) for i in order]
    return math.prod(weight / sum(weights[place:]) for place, weight in enumerate(weights))


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_list_mle_of_distinct_grades_is_minus_the_log_probability_of_their_order(
    order: tuple[int, ...],
) -> None:
    scores = [0.3, -1.2, 2.0, 0.1]
    grades = torch.zeros(4)
    for rank, document in enumerate(order):
        grades[document] = 3 - rank
    expected = -math.log(plackett_luce_probability(scores, order))
    assert list_mle_loss(torch.tensor(scores), grades).item() == pytest.approx(expected, abs=1e-5)


def test_list_mle_compares_no_documents_of_equal_grade() -> None:
    scores = [0.5, 1.0, -1.0, 0.2]
    above = [math.exp(scores[i]) for i in (0, 1)]
    below = math.exp(scores[2]) + math.exp(scores[3])
    expected = -sum(math.log(weight / (weight + below)) for weight in above)
    loss = list_mle_loss(torch.tensor(scores), torch.tensor([2.0, 2.0, 1.0, 1.0]))
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def pairwise_ndcg_loss(scores: list[float], grades: list[int]) -> float:
    """LambdaLoss in plain loops: NDCG before and after each swap in the present ranking."""

    def dcg(order: list[int]) -> float:
        return sum((2.0 ** grades[i] - 1) / math.log2(rank + 1) for rank, i in enumerate(order, start=1))

    ranking = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    ideal = dcg(sorted(range(len(scores)), key=lambda i: -grades[i]))
    total = 0.0
    for i in range(len(scores)):
        for j in range(len(scores)):
            if grades[i] > grades[j]:
                swapped = [{i: j, j: i}.get(document, document) for document in ranking]
                change = abs(dcg(swapped) - dcg(ranking)) / ideal
                total += change * math.log1p(math.exp(-(scores[i] - scores[j])))
    return total


def test_lambda_loss_equals_a_loop_that_swaps_every_pair(rng: np.random.Generator) -> None:
    for size in (2, 3, 7, 12):
        scores = rng.normal(size=size).tolist()
        grades = [1, *rng.integers(0, 5, size=size - 1).tolist()]
        loss = lambda_loss(torch.tensor(scores, dtype=torch.double), torch.tensor(grades))
        assert loss.item() == pytest.approx(pairwise_ndcg_loss(scores, grades))


def test_lambda_loss_ranks_equal_scores_in_the_order_given() -> None:
    scores, grades = [0.0, 0.0, 1.0, 0.0], [0, 3, 1, 2]
    loss = lambda_loss(torch.tensor(scores), torch.tensor(grades))
    assert loss.item() == pytest.approx(pairwise_ndcg_loss(scores, grades), abs=1e-6)


def test_lambda_weights_are_constants_of_the_gradient() -> None:
    scores = torch.tensor([0.4, 1.3], requires_grad=True)
    change = (1 - 1 / math.log2(3)) * 3 / 3  # of NDCG, were the two to swap
    pull = -change / (1 + math.exp(0.4 - 1.3))
    found = gradient(lambda_loss(scores, torch.tensor([2, 0])), scores)
    assert found == pytest.approx([pull, -pull])


@pytest.mark.parametrize("loss", [list_mle_loss, lambda_loss])
@pytest.mark.parametrize("grades", [[0, 0, 0], [2, 2, 2], [1]])
def test_lists_of_equal_grades_teach_nothing(loss: Listwise, grades: list[int]) -> None:
    scores = torch.randn(len(grades), requires_grad=True)
    value = loss(scores, torch.tensor(grades))
    assert value.item() == 0
    assert gradient(value, scores) == [0.0] * len(grades)


@pytest.mark.parametrize("loss", [list_mle_loss, lambda_loss])
def test_the_order_in_which_documents_are_listed_does_not_matter(
    loss: Listwise, rng: np.random.Generator
) -> None:
    scores = torch.tensor(rng.normal(size=9))
    grades = torch.tensor(rng.integers(0, 3, size=9))
    order = torch.tensor(rng.permutation(9))
    assert loss(scores[order], grades[order]).item() == pytest.approx(loss(scores, grades).item())


def test_gains_are_two_to_the_grade_minus_one() -> None:
    assert exponential_gains(torch.tensor([0.0, 1.0, 3.0])).tolist() == [0.0, 1.0, 7.0]
