"""Named training runs: functions that return a full configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.config import DpoConfig, StageConfig, TrainJob

if TYPE_CHECKING:
    from pathlib import Path


def minilm_cpu(prepared: Path, output: Path) -> TrainJob:
    """MiniLM on two CPU workers in minutes: small steps, as a hundred queries are soon learnt by heart."""
    return TrainJob(
        prepared=prepared,
        output=output,
        model="minilm",
        max_length=256,
        objectives=("sft", "dpo"),
        sft=StageConfig(num_epochs=2, learning_rate=1e-5),
        dpo=DpoConfig(num_epochs=1, learning_rate=1e-5),
        zero_stage=2,
        num_workers=2,
    )
