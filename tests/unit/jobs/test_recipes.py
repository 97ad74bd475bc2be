"""Named runs are complete configurations."""

from __future__ import annotations

from pathlib import Path

from jobs.recipes import minilm_cpu
from jobs.train import stage_names, stages


def test_minilm_on_cpus_trains_sft_then_dpo_on_two_workers() -> None:
    config = minilm_cpu(Path("a"), Path("b"))
    assert (config.model, config.num_workers) == ("minilm", 2)
    assert stage_names(config) == ("sft", "dpo")
    assert all(settings.queries_per_step % config.num_workers == 0 for _, settings in stages(config))
