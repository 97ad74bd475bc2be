"""What DeepSpeed is told."""

from __future__ import annotations

import json
from typing import get_args

import pytest
from transformers import BertConfig, BertModel, TrainingArguments
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

from jobs.zero import zero_config
from rerank_core.models.memory import ZeroStage


@pytest.mark.parametrize("stage", get_args(ZeroStage))
def test_the_stage_and_the_arithmetic_are_passed_on(stage: ZeroStage) -> None:
    for bf16 in (False, True):
        config = zero_config(stage, bf16=bf16, offload_optimizer=False)
        assert config["zero_optimization"]["stage"] == stage
        assert config["bf16"] == {"enabled": bf16}
        assert json.loads(json.dumps(config)) == config


def test_the_training_arguments_decide_learning_rate_and_batches() -> None:
    config = zero_config(2, bf16=False, offload_optimizer=False)
    assert config["optimizer"]["params"]["lr"] == "auto"
    assert config["train_micro_batch_size_per_gpu"] == config["gradient_accumulation_steps"] == "auto"


def test_sharded_parameters_are_gathered_when_they_are_saved() -> None:
    config = zero_config(3, bf16=True, offload_optimizer=False)
    assert config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is True


def test_what_stays_unsharded_goes_by_the_width_of_the_model() -> None:
    deepspeed = HfTrainerDeepSpeedConfig(zero_config(3, bf16=False, offload_optimizer=False))
    model = BertModel(BertConfig(vocab_size=9, hidden_size=32, num_attention_heads=2, num_hidden_layers=1))
    deepspeed.trainer_config_finalize(TrainingArguments(use_cpu=True), model, num_training_steps=1)
    assert deepspeed.get_value("zero_optimization.stage3_param_persistence_threshold") == 10 * 32


def test_only_an_offloaded_optimiser_lives_on_the_cpu() -> None:
    assert "offload_optimizer" not in zero_config(2, bf16=True, offload_optimizer=False)["zero_optimization"]
    offloaded = zero_config(2, bf16=True, offload_optimizer=True)["zero_optimization"]
    assert offloaded["offload_optimizer"]["device"] == "cpu"
