"""Named training runs: functions that return a full configuration."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING

from jobs.training_config import (
    CompareJob,
    DpoConfig,
    MemoryJob,
    PpoConfig,
    RewardModelConfig,
    ScorerTraining,
    SftConfig,
    TrainJob,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path


def small_cpu(prepared: Path, output: Path) -> TrainJob:
    """MiniLM on two CPU workers in minutes: small steps, as a hundred queries are soon learnt by heart."""
    return TrainJob(
        prepared=prepared,
        output=output,
        model="minilm",
        max_length=256,
        objectives=("sft", "dpo"),
        sft=SftConfig(num_epochs=2, learning_rate=1e-5),
        rm=RewardModelConfig(num_epochs=2, learning_rate=1e-5),
        dpo=DpoConfig(num_epochs=1, learning_rate=1e-5),
        ppo=PpoConfig(num_epochs=1, learning_rate=1e-5),
        zero_stage=2,
        num_workers=2,
    )


def sft(prepared: Path, output: Path) -> TrainJob:
    """Supervised learning of the grades, on a CPU."""
    return replace(small_cpu(prepared, output), objectives=("sft",))


def rm(prepared: Path, output: Path) -> TrainJob:
    """A reward model on preference pairs, on a CPU."""
    return replace(small_cpu(prepared, output), objectives=("rm",))


def dpo(prepared: Path, output: Path) -> TrainJob:
    """SFT, then direct preference optimisation against it, on a CPU."""
    return replace(small_cpu(prepared, output), objectives=("sft", "dpo"))


def ppo(prepared: Path, output: Path) -> TrainJob:
    """SFT and a reward model, then PPO of the one for the other's reward, on a CPU."""
    return replace(small_cpu(prepared, output), objectives=("sft", "rm", "ppo"))


def paper_llama(prepared: Path, output: Path) -> TrainJob:
    """The hyper-parameters that Islam and Zhao (2025) state, on a Llama of the size they name.

    Stated there: 8 epochs, learning rate 2e-5, batch 4, length 2048, DeepSpeed. Not stated: beta, PPO's
    settings, full training or adapters, the very checkpoint; those are the defaults here.
    """
    return TrainJob(
        prepared=prepared,
        output=output,
        model="meta-llama/Llama-3.1-8B",
        max_length=2048,
        precision="bf16",
        objectives=("sft", "rm", "dpo", "ppo"),
        sft=SftConfig(num_epochs=8, learning_rate=2e-5, queries_per_step=4),
        rm=RewardModelConfig(num_epochs=8, learning_rate=2e-5, queries_per_step=4),
        dpo=DpoConfig(num_epochs=8, learning_rate=2e-5, queries_per_step=4),
        ppo=PpoConfig(num_epochs=8, learning_rate=2e-5, queries_per_step=4),
        gradient_checkpointing=True,
        zero_stage=3,
        num_workers=4,
    )


def paper_mistral(prepared: Path, output: Path) -> TrainJob:
    """As `paper_llama`, on Mistral 7B."""
    return replace(paper_llama(prepared, output), model="mistralai/Mistral-7B-v0.3")


def paper_phi(prepared: Path, output: Path) -> TrainJob:
    """As `paper_llama`, on Phi-3 with 3.8 B weights."""
    return replace(paper_llama(prepared, output), model="microsoft/Phi-3-mini-4k-instruct")


def paper_qwen(prepared: Path, output: Path) -> TrainJob:
    """As `paper_llama`, on Qwen 7B."""
    return replace(paper_llama(prepared, output), model="Qwen/Qwen2.5-7B")


def memory_of(recipe: TrainJob) -> MemoryJob:
    """Return the estimate of what a training run would take, each worker on a GPU of its own."""
    return MemoryJob(
        model=recipe.model,
        num_layers=recipe.num_layers,
        num_gpus=recipe.num_workers,
        precision=recipe.precision,
        lora_rank=recipe.lora_rank,
        max_length=recipe.max_length,
        max_tokens_per_batch=recipe.max_tokens_per_batch,
        gradient_checkpointing=recipe.gradient_checkpointing,
    )


def comparison_of(recipe: TrainJob) -> CompareJob:
    """Return the comparison whose cells are trained as a recipe says, each with the workers of one run.

    The epoch of a stage is chosen on the dev queries, whatever the recipe's patience.
    """
    shared = {item.name: getattr(recipe, item.name) for item in fields(ScorerTraining)}
    del shared["patience"]
    return CompareJob(**shared, models=(recipe.model,))


RECIPES: Mapping[str, Callable[[Path, Path], TrainJob]] = {
    recipe.__name__: recipe
    for recipe in (small_cpu, sft, rm, dpo, ppo, paper_llama, paper_mistral, paper_phi, paper_qwen)
}
"""What `whyrank train --recipe` offers."""
