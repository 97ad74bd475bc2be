"""Named runs are complete configurations."""

from __future__ import annotations

from pathlib import Path

from jobs.recipes import minilm_cpu
from jobs.train import UNTRAINED, stage_names, stages


def test_minilm_on_cpus_trains_sft_then_dpo_on_two_workers() -> None:
    config = minilm_cpu(prepared=Path("a"), output=Path("b"), seed=3, address="here")
    assert (config.model, config.num_workers, config.seed, config.address) == ("minilm", 2, 3, "here")
    assert stage_names(config) == ("sft", "dpo")
    assert all(settings.queries_per_step % config.num_workers == 0 for _, settings in stages(config))


def test_the_same_recipe_without_objectives_is_the_untrained_baseline_of_the_same_model() -> None:
    trained = minilm_cpu(prepared=Path("a"), output=Path("b"), seed=3, address=None)
    untrained = minilm_cpu(prepared=Path("a"), output=Path("b"), seed=3, address=None, objectives=())
    assert stage_names(untrained) == (UNTRAINED,)
    assert (untrained.model, untrained.max_length) == (trained.model, trained.max_length)
