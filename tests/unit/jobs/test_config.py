"""Wrong settings are refused by name before any work."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest

from jobs.config import AttributeJob, DemoJob, EvaluateJob, ExplainJob, PrepareJob, ReportJob, ScoreJob
from jobs.training_config import (
    CompareJob,
    DpoConfig,
    GenerativeTrainJob,
    MemoryJob,
    NoisySftConfig,
    PpoConfig,
    RewardModelConfig,
    RpoConfig,
    SftConfig,
    StageConfig,
    TrainJob,
)
from rerank_core.errors import ConfigError

HERE = Path("here")
NEEDED: dict[type, dict[str, Any]] = {
    PrepareJob: {"output": HERE},
    StageConfig: {},
    SftConfig: {},
    RewardModelConfig: {},
    DpoConfig: {},
    PpoConfig: {},
    TrainJob: {"prepared": HERE, "output": HERE},
    CompareJob: {"prepared": HERE, "output": HERE},
    MemoryJob: {"model": "minilm"},
    NoisySftConfig: {},
    RpoConfig: {},
    GenerativeTrainJob: {"prepared": HERE, "output": HERE},
    ScoreJob: {"prepared": HERE, "artefact": HERE, "output": HERE},
    AttributeJob: {"prepared": HERE, "artefact": HERE, "run": HERE, "output": HERE},
    ExplainJob: {"prepared": HERE, "run": HERE, "attributions": HERE, "output": HERE},
    EvaluateJob: {"prepared": HERE, "output": HERE, "runs": ("a=b",)},
    ReportJob: {
        name: HERE for name in ("prepared", "metrics", "run", "attributions", "explanations", "output")
    },
    DemoJob: {},
}
WRONG: list[tuple[type, dict[str, Any], str]] = [
    (PrepareJob, {"train_candidates": 0}, "train_candidates must be at least 1, got 0"),
    (PrepareJob, {"pairs_bottom": -1}, "pairs_bottom must be at least 1, got -1"),
    (PrepareJob, {"max_document_chars": 0}, "max_document_chars must be at least 1"),
    *[
        (kind, {"seed": -1}, "seed must not be negative, got -1")
        for kind in (PrepareJob, TrainJob, AttributeJob, ExplainJob, EvaluateJob, DemoJob)
    ],
    (PrepareJob, {"num_folds": -1}, "num_folds must not be negative, got -1"),
    (PrepareJob, {"eval_candidates": 9}, r"eval_candidates \(9\) must not be below train_candidates \(10\)"),
    (StageConfig, {"num_epochs": 0}, "num_epochs must be at least 1"),
    (StageConfig, {"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
    (StageConfig, {"queries_per_step": 0}, "queries_per_step must be at least 1"),
    (StageConfig, {"warmup_share": 1.0}, r"warmup_share must lie in \[0, 1\), got 1.0"),
    (DpoConfig, {"beta": 0.0}, "beta must be positive, got 0.0"),
    (DpoConfig, {"num_epochs": 0}, "num_epochs must be at least 1"),
    (PpoConfig, {"num_rankings": 1}, "num_rankings must be at least 2, got 1"),
    (PpoConfig, {"updates_per_rollout": 0}, "updates_per_rollout must be at least 1, got 0"),
    (PpoConfig, {"clip": 1.0}, "clip must lie between 0 and 1, got 1.0"),
    (PpoConfig, {"kl_weight": -0.1}, "kl_weight must not be negative"),
    (PpoConfig, {"max_kl": 0.0}, "max_kl must be positive"),
    (PpoConfig, {"learning_rate": 0.0}, "learning_rate must be positive"),
    (CompareJob, {"max_length": 15}, "max_length must be at least 16, got 15"),
    (CompareJob, {"methods": ()}, "methods must name at least one"),
    (CompareJob, {"models": ("a", "a")}, "one of models is named twice"),
    (CompareJob, {"seeds": (1, 1)}, "one of seeds is named twice"),
    (CompareJob, {"seeds": (0, -1)}, "seeds must not be negative"),
    (CompareJob, {"parallel_cells": 0}, "parallel_cells must be at least 1, got 0"),
    (CompareJob, {"text_depth": 0}, "text_depth must be at least 1, got 0"),
    (CompareJob, {"num_samples": 99}, "num_samples must be at least 100, got 99"),
    (CompareJob, {"ppo": PpoConfig(reward_model=HERE)}, "a comparison trains a reward model in every cell"),
    (TrainJob, {"max_length": 15}, "max_length must be at least 16, got 15"),
    (TrainJob, {"num_workers": 0}, "num_workers must be at least 1"),
    (TrainJob, {"lora_rank": -1}, "lora_rank must not be negative"),
    (TrainJob, {"num_layers": 0}, "num_layers must be at least 1"),
    (TrainJob, {"max_failures": -1}, "max_failures must not be negative"),
    (TrainJob, {"objectives": ("sft", "sft")}, "named twice"),
    (TrainJob, {"objectives": ("dpo", "sft")}, "order sft, dpo .*DPO's reference"),
    (TrainJob, {"objectives": ("sft", "ppo")}, "PPO takes its reward from one reward model: either add rm"),
    (
        TrainJob,
        {"objectives": ("rm", "ppo"), "ppo": PpoConfig(reward_model=HERE)},
        "PPO takes its reward from one reward model",
    ),
    (TrainJob, {"patience": -1}, "patience must not be negative"),
    (TrainJob, {"max_tokens_per_batch": 0}, "max_tokens_per_batch must be at least 1"),
    (
        TrainJob,
        {"offload_optimizer": True, "zero_stage": 0},
        "offload_optimizer needs a ZeRO stage of 1 to 3",
    ),
    (MemoryJob, {"max_length": 15}, "max_length must be at least 16, got 15"),
    (MemoryJob, {"lora_rank": -1}, "lora_rank must not be negative, got -1"),
    (MemoryJob, {"num_gpus": 0}, "num_gpus must be at least 1, got 0"),
    (MemoryJob, {"max_tokens_per_batch": 0}, "max_tokens_per_batch must be at least 1"),
    (MemoryJob, {"num_layers": 0}, "num_layers must be at least 1"),
    (MemoryJob, {"gpu_memory_gib": 0.0}, "gpu_memory_gib must be positive, got 0.0"),
    (NoisySftConfig, {"noise_alpha": -1.0}, "noise_alpha must not be negative, got -1.0"),
    (NoisySftConfig, {"num_epochs": 0}, "num_epochs must be at least 1"),
    (RpoConfig, {"nll_weight": -0.5}, "nll_weight must not be negative, got -0.5"),
    (RpoConfig, {"beta": 0.0}, "beta must be positive, got 0.0"),
    (GenerativeTrainJob, {"max_words": 0}, "max_words must be at least 1"),
    (GenerativeTrainJob, {"queries_per_pass": 0}, "queries_per_pass must be at least 1"),
    (GenerativeTrainJob, {"lora_rank": -1}, "lora_rank must not be negative, got -1"),
    (GenerativeTrainJob, {"num_candidates": 1}, "num_candidates must be at least 2, got 1"),
    (GenerativeTrainJob, {"objectives": ()}, "objectives must be sft, dpo or both in this order"),
    (GenerativeTrainJob, {"objectives": ("dpo", "sft")}, "objectives must be sft, dpo or both in this order"),
    (ScoreJob, {"shard_queries": 0}, "shard_queries must be at least 1"),
    (ScoreJob, {"max_tokens_per_batch": 0}, "max_tokens_per_batch must be at least 1"),
    (AttributeJob, {"top_k": 0}, "top_k must be at least 1"),
    (AttributeJob, {"max_documents": 0}, "max_documents must be at least 1"),
    (AttributeJob, {"max_queries": 0}, "max_queries must be at least 1"),
    (AttributeJob, {"query_words": True, "method": "shap"}, "shap attributes words of documents alone"),
    (AttributeJob, {"rank_flips": True, "leaf": "sentence"}, "rank flips are searched among words"),
    (ExplainJob, {"num_words": 0}, "num_words must be at least 1"),
    (ExplainJob, {"max_new_tokens": 2048}, "max_model_tokens must exceed max_new_tokens"),
    (ExplainJob, {"temperature": -0.1}, "temperature must not be negative"),
    (EvaluateJob, {"runs": ()}, "at least one NAME=FOLDER"),
    (EvaluateJob, {"runs": ("a=b", "=folder")}, "each run must be NAME=FOLDER"),
    (EvaluateJob, {"runs": ("name=",)}, "each run must be NAME=FOLDER"),
    (EvaluateJob, {"num_samples": 99}, "num_samples must be at least 100"),
    (EvaluateJob, {"num_close_ups": -1}, "num_close_ups must not be negative, got -1"),
    (EvaluateJob, {"fusion_weight": 1.5}, r"fusion_weight must lie in \[0, 1\], got 1.5"),
    (DemoJob, {"max_documents": 13}, "max_documents must lie between 1 and 12, got 13"),
]


@pytest.mark.parametrize(
    ("kind", "wrong", "message"), WRONG, ids=lambda value: str(value) if isinstance(value, dict) else None
)
def test_a_wrong_setting_is_refused_by_name(kind: type, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kind(**{**NEEDED[kind], **wrong})


@pytest.mark.parametrize("kind", NEEDED)
def test_the_defaults_are_accepted_and_cannot_be_changed_afterwards(kind: type) -> None:
    config = kind(**NEEDED[kind])
    with pytest.raises(FrozenInstanceError):
        setattr(config, fields(config)[0].name, "other")


def test_no_objective_at_all_asks_for_the_untrained_scorer() -> None:
    assert TrainJob(prepared=HERE, output=HERE, objectives=()).objectives == ()


@pytest.mark.parametrize("objectives", [("sft",), ("dpo",), ("warmup", "dpo"), ("warmup", "sft", "dpo")])
def test_any_objectives_in_their_order_are_accepted(objectives: tuple[Any, ...]) -> None:
    assert TrainJob(prepared=HERE, output=HERE, objectives=objectives).objectives == objectives
