"""The objective of a stage, the order of its queries, and when it ends."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from jobs.objective_trainer import (
    HELD_OUT_NDCG,
    QueryOrder,
    is_out_of_patience,
    ndcg,
    query_loss,
    updates_per_rollout,
)
from jobs.training_config import DpoConfig, PpoConfig, RewardModelConfig, SftConfig, StageConfig
from rerank_core.training.batching import RankingExample
from rerank_core.training.steps import PpoQueryLoss, contrastive_query_loss

if TYPE_CHECKING:
    from jobs.stage import StageTask

EXAMPLE = RankingExample(
    query_id="q",
    documents=(),
    grades=(3, 0, 1),
    max_grade=3,
    chosen=(0, 0, 2),
    rejected=(1, 2, 1),
    reference_scores=(0.2, 0.1, -0.3),
    reward_scores=(1.0, 0.0, 0.5),
)
SCORES = torch.tensor([0.3, -0.2, 0.9])


def loss_of(task: StageTask, settings: StageConfig) -> float:
    return float(query_loss(replace(task, settings=settings))(SCORES, EXAMPLE, step=0)["loss"])


@pytest.mark.parametrize(
    "settings",
    [
        [SftConfig(loss=name) for name in ("mse", "cross_entropy", "list_mle", "lambda")],
        [RewardModelConfig(loss=name) for name in ("bradley_terry", "mse")],
        [DpoConfig(loss=name) for name in ("sigmoid", "softmax")],
    ],
    ids=["sft", "rm", "dpo"],
)
def test_each_named_loss_is_another_loss(task: StageTask, settings: list[StageConfig]) -> None:
    assert len({loss_of(task, one) for one in settings}) == len(settings)


def test_the_settings_of_a_stage_reach_its_objective(task: StageTask) -> None:
    assert loss_of(task, DpoConfig(beta=0.1)) != loss_of(task, DpoConfig(beta=0.5))
    ppo: Any = query_loss(replace(task, settings=PpoConfig(num_rankings=7, clip=0.3, reward="grades")))
    assert isinstance(ppo, PpoQueryLoss)
    assert (ppo.num_rankings, ppo.clip, ppo.reward, ppo.seed) == (7, 0.3, "grades", task.seed)
    assert query_loss(replace(task, name="warmup", settings=StageConfig())) is contrastive_query_loss


def test_only_ppo_updates_more_than_once_on_the_same_queries(task: StageTask) -> None:
    assert updates_per_rollout(task) == 1
    assert updates_per_rollout(replace(task, settings=PpoConfig(updates_per_rollout=3))) == 3


# --- the order of the queries


def test_an_epoch_visits_every_query_and_fills_its_last_block_from_its_beginning() -> None:
    order = list(QueryOrder(10, block=4, repeats=1, seed=0))
    assert set(order[:10]) == set(range(10))
    assert order[10:] == order[:2]
    assert len(QueryOrder(10, block=4, repeats=1, seed=0)) == len(order)


def test_fewer_queries_than_a_block_fill_it_several_times() -> None:
    assert Counter(QueryOrder(2, block=6, repeats=1, seed=0)) == {0: 3, 1: 3}


def test_each_block_is_repeated_before_the_next() -> None:
    once = list(QueryOrder(8, block=4, repeats=1, seed=0))
    twice = QueryOrder(8, block=4, repeats=2, seed=0)
    assert list(twice) == once[:4] * 2 + once[4:] * 2
    assert len(twice) == 16


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    order = QueryOrder(50, block=1, repeats=1, seed=3)
    first = list(order)
    order.set_epoch(1)
    second = list(order)
    order.set_epoch(0)
    assert list(order) == first != second
    assert list(QueryOrder(50, block=1, repeats=1, seed=4)) != first


# --- what is measured on held-out queries


def test_ndcg_is_one_for_the_ideal_order_and_less_for_another() -> None:
    assert ndcg(torch.tensor([3.0, 1.0, 2.0]), EXAMPLE) == pytest.approx(1.0)
    worst = ndcg(torch.tensor([1.0, 3.0, 2.0]), EXAMPLE)
    assert worst == pytest.approx((1 / 1.5849625 + 7 / 2) / (7 + 1 / 1.5849625))


@pytest.mark.parametrize(
    ("values", "patience", "is_over"),
    [
        ([0.5], 1, False),
        ([0.5, 0.6], 1, False),
        ([0.6, 0.5], 1, True),
        ([0.6, 0.6], 1, True),
        ([0.6, 0.5], 2, False),
        ([0.6, 0.5, 0.55], 2, True),
        ([0.6, 0.5, 0.7], 2, False),
    ],
)
def test_patience_ends_where_the_best_epoch_lies_far_enough_back(
    values: list[float], patience: int, is_over: bool
) -> None:
    history = [entry for value in values for entry in ({"loss": 1.0}, {HELD_OUT_NDCG: value})]
    assert is_out_of_patience(history, patience) is is_over
